"""Other client libraries get the same answers through the gateway as directly.

redis-py runs with both protocols and both parsers (hiredis' where it is installed). redis-cli is a
C program on hiredis. ioredis runs with FULL=1 only: it needs node and npm.
"""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from exodus.control.gap_reasons import SCRIPTS
from exodus.plan.vocabulary import Side
from exodus.stack.prefect import project_root
from exodus.stack.servers import ServerKind, binary
from tests.support.full import FULL
from tests.support.ioredis import installed_ioredis
from tests.support.local_migration import LocalMigration

pytestmark = pytest.mark.fault

_CLIENTS = project_root() / "tests" / "support" / "clients"
# Without the compiled parser redis-py takes its own, in Python.
_NO_HIREDIS = (
    "import sys; sys.modules['hiredis'] = None; from tests.support.clients.redis_py "
    "import main; main()"
)


async def _run(command: list[str], *, given: Path | None = None) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=project_root(),
    )
    out, errors = await asyncio.wait_for(
        process.communicate(given.read_bytes() if given else b""), 120
    )
    assert process.returncode == 0, errors.decode()[-2000:]
    return out.decode()


async def _both(
    local: LocalMigration, command: list[str], *, given: Path | None = None, lines: int
) -> None:
    """Run a program against the source and through the gateway; `{at}` and `{port}` in its command
    stand for the address.
    """
    source = local.servers[Side.SOURCE]
    await local.gateway()
    await local.change(journal="all")
    told = []
    for port in (source.port, local.port):
        with source.client() as client:
            client.flushall()
            client.script_flush()
        told.append(
            await _run(
                [part.format(at=f"redis://127.0.0.1:{port}", port=port) for part in command],
                given=given,
            )
        )
    assert told[1] == told[0]
    assert len(told[0].splitlines()) >= lines, told[0]
    gateway, _ = local.gateways["gw-1"]
    assert not gateway.journaler.gaps.keys() - {SCRIPTS}
    assert not gateway.sessions_closed


@pytest.mark.parametrize("protocol", ["2", "3"])
async def test_redis_py_on_hiredis(local: LocalMigration, protocol: str) -> None:
    assert importlib.util.find_spec("hiredis") is not None
    await _both(
        local, [sys.executable, "-m", "tests.support.clients.redis_py", "{at}", protocol], lines=25
    )


async def test_redis_py_on_its_own_parser(local: LocalMigration) -> None:
    await _both(local, [sys.executable, "-c", _NO_HIREDIS, "{at}", "3"], lines=25)


async def test_redis_cli(local: LocalMigration) -> None:
    cli = binary(ServerKind.REDIS_62).with_name("redis-cli")
    await _both(local, [str(cli), "-p", "{port}"], given=_CLIENTS / "cli.txt", lines=20)


if FULL:

    async def test_ioredis(local: LocalMigration) -> None:
        program, folder = await installed_ioredis("ioredis.mjs")
        await _both(local, ["node", str(program), "{at}", str(folder)], lines=20)
