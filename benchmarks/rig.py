"""Servers and processes of a benchmark; everything that was started ends with it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import psutil
import redis

from exodus.stack.home import Home, free_port
from exodus.stack.processes import Started, end, start, wait_ready
from exodus.stack.servers import Server, ServerKind, start_server, wait_server


class Rig:
    """A folder with processes in it. Use as a context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="exodus-bench-")
        self.folder = Path(self._folder.name)
        self._started: list[Started] = []

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end([started.running() for started in self._started if started.process.poll() is None])
        for started in self._started:
            started.process.wait()
        self._folder.cleanup()

    def server(self, kind: ServerKind, name: str, **config: str) -> Server:
        """A server with a user of ours."""
        home = Home(self.folder / name)
        home.make()
        server = start_server(
            kind,
            name=name,
            port=int(config.pop("port", 0)) or free_port(),
            folder=home.data,
            log=home.log(name),
            password_file=home.secret("exodus"),
            private=False,
            **config,
        )
        self._started.append(server.started)
        wait_server(server)
        return server

    def process(
        self, name: str, command: Sequence[str], ready: Callable[[], bool]
    ) -> psutil.Process:
        """Any other process, once it is ready."""
        started = start(name, command, log=self.folder / f"{name}.log", cwd=Path.cwd())
        self._started.append(started)
        wait_ready(started, ready, within_s=30)
        return psutil.Process(started.process.pid)


def client(server: Server) -> redis.Redis:
    """As an application reaches the server."""
    return redis.Redis(port=server.port)


def cpu_s(process: psutil.Process) -> float:
    """User and system seconds of a process and its children so far."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        times = each.cpu_times()
        total += times.user + times.system
    return total


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
