"""The intent log: what forwarded writes may change, where a crash of the process does not reach it.

Records go into memory-mapped segment files. An append is a copy into the page cache, without a
system call. It survives kill -9, but not the loss of the host: `exodus/gateway/identity.py` detects
that, and it is an open gap. A segment is dropped when everything logged in it was journalled or
logged again. After a crash every record that is still there is journalled. Too many keys cost a few
copies; too few would cost a write.

A record is: length (4), checksum (4), kind (1), body. The kind is written last. So a record that a
crash tore has kind 0 and ends the segment; its request was never forwarded. Everything else that
does not fit this description is damage, and damage is a gap: a wrong checksum, bytes behind the
end, a file that cannot be read. A missing file is a gap too. The manifest lists the segments that
must exist, and how many bytes of the spool some of them were dropped for. It is written after a
segment was made and before one is dropped.

A segment's room is reserved when it is made, since a store to a mapped page of a full disk would
kill the process. Its last `INTENT_RESERVE_BYTES` are for gaps only: a gap that is not in the
control store yet must survive a crash too, above all one that arose because the disk was full.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import orjson

from exodus.control.changes import Barrier, Key, UnreadableChanges, pack, unpack
from exodus.plan.bounds import INTENT_RESERVE_BYTES, INTENT_SEGMENT_BYTES, INTENT_SEGMENTS_MAX
from exodus.private_files import FILE_MODE, private_folder

log = logging.getLogger(__name__)
_HEAD_BYTES = 9  # of a record
_KEYS, _BARRIER, _GAP = 1, 2, 3
MANIFEST = "intents.json"


@dataclass
class LoggedIntents:
    """The contents of segments."""

    keys: dict[Key, None] = field(default_factory=dict)
    barriers: dict[Barrier, None] = field(default_factory=dict)
    gaps: dict[str, None] = field(default_factory=dict)  # not in the control store yet
    damage: list[str] = field(default_factory=list)  # each is a gap
    spool_bytes: int = 0  # must be in the spool: the intents for them were dropped

    def __bool__(self) -> bool:
        return bool(self.keys or self.barriers or self.gaps or self.damage)


class IntentLog:
    """Segments `intent-N.log` in the folder of one gateway id."""

    def __init__(self, folder: Path, missed: Callable[[list[Key] | None], object]) -> None:
        """`missed` is called with keys that could not be logged, or None: any keys.

        They are a gap if the process crashes before they are journalled.
        """
        self._folder = folder
        self._missed = missed
        self._map: mmap.mmap | None = None
        self._at = 0
        self._room = 0  # bytes of the segment in use
        self._gaps: set[str] = set()  # in it
        private_folder(folder)
        # Known before the first append, which must not begin with a number that is taken.
        self._number = max(map(_number, self._segments()), default=0)
        self._spool_bytes = 0
        self._listed: list[int] = []
        self._unlisted = ""  # why the manifest cannot be relied on
        self._read_manifest()

    def recover(self) -> LoggedIntents:
        """Return the intents of all segments, an earlier process's too. They stay on disk."""
        found = LoggedIntents()
        if self._unlisted:
            found.damage.append(self._unlisted)
        found.spool_bytes = self._spool_bytes
        paths = self._segments()
        missing = set(self._listed) - set(map(_number, paths))
        found.damage += [f"intent-{number}.log is missing" for number in sorted(missing)]
        for path in paths:
            try:
                _read(path.read_bytes(), path.name, found)
            except OSError as exc:
                found.damage.append(
                    f"{path.name} cannot be read: {exc.strerror or type(exc).__name__}"
                )
        return found

    def append(self, keys: list[Key], barrier: Barrier | None) -> None:
        """Log keys and a barrier before their request is forwarded. Never raises, never waits."""
        try:
            kept = not keys or self._write(_KEYS, pack(keys), INTENT_RESERVE_BYTES)
            if barrier is not None:
                kept = self._write(_BARRIER, barrier.encode(), INTENT_RESERVE_BYTES) and kept
        except Exception:
            log.exception("an intent could not be logged: it is a gap")
            kept = False
        if not kept:
            self._missed(keys if barrier is None else None)

    def append_gap(self, why: str) -> bool:
        """Log a gap, once a segment; False if there is no room even for that."""
        if why in self._gaps:
            return True
        kept = self._write(_GAP, why.encode()[:INTENT_RESERVE_BYTES], 0)
        if kept:
            self._gaps.add(why)
        return kept

    def _write(self, kind: int, body: bytes, reserve: int) -> bool:
        length = len(body)
        size = _HEAD_BYTES + length
        if self._map is None or self._at + size > self._room - reserve:
            self._roll(size)
            if self._map is None or self._at + size > self._room - reserve:
                return False
        at = self._at
        check = crc32(body, length << 2 | kind)
        self._map[at : at + size] = (check << 32 | length).to_bytes(8, "little") + b"\0" + body
        # The kind last: a reader takes a record only where it is set.
        self._map[at + 8] = kind
        self._at += size
        return True

    def _roll(self, size: int) -> None:
        """Begin a new segment with room for a record. If that fails, the present one stays."""
        if len(self._segments()) >= INTENT_SEGMENTS_MAX:
            return
        number = self._number + 1
        # A segment gets its name when it has its room, so a short one is damaged.
        scratch = self._folder / "intent.new"
        room = max(INTENT_SEGMENT_BYTES, size + INTENT_RESERVE_BYTES)
        try:
            handle = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.posix_fallocate(handle, 0, room)
                fresh = mmap.mmap(handle, room)
                scratch.replace(self._folder / f"intent-{number}.log")
            finally:
                os.close(handle)
        except OSError as exc:  # `missed` is told, and the next append tries again
            log.error("no room for the intent log: %s", exc)
            scratch.unlink(missing_ok=True)
            return
        if self._map is not None:
            self._map.close()
        self._map = fresh
        self._room = room
        self._number = number
        self._at = 0
        self._gaps.clear()
        self._write_manifest([*map(_number, self._segments())], self._spool_bytes)

    @property
    def number(self) -> int:
        """Return the number of the segment in use."""
        return self._number

    @property
    def segments(self) -> int:
        """Return the number of segments."""
        return len(self._segments())

    def retire_before(self, number: int, *, above: int = 0, spool_bytes: int = 0) -> None:
        """Drop the segments below `number` and above `above`.

        All that they hold was journalled, logged again or spooled since.

        Args:
            spool_bytes: the bytes that the spool must have from now on, in place of the segments.
        """
        paths = self._segments()
        dropped = [path for path in paths if above < _number(path) < number]
        kept = [_number(path) for path in paths if path not in dropped]
        if not self._write_manifest(kept, spool_bytes):
            return  # they stay: a missing segment must not look like one that was dropped
        for path in dropped:
            try:
                path.unlink(missing_ok=True)
            except OSError as exc:  # it is journalled again at the next start: a few more copies
                log.error("%s cannot be removed: %s", path, exc)

    def _write_manifest(self, listed: list[int], spool_bytes: int) -> bool:
        said = orjson.dumps({"segments": listed, "spool_bytes": spool_bytes})
        scratch = self._folder / "intents.new"
        try:
            scratch.touch(mode=FILE_MODE)
            scratch.write_bytes(b"%08x\n" % crc32(said) + said)
            scratch.replace(self._folder / MANIFEST)
        except OSError as exc:
            log.error("the list of segments cannot be written: %s", exc)
            return False
        self._listed, self._spool_bytes, self._unlisted = listed, spool_bytes, ""
        return True

    def _read_manifest(self) -> None:
        try:
            check, _, said = (self._folder / MANIFEST).read_bytes().partition(b"\n")
        except FileNotFoundError:
            if self._segments():
                self._unlisted = f"{MANIFEST} is missing"
            else:
                self._write_manifest([], 0)
            return
        except OSError as exc:
            self._unlisted = f"{MANIFEST} cannot be read: {exc.strerror or type(exc).__name__}"
            return
        if check != b"%08x" % crc32(said):
            self._unlisted = f"{MANIFEST} is damaged"
            return
        found = orjson.loads(said)
        self._listed, self._spool_bytes = found["segments"], found["spool_bytes"]

    def roll(self) -> int:
        """Begin a new segment and return its number. Those below it may be retired later."""
        self._roll(0)
        return self._number

    @property
    def used_bytes(self) -> int:
        """Return the bytes in the segment in use."""
        return self._at

    def close(self) -> None:
        """Unmap the segment. The files stay for the next process."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def _segments(self) -> list[Path]:
        return sorted(
            (path for path in self._folder.glob("intent-*.log") if path.stem[7:].isdecimal()),
            key=_number,
        )


def _number(path: Path) -> int:
    return int(path.stem[7:])


def _read(raw: bytes, name: str, found: LoggedIntents) -> None:
    at = 0
    if len(raw) < INTENT_SEGMENT_BYTES:
        found.damage.append(f"{name} was cut to {len(raw)} bytes")
    while at + _HEAD_BYTES <= len(raw) and (kind := raw[at + 8]):
        length = int.from_bytes(raw[at : at + 4], "little")
        body = raw[at + _HEAD_BYTES : at + _HEAD_BYTES + length]
        if len(body) < length or crc32(body, (length << 2 | kind) % 2**32) != int.from_bytes(
            raw[at + 4 : at + 8], "little"
        ):
            found.damage.append(f"{name} is damaged from byte {at} on")
            return
        at += _HEAD_BYTES + length
        try:
            if kind == _KEYS:
                found.keys.update(dict.fromkeys(unpack(body)))
            elif kind == _BARRIER:
                found.barriers[Barrier.decode(body)] = None
            elif kind == _GAP:
                found.gaps[body.decode(errors="replace")] = None
            else:
                found.damage.append(f"{name} has a record of kind {kind}")
        except UnreadableChanges as exc:
            found.damage.append(f"{name}: {exc}")
    # A torn record has no kind, and nothing is behind it.
    torn = int.from_bytes(raw[at : at + 4], "little")
    if raw[at + _HEAD_BYTES + torn :].strip(b"\0"):
        found.damage.append(f"{name} has bytes behind its end at byte {at}")
