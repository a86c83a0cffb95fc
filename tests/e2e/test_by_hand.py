"""The commands of docs/operating/by-hand.md, as written: each part is started by hand, on a machine
of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from exodus.stack.home import Home, free_port
from exodus.stack.prefect import _template, project_root
from exodus.stack.servers import ServerKind, binary
from tests.support.hosts import Host, network
from tests.support.wait import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
PORTS = (6379, 6380, 6381, 6400, 4200)


def commands() -> str:
    """All commands of the page."""
    text = (project_root() / "docs" / "operating" / "by-hand.md").read_text()
    return "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[tuple[Host, dict[int, int]]]:
    """A machine with a source and a target, with the page's ports, or with others where the test
    machine has no namespaces.
    """
    with network("host") as net:
        host = net.hosts["host"]
        ports = {port: port if net.real else free_port() for port in PORTS}
        for name, kind, port in (
            ("source", ServerKind.REDIS_62, 6379),
            ("target", ServerKind.VALKEY_91, 6380),
        ):
            Home(tmp_path / name).make()
            command = [
                str(binary(kind)),
                "--port",
                str(ports[port]),
                "--bind",
                "0.0.0.0",
                "--protected-mode",
                "no",
                "--save",
                "",
            ]
            host.start(name, command, tmp_path / name)
        try:
            yield host, ports
        finally:
            for pid in host.pids():
                os.kill(pid, signal.SIGKILL)


def test_each_part_started_by_hand_as_it_is_written(
    machine: tuple[Host, dict[int, int]], tmp_path: Path
) -> None:
    host, ports = machine
    address = host.address if host.real else "127.0.0.1"
    source, target = (redis.Redis(host=address, port=ports[port]) for port in (6379, 6380))

    def both_answer() -> bool:
        try:
            return bool(source.ping() and target.ping())
        except redis.ConnectionError:
            return False

    wait_until(both_answer, within_s=20, otherwise="the two servers did not start")
    script = commands()
    for port, used in ports.items():
        script = script.replace(str(port), str(used))
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "prefect").mkdir()
    if _template().exists():
        # A new one takes ten seconds
        shutil.copyfile(_template(), folder / "prefect" / "prefect.db")
    tools = [Path(sys.executable).parent, binary(ServerKind.REDIS_62).parent]
    env = {
        **os.environ,
        "PATH": os.pathsep.join([*map(str, tools), os.environ["PATH"]]),
        "GX_ANALYTICS_ENABLED": "false",
    }
    command = host.command(["bash", "-e", "-u", "-o", "pipefail", "-c", script])
    with (tmp_path / "said").open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=280)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    said = (tmp_path / "said").read_text()
    assert status == 0, said[-4000:] + "".join(
        f"\n--- {log.name}\n{log.read_text()[-1500:]}" for log in folder.glob("*.log")
    )
    assert "registered orders" in said
    assert "pre-test, observe: approve" in said
    assert re.search(r"pre-test\W+approved", said), said[-3000:]
    for client in (source, target):
        client.close()
