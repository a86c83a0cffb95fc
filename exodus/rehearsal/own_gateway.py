"""A gateway of the rehearsal's own, which one round kills.

It is a process like any other gateway and takes part in the switch, but no application knows its
port. So it can die by SIGKILL, and start again over what it left, without harm to anybody. It ends
with the process that started it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import yaml

from exodus.control import registry
from exodus.control.route import read_route
from exodus.control.store import ControlStore
from exodus.errors import DecisionRefused, ExodusError
from exodus.plan.address import Address, Place
from exodus.plan.bounds import REHEARSAL_AGAIN_S, REHEARSAL_GATEWAY_S
from exodus.plan.plan import Plan
from exodus.plan.settings import Listen
from exodus.plan.vocabulary import JournalMode, Side
from exodus.private_files import write_private
from exodus.stack.home import free_ports
from exodus.stack.tied import tied

_VARIABLE = "EXODUS_REHEARSAL_"


class OwnGateway:
    """The process; killed and started again as often as asked."""

    def __init__(self, store: ControlStore, plan: Plan) -> None:
        self.id = f"rehearsal-{secrets.token_hex(4)}"
        count = plan.listener_count
        gateway = plan.gateway.model_dump(mode="json", include={"facade", "replicas"})
        self.listen = Listen(port=free_ports(count), listeners=count, **gateway)
        self._store = store
        self._folder = Path(tempfile.mkdtemp(prefix="exodus-rehearsal-"))
        self._file = self._folder / "migration.yaml"
        self._env: dict[str, str] = {}
        self._process: asyncio.subprocess.Process | None = None
        servers = {
            **{str(side): plan.address(side) for side in Side},
            "control_store": store.address,
        }
        more = plan.model_dump(mode="json", exclude={"source", "target", "gateway"})
        named = {name: self._named(name, address) for name, address in servers.items()}
        listens = {"gateway": self.listen.model_dump(mode="json")}
        write_private(self._file, yaml.safe_dump({**more, **named, **listens}))

    def _named(self, name: str, address: Place) -> dict[str, Any]:
        """Return a server for the file; a password goes into the child's environment."""
        in_url = {"host", "port", "username", "tls"} if isinstance(address, Address) else set()
        given = address.model_dump(mode="json", exclude=in_url, exclude_none=True)
        if in_url:
            given["url"] = address.url
        if address.password is not None:
            variable = _VARIABLE + name.upper()
            self._env[variable] = address.password.get_secret_value()
            given["password_env"] = variable
            given.pop("password_file", None)
        return given

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start it, over what it left, and wait until it takes part.

        Raises:
            DecisionRefused: it did not start; the reason has the end of its log.
        """
        command = ["-m", "exodus.cli.app", "gateway", "--id", self.id, "--file", str(self._file)]
        command += ["--listen", f"127.0.0.1:{self.listen.port}", "--drain", "0.1"]
        command += ["--state-dir", str(self._folder / "state"), "--log-level", "WARNING"]
        with (self._folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tied([sys.executable, *command]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._env},
            )
        deadline = time.monotonic() + REHEARSAL_GATEWAY_S
        while not await self._takes_part(self._process.pid):
            if self._process.returncode is not None or time.monotonic() > deadline:
                said = (self._folder / "log").read_text(errors="replace").splitlines()[-3:]
                raise DecisionRefused(
                    "a gateway of the rehearsal's own did not start",
                    why=" ".join(said) or f"it was not ready within {REHEARSAL_GATEWAY_S:.0f} s",
                    next_step="correct the reason, or set test_checks.rehearsal_kill: false",
                )
            await asyncio.sleep(REHEARSAL_AGAIN_S)

    async def _takes_part(self, pid: int) -> bool:
        beats = await registry.heartbeats(self._store, "gateway")
        return any(beat.process == self.id and beat.pid == pid for beat in beats)

    def kill(self) -> None:
        """Kill it, without a word to anybody."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def close(self) -> None:
        """End it, so that nobody waits for its heartbeat, and remove what it left.

        In order only where its journal counts: before Migrate it has nothing to say.
        """
        if self._process is not None:
            journals = (await read_route(self._store)).journal is JournalMode.ALL
            if self._process.returncode is None:
                (self._process.terminate if journals else self._process.kill)()
            try:
                async with asyncio.timeout(REHEARSAL_GATEWAY_S):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
            await self._store.unregister("gateway", self.id)
        shutil.rmtree(self._folder, ignore_errors=True)


async def started(store: ControlStore, plan: Plan) -> tuple[OwnGateway | None, str]:
    """Return a started gateway; or None, and why not."""
    gateway = OwnGateway(store, plan)
    try:
        return await gateway.__aenter__(), ""
    except ExodusError as exc:
        return None, f"{exc.what}: {exc.why}"
