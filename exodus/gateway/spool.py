"""The spool: journal batches on disk while the control store is away, replayed in order afterwards.

It is one append-only file of records. A record's head has the sizes of its two parts, a checksum
of the body, and a checksum of the head itself. So a reader can tell three cases apart:

- The file ends within the last record: a crash or a full disk tore it. `append` never returned for
  it, so its keys are still in the intent log. The tail is cut off, or later records would be taken
  for its body.
- A whole record fails its checksum: that record is damaged, the records behind it are readable.
- A head fails its checksum: nothing behind it can be found.

In the last two cases keys were lost that the gateway had reported safe. `damage` says so, and the
caller opens a gap.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from exodus.control.changes import Barrier, Key, UnreadableChanges, pack, unpack
from exodus.plan.bounds import SPOOL_BYTES_MAX
from exodus.private_files import private_folder

log = logging.getLogger(__name__)
_SIZES = struct.Struct("<III")  # of the keys, of the barriers; the body's checksum
_CHECK = struct.Struct("<I")  # of the head
_HEAD_BYTES = _SIZES.size + _CHECK.size

SpooledBatch = tuple[list[Key], list[Barrier]]


class Spool:
    """The file `spool.log`. `append` refuses a batch that does not fit; the caller opens a gap."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "spool.log"
        self.keys = 0
        self.bytes = 0  # of whole records; the file may have a torn one behind them
        self.damage: list[str] = []  # each is a gap
        private_folder(folder)
        for end, batch in self._read(self.damage):
            self.bytes = end
            self.keys += len(batch[0])
        if not self.damage:
            self.cut()

    def __bool__(self) -> bool:
        return self.bytes > 0

    def append(self, keys: list[Key], barriers: list[Barrier]) -> bool:
        """Append a batch; return False if the disk or the bound does not allow it."""
        packed = pack(keys)
        said = b"\n".join(barrier.encode() for barrier in barriers)
        sizes = _SIZES.pack(len(packed), len(said), zlib.crc32(packed + said))
        record = sizes + _CHECK.pack(zlib.crc32(sizes)) + packed + said
        if self.bytes + len(record) > SPOOL_BYTES_MAX:
            return False
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.ftruncate(handle, self.bytes)  # a write that failed half-way left bytes behind
                if os.pwrite(handle, record, self.bytes) != len(record):
                    return False
            finally:
                os.close(handle)
        except OSError as exc:
            log.error("the spool %s takes no more: %s", self._path, exc)
            return False
        self.bytes += len(record)
        self.keys += len(keys)
        return True

    def batches(self, damage: list[str] | None = None) -> Iterator[SpooledBatch]:
        """Yield the readable batches in order; `damage` gets a line for each of the others."""
        damage = [] if damage is None else damage
        reached = 0
        for end, batch in self._read(damage):
            reached = end
            yield batch
        if reached < self.bytes and not damage:
            damage.append(f"the spool ends at byte {reached} of {self.bytes}")

    def _read(self, damage: list[str]) -> Iterator[tuple[int, SpooledBatch]]:
        """Yield each whole record, with the offset of its end."""
        at = 0
        try:
            with self._path.open("rb") as file:
                while len(head := file.read(_HEAD_BYTES)) == _HEAD_BYTES:
                    sizes = head[: _SIZES.size]
                    if _CHECK.unpack_from(head, _SIZES.size) != (zlib.crc32(sizes),):
                        damage.append(f"the spool is damaged from byte {at} on")
                        return
                    keys_size, said_size, check = _SIZES.unpack(sizes)
                    body = file.read(keys_size + said_size)
                    if len(body) < keys_size + said_size:
                        return
                    began, at = at, file.tell()
                    batch = _batch(body, keys_size) if zlib.crc32(body) == check else None
                    if batch is None:
                        damage.append(f"the spool's record at byte {began} is damaged")
                        batch = [], []
                    yield at, batch
        except FileNotFoundError:
            return
        except OSError as exc:
            damage.append(f"the spool cannot be read: {exc.strerror or type(exc).__name__}")

    def cut(self) -> None:
        """Drop what is behind the last whole record."""
        try:
            if not self.bytes:
                self._path.unlink(missing_ok=True)
            else:
                os.truncate(self._path, self.bytes)
        except OSError as exc:  # read again at the next start, which costs copies or one more gap
            log.error("the spool %s cannot be cut to %d bytes: %s", self._path, self.bytes, exc)

    def clear(self) -> None:
        """Drop everything: it was journalled."""
        self.bytes = self.keys = 0
        self.cut()


def _batch(body: bytes, keys_size: int) -> SpooledBatch | None:
    try:
        return unpack(body[:keys_size]), [
            Barrier.decode(said) for said in body[keys_size:].split(b"\n") if said
        ]
    except UnreadableChanges:
        return None
