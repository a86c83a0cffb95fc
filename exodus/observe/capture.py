"""Reading a capture from where it is: a file, a folder that tcpdump rotates, or standard input.

The only module of packets that does I/O. A folder is read in the order of its files' first
packets, and, with a time limit, for as long as files grow or come.
"""

from __future__ import annotations

import gzip
import os
import select
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from exodus.errors import OperatorError
from exodus.observe.capture_files import CaptureReader, Packet
from exodus.observe.packets import PacketWatcher
from exodus.plan.bounds import (
    CAPTURE_FILES_MAX,
    CAPTURE_HEAD_BYTES,
    CAPTURE_POLL_S,
    CAPTURE_READ_BYTES,
    COPY_LATE_S,
)
from exodus.private_files import close_to_others, open_to_others

STANDARD_INPUT = "-"


@dataclass
class Capture:
    """What is to be read, and for how long."""

    origin: str
    watcher: PacketWatcher
    seconds: float | None = None  # of the capture's time; of the clock, where it still grows
    on_progress: Callable[[], None] = lambda: None  # called after each piece
    remarks: list[str] = field(default_factory=list)
    only_new: bool = False  # of a folder: nothing that is in it at the beginning
    begun: Callable[[], None] = lambda: None  # called when what comes from now on is read
    enough: Callable[[], bool] = lambda: True  # without, a folder is read for `late_s` longer
    late_s: float = COPY_LATE_S
    files: int = 0
    _over: bool = False  # the time is

    def run(self) -> None:
        """Read it to its end, or for `seconds`.

        Raises:
            OperatorError: it is not there, is no capture, or has no packet of the port.
        """
        try:
            if self.origin == STANDARD_INPUT:
                self._standard_input()
            elif Path(self.origin).is_dir():
                self._folder(Path(self.origin))
            else:
                self._file(Path(self.origin))
        except (OSError, EOFError, zlib.error) as exc:
            raise OperatorError(
                f"--from: {self.origin} cannot be read",
                why=(exc.strerror if isinstance(exc, OSError) else None) or str(exc),
                next_step="name a capture file, a folder of them, or - for standard input",
            ) from exc
        self.watcher.finish()
        self._check()

    # Sources.

    def _standard_input(self) -> None:
        source = sys.stdin.buffer
        if source.isatty():
            raise OperatorError(
                "--from -: standard input is a terminal",
                why="a capture is expected there, as tcpdump writes it",
                next_step="ssh HOST tcpdump -U -s 0 -w - port 6379 | exodus capture --from -",
            )
        reader = CaptureReader()
        for data in _arriving(source, self.seconds):
            if not self._take(reader, data):
                break
        self._ended(reader, "standard input")

    def _file(self, path: Path) -> None:
        reader = CaptureReader()
        self._grown(path, reader, 0)
        self._ended(reader, str(path))
        self._privacy(path)

    def _folder(self, folder: Path) -> None:
        """Read each file to its end; with a time limit, look for more until it is over."""
        read = {path: _skipped(path) for path in _in_order(folder)} if self.only_new else {}
        self.begun()
        ends = time.monotonic() + (self.seconds or 0)
        going = True
        while going:
            for path in _in_order(folder):
                reader, at = read.get(path) or (CaptureReader(), 0)
                at, going = self._grown(path, reader, at)
                read[path] = reader, at
                if not going:
                    break
            late_s = time.monotonic() - ends
            if self.seconds is None or late_s >= (0 if self.enough() else self.late_s):
                break
            time.sleep(CAPTURE_POLL_S)  # no client waits for this process
        for path, (reader, _) in read.items():
            self._ended(reader, str(path))
        if open_to_others(folder):
            exposed = [path for path in read if open_to_others(path)]
            left = sum(not close_to_others(path) for path in exposed)
            if left:
                self.remarks.append(
                    f"other users can read {left} files of {folder}, which hold keys and "
                    f"values: chmod 700 {folder}"
                )
            if len(exposed) > left:
                self.remarks.append(
                    f"other users could read {len(exposed) - left} files of {folder}, which hold "
                    "keys and values: now only their owner can"
                )
        if not read:
            raise OperatorError(
                f"--from: the folder {folder} has no capture file",
                why="files of tcpdump -w are expected there",
                next_step="tcpdump -i any -s 0 -G 60 -w FOLDER/%s.pcap port 6379",
            )

    def _grown(self, path: Path, reader: CaptureReader, at: int) -> tuple[int, bool]:
        """Read what a file has beyond a place; return the new place, and whether to go on."""
        with _opened(path) as file:
            file.seek(at)
            while data := file.read(CAPTURE_READ_BYTES):
                at += len(data)
                if not self._take(reader, data):
                    return at, False
        return at, True

    # What was read.

    def _take(self, reader: CaptureReader, data: bytes) -> bool:
        """Hand packets on; return whether more are wanted."""
        packets: list[Packet] = reader.feed(data)
        if packets and self.seconds is not None and not self.only_new:
            last = (self.watcher.first_at or packets[0].at) + self.seconds
            if packets[-1].at > last:
                self.watcher.feed([packet for packet in packets if packet.at <= last])
                self._over = True
                return False
        self.watcher.feed(packets)
        self.on_progress()
        return reader.broken is None

    def _ended(self, reader: CaptureReader, name: str) -> None:
        self.files += 1
        if reader.broken is not None:
            self.remarks.append(f"{name} cannot be read to its end: {reader.broken}")
        elif reader.partial_bytes and not self._over:
            self.remarks.append(f"{name} ends within a packet")

    def _privacy(self, path: Path) -> None:
        if not open_to_others(path):
            return
        what = f"{path}, which holds keys and values"
        self.remarks.append(
            f"other users could read {what}: now only its owner can"
            if close_to_others(path)
            else f"other users can read {what}: chmod 600 {path}"
        )

    def _check(self) -> None:
        coverage = self.watcher.coverage
        if not coverage.packets:
            raise OperatorError(
                f"--from: no packet in {self.origin}",
                why="; ".join(self.remarks) or "it is empty",
                next_step="tcpdump -i any -s 0 -w FILE port 6379, while applications work",
            )
        if not coverage.connections:
            ports = ", ".join(str(port) for port, _ in self.watcher.ports_seen.most_common(5))
            raise OperatorError(
                f"--port: none of {coverage.packets:,} packets has payload for the watched port",
                why=f"the other TCP connections are of ports {ports}"
                if ports
                else "the capture has no TCP connection",
                next_step="name the server's port: --port PORT",
            )


def is_capture(path: Path) -> bool:
    """Return whether a file begins as a capture does.

    Raises:
        OSError: it cannot be read.
    """
    reader = CaptureReader()
    try:
        with _opened(path) as file:
            reader.feed(file.read(CAPTURE_HEAD_BYTES))
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False
    return reader.begun and reader.broken is None


def _skipped(path: Path) -> tuple[CaptureReader, int]:
    """Read a file to its end for its header only."""
    reader, at = CaptureReader(), 0
    with _opened(path) as file:
        while data := file.read(CAPTURE_READ_BYTES):
            at += len(data)
            reader.feed(data)
    return reader, at


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _in_order(folder: Path) -> list[Path]:
    """Return the folder's files by the time of their first packet; what is no capture comes last.

    Raises:
        OperatorError: there are more than `CAPTURE_FILES_MAX`.
    """
    found = [path for path in folder.iterdir() if path.is_file()]
    if len(found) > CAPTURE_FILES_MAX:
        raise OperatorError(
            f"--from: {folder} has {len(found):,} files",
            why=f"at most {CAPTURE_FILES_MAX:,} are read",
            next_step="rotate less often (tcpdump -G), or move older files away",
        )
    return sorted(found, key=lambda path: (_first_at(path), path.name))


def _first_at(path: Path) -> float:
    reader = CaptureReader()
    with _opened(path) as file:
        packets = reader.feed(file.read(CAPTURE_HEAD_BYTES))
    return packets[0].at if packets else float("inf")


def _arriving(source: BinaryIO, seconds: float | None) -> Iterator[bytes]:
    """What comes from a pipe, until it ends or the time is over."""
    ends = None if seconds is None else time.monotonic() + seconds
    handle = source.fileno()
    while True:
        left = None if ends is None else max(0.0, ends - time.monotonic())
        readable, _, _ = select.select([handle], [], [], left)
        data = os.read(handle, CAPTURE_READ_BYTES) if readable else b""
        if not data:
            return
        yield data
