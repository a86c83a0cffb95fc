"""Run the failed tests once more, one after the other, if they are few.

Tests kill, stall and time real processes on machines that others use too. A test that fails twice
is a failure. A test that fails beside others and passes alone is reported here by name: it needs
time that a busy machine does not give, or it shows a race. Look into it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FAILED_MAX = 10
_CACHE = Path(".pytest_cache/v/cache/lastfailed")


def main() -> int:
    """Return 0 where each test of a few that failed passes now."""
    try:
        failed = sorted(json.loads(_CACHE.read_text()))
    except (OSError, ValueError):
        return 1  # nothing was run
    if not 0 < len(failed) <= FAILED_MAX:
        return 1
    said = f"{len(failed)} test(s) failed beside others and run(s) once more, alone:"
    print(said, *failed, sep="\n  ", flush=True)
    command = [sys.executable, "-m", "pytest", "--last-failed", "--last-failed-no-failures", "none"]
    status = subprocess.run(command, check=False).returncode
    if status == 0:
        print("PASSED ALONE, LOOK INTO THEM:", *failed, sep="\n  ", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
