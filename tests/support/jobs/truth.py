"""Which jobs were made and done, on disk."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

PORT = int(sys.argv[1])
FOLDER = Path(sys.argv[2])
PER_S = 40
DRAIN_S = 40.0


def note(name: str, number: int) -> None:
    """Append a job's number to a file; one write, so that processes may share it."""
    with (FOLDER / name).open("a") as file:
        file.write(f"{number}\n")


def stopped() -> bool:
    """Return whether no more jobs are to be made."""
    return (FOLDER / "stop").exists()


def drained() -> bool:
    """Return whether every job that was made is done."""
    made, done = (
        set((FOLDER / name).read_text().split()) if (FOLDER / name).exists() else set()
        for name in ("made", "done")
    )
    return made <= done


def make(enqueue: Callable[[int], object]) -> None:
    """Make jobs at a steady rate until told to stop, then let the workers finish."""
    number = 0
    while not stopped():
        number += 1
        enqueue(number)
        note("made", number)
        time.sleep(1 / PER_S)
    wait_drained()
    (FOLDER / "ended").touch()


def wait_drained() -> None:
    """Give workers time to finish, and a moment more to do something twice."""
    deadline = time.monotonic() + DRAIN_S
    while not drained() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)  # long enough for a job that was handed out twice
