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


def checked(model: str, url: str) -> subprocess.CompletedProcess[str]:
    """Let the shop hold what it wrote against the server that has its keys now."""
    arguments = ["check", "--model", model, "--url", url, "--json"]
    return subprocess.run(
        [sys.executable, "-m", "examples.shop", *arguments],
        cwd=project_root(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def shopping(folder: Path, place: Listen | Path, *, keys: int, writes: int) -> Iterator[Path]:
    """Run a shop, with so many keys and writes a second, through a gateway, or at the address that
    a file has; it follows the file.

    Yields the folder once the keys are there. A file `stop` in it ends the writes; the shop then
    reports in `app.json`.
    """
    shop = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "examples.shop",
            "--url",
            place.read_text() if isinstance(place, Path) else f"redis://{place.host}:{place.port}",
            *(("--url-file", str(place)) if isinstance(place, Path) else ()),
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
