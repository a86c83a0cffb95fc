"""The supervisor: `exodus gateway --workers N` starts workers and hands the port to a successor.

The supervisor relays nothing and reads nothing. If it is killed, its workers continue. Each worker
is a whole gateway process with an id and a state folder of its own (`ID-0`, `ID-1` …). The
supervisor restarts a dead one, and the restarted worker journals the intents in its folder. A
successor takes the port over while the old workers drain. It finds their folders locked, and uses
the next numbers.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exodus.errors import OperatorError
from exodus.gateway.listeners import Offer, Takeover, listen, listen_all, take_over, unlink
from exodus.plan.bounds import (
    SUPERVISOR_KILL_AFTER_S,
    SUPERVISOR_POLL_S,
    SUPERVISOR_RESTART_S,
    SUPERVISOR_SLOTS_MAX,
    SUPERVISOR_YOUNG_S,
)
from exodus.private_files import private_folder

log = logging.getLogger(__name__)


def lock_state(folder: Path) -> int | None:
    """Lock a state folder for this process; None if another process has the lock.

    The lock ends with the process, or with `os.close`.
    """
    private_folder(folder)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def free_slots(state_dir: Path, id_: str, count: int) -> list[int]:
    """Return numbers of workers whose folders are free.

    Folders with intents or a spool come first: their keys are to be journalled.
    """
    free: list[tuple[bool, int]] = []
    for number in range(SUPERVISOR_SLOTS_MAX):
        folder = state_dir / f"{id_}-{number}"
        if not folder.exists():
            if len(free) >= count:
                break
            free.append((False, number))
            continue
        handle = lock_state(folder)
        if handle is not None:
            os.close(handle)
            free.append(
                (any(folder.glob("intent-*.log")) or (folder / "spool.log").exists(), number)
            )
    free.sort(key=lambda slot: (not slot[0], slot[1]))
    for left, number in free[count:]:
        if left:
            log.error(
                "%s-%d left intents behind: start more workers once, or they stay an open gap",
                id_,
                number,
            )
    return sorted(number for _, number in free[:count])


@dataclass
class _Worker:
    number: int
    sockets: list[socket.socket]
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    again_s: float = 0.0
    starts: int = field(default=0)


class Supervisor:
    """The workers of one port. Runs until SIGTERM, or until a successor has taken the port."""

    def __init__(
        self,
        *,
        id_: str,
        workers: int,
        state_dir: Path,
        host: str,
        port: int,
        listeners: int = 1,
        drain_s: float,
        command: Callable[[str, Path, list[int]], Sequence[str]],
    ) -> None:
        self._id = id_
        self._state_dir = state_dir
        self._drain_s = drain_s
        self._host = host
        self._command = command
        self._stop = False
        private_folder(state_dir)
        path = state_dir / f"{id_}.takeover"
        self._takeover: Takeover | None = take_over(path)
        try:
            self._sockets = (
                self._takeover.sockets
                if self._takeover is not None
                else listen_all(host, port, listeners, workers)
            )
            there = {sock.getsockname()[1] for sock in self._sockets if listeners > 1}
            for number in range(listeners if there else 0):  # the plan may name more by now
                if port + number not in there:
                    self._sockets += listen(host, port + number, workers)
        except OSError as exc:
            raise OperatorError(
                f"cannot listen on {host}:{port}",
                why=str(exc),
                next_step="stop what uses the port, or choose another with --listen",
            ) from exc
        # A predecessor may have had more sockets than there are workers. Each needs a worker.
        numbers = free_slots(state_dir, id_, workers)
        self._workers = [
            _Worker(number, self._sockets[index::workers] or self._sockets[:1])
            for index, number in enumerate(numbers)
        ]
        self._offer = Offer(path, self._sockets)

    @property
    def address(self) -> object:
        """Return the address at which the workers listen."""
        return self._sockets[0].getsockname()

    def run(self) -> None:
        """Keep the workers running."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)
        log.info("%d workers on %s", len(self._workers), self.address)
        while not self._stop and not self._offer.taken.is_set():
            for worker in self._workers:
                self._keep(worker)
            if self._takeover is not None and all(
                worker.process is not None for worker in self._workers
            ):
                self._takeover.confirm()
                self._takeover = None
            time.sleep(SUPERVISOR_POLL_S)  # this process relays nothing: no client waits for it
        if self._offer.taken.is_set():
            log.info("a successor accepts on the port: draining")
        self._offer.close()
        self._end()

    def _keep(self, worker: _Worker) -> None:
        now = time.monotonic()
        if worker.process is not None:
            status = worker.process.poll()
            if status is None:
                return
            log.error(
                "worker %s-%d ended with status %s and is started again",
                self._id,
                worker.number,
                status,
            )
            worker.process = None
            worker.again_s = now + (
                SUPERVISOR_RESTART_S if now - worker.started_s < SUPERVISOR_YOUNG_S else 0.0
            )
        if now < worker.again_s:
            return
        fds = [sock.fileno() for sock in worker.sockets]
        folder = self._state_dir / f"{self._id}-{worker.number}"
        worker.process = subprocess.Popen(  # noqa: S603 - a command of our own
            self._command(f"{self._id}-{worker.number}", folder, fds),
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
        )
        worker.started_s = now
        worker.starts += 1

    def _on_stop(self, *_: object) -> None:
        self._stop = True

    def _on_reload(self, *_: object) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.send_signal(signal.SIGHUP)

    def _end(self) -> None:
        alive = [
            worker.process
            for worker in self._workers
            if worker.process is not None and worker.process.poll() is None
        ]
        for process in alive:
            process.terminate()
        deadline = time.monotonic() + self._drain_s + SUPERVISOR_KILL_AFTER_S
        for process in alive:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error(
                    "worker process %d did not end in time and is killed; "
                    "its intents are journalled at the next start",
                    process.pid,
                )
                process.kill()
                process.wait()
        for sock in self._sockets:
            sock.close()
        if not self._offer.taken.is_set():
            unlink(self._host)


def worker_command(arguments: Sequence[str]) -> list[str]:
    """Return the command that starts a worker with these arguments."""
    return [sys.executable, "-m", "exodus.cli.app", "gateway", *arguments]
