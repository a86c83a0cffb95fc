"""A gateway as its own process, by `exodus gateway`."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import sys
from pathlib import Path

import yaml

from exodus.plan.vocabulary import Side
from exodus.stack.processes import Started, start
from exodus.stack.servers import USER
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import wait_until


def migration_file(local: LocalMigration, **gateway: object) -> Path:
    """Write the local migration as a file."""

    def named(box: DatabaseServer) -> dict[str, str]:
        return {
            "url": f"redis://{USER}@127.0.0.1:{box.port}",
            "password_file": str(box.server.password_file),
        }

    path = local.folder / "migration.yaml"
    document = {
        "name": local.plan.name,
        "gateway": {"host": "127.0.0.1", "port": local.port, **gateway},
    }
    servers = {
        "source": local.servers[Side.SOURCE],
        "target": local.servers[Side.TARGET],
        "control_store": local.control,
    }
    path.write_text(
        yaml.safe_dump({**document, **{name: named(box) for name, box in servers.items()}})
    )
    return path


class GatewayProcess:
    """`exodus gateway …` of a local migration; the process ends with `end`."""

    def __init__(self, local: LocalMigration, *arguments: str, name: str = "gw") -> None:
        self.log = local.folder / f"{name}.log"
        command = [
            sys.executable,
            "-m",
            "exodus.cli.app",
            "gateway",
            "--file",
            str(migration_file(local)),
            "--id",
            "gw",
        ]
        command += ["--state-dir", str(local.folder / "state"), *arguments]
        self.started: Started = start(name, command, log=self.log)

    def said(self, pattern: str) -> list[str]:
        """Return what the log has of a pattern."""
        return re.findall(pattern, self.log.read_text())

    def wait_said(self, pattern: str, *, times: int = 1) -> list[str]:
        """Wait until the log has a pattern so often."""
        wait_until(
            lambda: len(self.said(pattern)) >= times,
            within_s=40,
            otherwise=f"{pattern!r} was not said:\n{self.log.read_text()[-2000:]}",
        )
        return self.said(pattern)

    def health(self, index: int = 0) -> tuple[int, str]:
        """Return status and reason of one worker's `/health`."""
        return self._get("/health", index)

    def metrics(self, index: int = 0) -> str:
        """Return its metrics."""
        return self._get("/metrics", index, text=True)[1]

    def _get(self, path: str, index: int, *, text: bool = False) -> tuple[int, str]:
        port = int(self.wait_said(r"/metrics on port (\d+)", times=index + 1)[index])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body.decode() if text else json.loads(body)["why"]

    def signal(self, number: int) -> None:
        os.kill(self.started.process.pid, number)

    def end(self) -> int:
        """Send SIGTERM; return its exit status."""
        if self.started.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.started.process.wait(30)

    def kill(self) -> None:
        """Kill it and all its workers."""
        try:
            os.killpg(self.started.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.started.process.wait(10)
