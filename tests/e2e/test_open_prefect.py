"""A Prefect that anybody may use is distinguished from one that asks for a login."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exodus.cli.doctor import check_prefect
from exodus.stack import prefect
from exodus.stack.home import Home, free_port
from exodus.stack.processes import end, start, wait_ready

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture
def open_prefect(tmp_path: Path) -> Iterator[str]:
    home, port = Home(tmp_path / "stack"), free_port()
    home.make()
    ours = (
        "PREFECT_SERVER_API_AUTH_STRING",
        "PREFECT_API_AUTH_STRING",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS",
    )
    env = {
        name: value for name, value in prefect.environment(home, port).items() if name not in ours
    }
    assert not set(ours) & set(os.environ)
    command = [str(Path(sys.executable).parent / "prefect"), "server", "start"]
    server = start("prefect-server", command, log=home.log("prefect-server"), env=env, port=port)
    try:
        wait_ready(server, lambda: prefect.healthy(port), within_s=120)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        end([server.running()])
        server.process.wait()


def test_an_open_prefect_is_warned_of(open_prefect: str) -> None:
    found = check_prefect(open_prefect)
    assert [each.severity for each in found] == ["warning", "warning"]
    assert "answers without a login" in found[0].what
    assert "pages of any origin" in found[1].what


def test_a_prefect_that_is_away_is_said_to_be() -> None:
    (found,) = check_prefect(f"http://127.0.0.1:{free_port()}/api")
    assert (found.severity, "does not answer" in found.what) == ("warning", True)
