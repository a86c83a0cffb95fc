"""The spool: journal batches on disk while the control store is away, replayed in order when it is back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from exodus.config import SPOOL_BYTES_MAX
from exodus.control.changes import Barrier, Key, pack, unpack


class Spool:
    """One append-only file. A batch that does not fit is refused, and the caller counts an open gap."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "spool.log"
        folder.mkdir(parents=True, exist_ok=True)
        self.keys = 0
        self.bytes = self._path.stat().st_size if self._path.exists() else 0
        if self.bytes:
            self.keys = sum(len(keys) for keys, _ in self.batches())

    def __bool__(self) -> bool:
        return self.bytes > 0

    def append(self, keys: list[Key], barriers: list[Barrier]) -> bool:
        """Keep one batch; False where the disk or the bound does not let it in."""
        packed = pack(keys)
        said = b"\n".join(barrier.encode() for barrier in barriers)
        record = len(packed).to_bytes(4, "little") + len(said).to_bytes(4, "little") + packed + said
        if self.bytes + len(record) > SPOOL_BYTES_MAX:
            return False
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                written = os.write(handle, record)
                if written != len(record):
                    os.ftruncate(handle, self.bytes)
                    return False
            finally:
                os.close(handle)
        except OSError:
            return False
        self.bytes += len(record)
        self.keys += len(keys)
        return True

    def batches(self) -> Iterator[tuple[list[Key], list[Barrier]]]:
        """All batches, in order. A torn last record, from a crash in the middle of it, ends the reading."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            while len(head := file.read(8)) == 8:
                keys_size, said_size = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
                body = file.read(keys_size + said_size)
                if len(body) < keys_size + said_size:
                    return
                barriers = [Barrier.decode(said) for said in body[keys_size:].split(b"\n") if said]
                yield unpack(body[:keys_size]), barriers

    def clear(self) -> None:
        """Everything in it was journalled."""
        self._path.unlink(missing_ok=True)
        self.bytes = self.keys = 0
