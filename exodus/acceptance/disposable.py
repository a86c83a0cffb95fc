"""A server that is thrown away: of the target's engine, with its settings, on this machine."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from exodus.errors import StackError
from exodus.plan.address import Address
from exodus.plan.bounds import DISPOSABLE_LOOK_S, DISPOSABLE_START_S
from exodus.private_files import write_private
from exodus.stack.home import free_port
from exodus.stack.servers import ServerKind, answers, binary, quoted
from exodus.stack.tied import tied
from exodus.topology.node import NodeFacts

# The nearest of the packages to an engine and version
_KINDS = {
    "redis": [((7,), ServerKind.REDIS_82), ((0,), ServerKind.REDIS_62)],
    "valkey": [((9,), ServerKind.VALKEY_91), ((0,), ServerKind.VALKEY_81)],
}


def kind_of(facts: NodeFacts) -> ServerKind:
    """Return the package that is nearest to a server's engine and version."""
    kinds = _KINDS.get(facts.engine, _KINDS["redis"])
    return next(kind for since, kind in kinds if facts.version >= since)


class DisposableServer:
    """The server, between `async with` and its end; it can be killed and started again."""

    def __init__(self, kind: ServerKind, settings: Mapping[str, str]) -> None:
        self.kind = kind
        self.address = Address(host="127.0.0.1", port=free_port())
        self._settings = settings
        self._folder = Path()
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        program = binary(self.kind)
        self._folder = Path(tempfile.mkdtemp(prefix="exodus-disposable-"))
        settings = {
            "port": str(self.address.port),
            "bind": "127.0.0.1",
            "dir": quoted(self._folder),
            "daemonize": "no",
            "save": "",
            **self._settings,
        }
        lines = [f"{name} {value or chr(34) * 2}" for name, value in settings.items()]
        write_private(self._folder / "server.conf", "\n".join(lines) + "\n")
        self._command = tied([str(program), str(self._folder / "server.conf")])
        try:
            await self.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def start(self) -> None:
        """Start it over what it has in its folder.

        Raises:
            StackError: it does not answer.
        """
        with (self._folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + DISPOSABLE_START_S
        while not await asyncio.to_thread(answers, self.address.port):
            if self._process.returncode is not None or time.monotonic() > deadline:
                said = (self._folder / "log").read_text(errors="replace").splitlines()[-2:]
                raise StackError(
                    f"a disposable {self.kind} did not start",
                    why=" ".join(said) or "it did not answer",
                    next_step="set test_checks.failures: off, or mend what its log says",
                )
            await asyncio.sleep(DISPOSABLE_LOOK_S)

    async def kill(self) -> None:
        """Kill it, as a crash would."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
