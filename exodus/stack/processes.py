"""Start and end processes, each in its own session, with a log and a proof that it is ready."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from exodus.errors import StackError
from exodus.plan.bounds import LOG_LINES_SHOWN, PROCESSES_TERM_S
from exodus.private_files import FILE_MODE, OTHERS
from exodus.stack.home import Running


@dataclass
class Started:
    """A started process that is not yet proved to be ready."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    port: int | None = None

    def running(self) -> Running:
        """Return its record."""
        return Running(
            name=self.name,
            pid=self.process.pid,
            created=psutil.Process(self.process.pid).create_time(),
            port=self.port,
        )


def start(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    port: int | None = None,
) -> Started:
    """Start a process that outlives this one, with its output in `log`.

    Nobody else may read its log and the files that it makes.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch(FILE_MODE)
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - commands of Exodus
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
            umask=OTHERS,
        )
    return Started(name, process, log, port)


def last_lines(log: Path, count: int = LOG_LINES_SHOWN) -> str:
    """Return the last lines of a log."""
    if not log.exists():
        return "(no log)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:]) or "(the log is empty)"


def wait_ready(started: Started, ready: Callable[[], bool], *, within_s: float) -> None:
    """Wait until `ready` returns true.

    Raises:
        StackError: the process ended, or the time passed. The error has the last lines of its log.
    """
    deadline = time.monotonic() + within_s
    while True:
        ended = started.process.poll()
        if ended is not None:
            raise StackError(
                f"{started.name} ended with status {ended} while it was starting",
                why=f"the last lines of {started.log}:\n{last_lines(started.log)}",
                next_step="correct the cause in the log, then start again",
            )
        if ready():
            return
        if time.monotonic() > deadline:
            raise StackError(
                f"{started.name} was not ready within {within_s:.0f} s",
                why=f"the last lines of {started.log}:\n{last_lines(started.log)}",
                next_step="read the log; on a slow machine start again",
            )
        time.sleep(0.05)


def end(entries: Sequence[Running]) -> list[str]:
    """End processes in reverse order: TERM to the session, then KILL.

    It returns the names of ended ones.
    """
    ended: list[str] = []
    for entry in reversed(entries):
        process = entry.process()
        if process is None:
            continue
        family = [process, *process.children(recursive=True)]
        _signal(entry.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=PROCESSES_TERM_S)
        for left in alive:
            try:
                left.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(alive, timeout=PROCESSES_TERM_S)
        ended.append(entry.name)
    return ended


def _signal(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return  # it has ended meanwhile
