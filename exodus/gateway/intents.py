"""The intent log: what forwarded writes may change, kept where a crash of this process does not reach.

Records go into memory-mapped segment files: an append is a copy into the page cache, without a system call, and survives kill -9
(not the loss of the host: then the gateway's absence is an open gap). A segment is dropped when everything logged in it was
journalled or logged again. After a crash every record that is still there is journalled: too many keys cost a few copies,
too few would cost a write.

A segment's room is reserved when it is made, since a store to a mapped page of a full disk would kill the process.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

from exodus.config import INTENT_SEGMENT_BYTES, INTENT_SEGMENTS_MAX
from exodus.control.changes import Barrier, Key, pack, unpack

_HEAD_BYTES = 5  # length (4), kind (1)
_KEYS, _BARRIER = 1, 2


class IntentLog:
    """Segments `intent-N.log` in one folder, which belongs to one gateway id."""

    def __init__(self, folder: Path, missed: Callable[[list[Key] | None], object]) -> None:
        """`missed` is told of what could not be kept, keys or (None) any of them: an open gap if the process crashes before it is journalled."""
        self._folder = folder
        self._missed = missed
        self._map: mmap.mmap | None = None
        self._at = 0
        self._room = 0  # bytes of the segment that is written now
        self._number = 0
        folder.mkdir(parents=True, exist_ok=True)

    def recover(self) -> tuple[list[Key], list[Barrier]]:
        """What an earlier process of this id logged; its segments stay until `retire_before`."""
        keys: dict[Key, None] = {}
        barriers: dict[Barrier, None] = {}
        for path in self._segments():
            raw = path.read_bytes()
            at = 0
            while at + _HEAD_BYTES <= len(raw):
                size = int.from_bytes(raw[at : at + 4], "little")
                kind = raw[at + 4]
                if not kind:
                    break
                body = raw[at + _HEAD_BYTES : at + _HEAD_BYTES + size]
                at += _HEAD_BYTES + size
                if kind == _KEYS:
                    keys.update(dict.fromkeys(unpack(body)))
                else:
                    barriers[Barrier.decode(body)] = None
            self._number = max(self._number, int(path.stem.partition("-")[2]))
        return list(keys), list(barriers)

    def append(self, keys: list[Key], barrier: Barrier | None) -> None:
        """Note keys and a barrier before their request is forwarded. Never raises and never waits."""
        kept = not keys or self._write(_KEYS, pack(keys))
        if barrier is not None:
            kept = self._write(_BARRIER, barrier.encode()) and kept
        if not kept:
            self._missed(keys if barrier is None else None)

    def _write(self, kind: int, body: bytes) -> bool:
        size = _HEAD_BYTES + len(body)
        if self._map is None or self._at + size > self._room:
            self._roll(size)
        if self._map is None:
            return False
        at = self._at
        self._map[at : at + size] = len(body).to_bytes(4, "little") + b"\0" + body
        # The kind last: a reader takes a record only where it is set.
        self._map[at + 4] = kind
        self._at += size
        return True

    def _roll(self, size: int) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
        if len(self._segments()) >= INTENT_SEGMENTS_MAX:
            return
        self._number += 1
        path = self._folder / f"intent-{self._number}.log"
        room = max(INTENT_SEGMENT_BYTES, size)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(handle, 0, room)
                self._map = mmap.mmap(handle, room)
                self._room = room
            finally:
                os.close(handle)
        except OSError:
            self._map = None  # a full disk: `missed` is told, and the next append tries again
            path.unlink(missing_ok=True)
        self._at = 0

    @property
    def number(self) -> int:
        """The segment that is written now."""
        return self._number

    @property
    def segments(self) -> int:
        """How many segments there are."""
        return len(self._segments())

    def retire_before(self, number: int) -> None:
        """Drop the segments below `number`: all they hold was journalled or logged again since."""
        for path in self._segments():
            if int(path.stem.partition("-")[2]) < number:
                path.unlink(missing_ok=True)

    def roll(self) -> int:
        """Begin a new segment; returns its number, below which others may be retired later."""
        self._roll(0)
        return self._number

    @property
    def used_bytes(self) -> int:
        """Bytes in the segment that is written now."""
        return self._at

    def close(self) -> None:
        """Unmap; the files stay for whoever comes next."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def _segments(self) -> list[Path]:
        return sorted(self._folder.glob("intent-*.log"), key=lambda path: int(path.stem.partition("-")[2]))
