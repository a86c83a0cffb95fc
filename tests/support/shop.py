"""The shop of examples/shop as a process: preloaded, and writing until the end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exodus.plan.settings import Listen
from exodus.stack.prefect import project_root
from tests.support.wait import wait_until

SECONDS_MAX = 540  # after which it ends, whatever became of the test
_PRELOADED_S = 60


@contextmanager
def shopping(folder: Path, gateway: Listen, *, keys: int, writes: int) -> Iterator[Path]:
    """Run a shop through a gateway, with so many keys and writes a second.

    Yields the folder once the keys are there. A file `stop` in it ends the writes; the shop then
    reports in `app.json`.
    """
    shop = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "examples.shop",
            "--url",
            f"redis://{gateway.host}:{gateway.port}",
            "--keys",
            str(keys),
            "--writes",
            str(writes),
            "--stop-file",
            str(folder / "stop"),
            "--report",
            str(folder / "app.json"),
            "--ready-file",
            str(folder / "ready"),
            "--seconds-max",
            str(SECONDS_MAX),
        ],
        cwd=project_root(),
    )
    try:
        wait_until(
            (folder / "ready").exists,
            within_s=_PRELOADED_S,
            otherwise="the application never preloaded its keys",
        )
        yield folder
    finally:
        shop.terminate()
        shop.wait(timeout=30)
