"""What an operator does at the command line, against a real stack that was started in a folder of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pytest
import redis

from exodus.cli.phases import read_status
from exodus.cli.prefect_api import PrefectApi
from exodus.config import MigrationFile, load_migration
from exodus.stack.home import Home
from exodus.stack.up import down
from tests.support.wait import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
BIN = Path(sys.executable).parent


class Shell:
    """A shell in some folder, whose `exodus` is the installed one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = Home(folder / ".exodus")
        self.environment = {**os.environ, "PWD": str(folder)}
        for name in ("EXODUS_HOME", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
            self.environment.pop(name, None)

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "exodus"), *arguments],
            cwd=self.folder, env={**self.environment, **environment}, input=stdin,
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip

    def said(self, *arguments: str) -> str:
        """What a command printed that did what it was asked for."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def file(self) -> MigrationFile:
        return load_migration(self.home.migration_file)

    @cached_property
    def api(self) -> PrefectApi:
        return PrefectApi.find(self.home)

    def status(self) -> dict:
        return asyncio.run(read_status(self.file, self.api))

    def waits(self, phase: str, within_s: float = 90) -> dict:
        """Wait until a phase asks; its state."""

        def asks() -> bool:
            now = self.status()
            assert now["phases"].get(phase, {}).get("state") != "failed", now["why_waiting"]
            return now["waiting"] is not None and now["waiting"]["phase"] == phase

        wait_until(asks, within_s=within_s, otherwise=f"{phase} never asked")
        return self.status()["waiting"]

    def becomes(self, phase: str, state: str, within_s: float = 60) -> dict:
        """Wait until a phase is in a state; the whole status then."""
        found: dict = {}

        def there() -> bool:
            found.update(self.status())
            return found["phases"].get(phase, {}).get("state") == state

        wait_until(there, within_s=within_s, otherwise=f"{phase} never became {state}")
        return found


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("elsewhere"))
    try:
        done = shell.run("up")
        assert done.returncode == 0, done.stderr
        yield shell
        shell.api.close()
    finally:
        down(shell.home)
    assert not shell.home.running()


@pytest.fixture(scope="module")
def traffic(shell: Shell) -> Iterator[None]:
    """An application that writes and reads a few keys through the gateway."""
    stop, port = threading.Event(), shell.file.plan.gateway.port

    def work() -> None:
        with redis.Redis(port=port) as client:
            while not stop.wait(0.01):
                for key in range(5):
                    client.set(f"k:{key}", "v")
                    client.get(f"k:{key}")

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join(10)


def test_a_phase_runs_wherever_the_stack_was_started(shell: Shell, traffic: None) -> None:
    """Flows are found by their module: neither `$PWD` nor the working directory of anybody matters."""
    shell.said("start", "pre-test", "--seconds", "1")
    asked = shell.waits("pre-test")
    assert asked["question"] == "Can Exodus observe representative traffic safely?"


def test_a_run_that_crashed_before_it_began_is_shown_with_its_reason(shell: Shell) -> None:
    """Nothing of it is in the control store, since its flow was never found."""
    api = shell.api
    deployment = api._call("GET", "/deployments/name/analyze/exodus").json()["id"]
    api._call("PATCH", f"/deployments/{deployment}", json={"entrypoint": "flows.nowhere.analyze"})
    try:
        run_id = api.start("analyze", {"migration": "demo"})["id"]
        wait_until(
            lambda: api.run(run_id)["state"]["type"] in ("CRASHED", "FAILED"),
            within_s=60,
            otherwise="the run never crashed",
        )
        status = json.loads(shell.said("status", "--json"))
        assert status["phases"]["analyze"]["state"] == "failed"
        assert "analyze failed" in status["why_waiting"]
        assert "flows.nowhere" in status["why_waiting"]
        assert "exodus start analyze" in status["what_unblocks"]
        assert f"/runs/flow-run/{run_id}" in shell.said("status")
    finally:
        entrypoint = {"entrypoint": "flows.analyze.analyze"}
        api._call("PATCH", f"/deployments/{deployment}", json=entrypoint)
