"""The wall clocks of a test's processes, each of which can be stepped
(`clock/sitecustomize.py`).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent / "clock"
_OFFSET = struct.Struct("<d")


class WallClock:
    """The wall clock of one process, which is started with `environment`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.step(0.0)

    def step(self, seconds: float) -> None:
        """Set the offset from now on."""
        # In place: the process has it mapped
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.write(_OFFSET.pack(seconds))

    @property
    def environment(self) -> dict[str, str]:
        """What the process needs beside its own."""
        path = os.pathsep.join([str(_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, "PYTHONPATH": path, "EXODUS_TEST_CLOCK": str(self._path)}
