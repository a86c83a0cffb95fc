"""Steps the wall clock of one process: Python imports this at its start where this folder is on
PYTHONPATH.

`EXODUS_TEST_CLOCK` names a file with one number, the offset of `time.time` and `time.time_ns` in
seconds. It may be written at any time. The monotonic clock continues, as when a host's clock is
set.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

_OFFSET = struct.Struct("<d")


def _step(path: str) -> None:
    with Path(path).open("rb") as file:
        offset = mmap.mmap(file.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)
    now, now_ns = time.time, time.time_ns

    def stepped() -> float:
        return now() + _OFFSET.unpack_from(offset)[0]

    def stepped_ns() -> int:
        return now_ns() + int(_OFFSET.unpack_from(offset)[0] * 1_000_000_000)

    time.time, time.time_ns = stepped, stepped_ns


if "EXODUS_TEST_CLOCK" in os.environ:
    _step(os.environ["EXODUS_TEST_CLOCK"])
