"""Processes that end with whoever started them.

Most processes of a stack outlive the command that started them. A process that a check starts for
itself must not: the kernel ends it with the thread that started it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

# prctl PR_SET_PDEATHSIG is 1, and stays over execv.
_TIED = (
    f"import ctypes, os, sys; ctypes.CDLL(None).prctl(1, {int(signal.SIGTERM)}); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def tied(command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` (a path and its arguments) until this thread ends."""
    return [sys.executable, "-c", _TIED, *command]
