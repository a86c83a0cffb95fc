"""What an operator does at the command line, against a real stack that was started in a folder of
its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import httpx
import pytest
import redis
import yaml

from exodus.cli.phases import read_status
from exodus.cli.prefect_api import PrefectApi
from exodus.control import ledger
from exodus.control.ledger import LedgerEntry
from exodus.control.store import ControlStore
from exodus.plan.migration_file import MigrationFile, load_migration
from exodus.plan.vocabulary import Phase
from exodus.stack.home import Home, free_port
from exodus.stack.processes import end
from exodus.stack.up import down
from tests.support.wait import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent


class Shell:
    """A shell in some folder, whose `exodus` is the installed one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = Home(folder / ".exodus")
        self.environment = {**os.environ, "PWD": str(folder)}
        for name in ("EXODUS_HOME", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
            self.environment.pop(name, None)

    def run(
        self, *arguments: str, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "exodus"), *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def said(self, *arguments: str) -> str:
        """Run a command that must succeed; return its output."""
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
        """Wait until a phase asks; return its state."""

        def asks() -> bool:
            now = self.status()
            assert now["phases"].get(phase, {}).get("state") != "failed", now["why_waiting"]
            return now["waiting"] is not None and now["waiting"]["phase"] == phase

        wait_until(asks, within_s=within_s, otherwise=f"{phase} never asked")
        return self.status()["waiting"]

    def becomes(self, phase: str, state: str, within_s: float = 60) -> dict:
        """Wait until a phase is in a state; return the whole status."""
        found: dict = {}

        def there() -> bool:
            found.update(self.status())
            return found["phases"].get(phase, {}).get("state") == state

        wait_until(there, within_s=within_s, otherwise=f"{phase} never became {state}")
        return found

    def asking(self, phase: str) -> dict:
        """Have a phase ask, whatever it did before; return its state."""
        if (self.status()["waiting"] or {}).get("phase") != phase:
            self.said(
                "start",
                phase,
                *(("--seconds", "1") if phase in ("pre-test", "analyze", "compare") else ()),
            )
        return self.waits(phase)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("a folder élsewhere"))
    try:
        done = shell.run("up")
        assert done.returncode == 0, done.stderr
        yield shell
        shell.api.close()
    finally:
        down(shell.home)
    assert not shell.home.running()


@pytest.fixture(scope="module")
def traffic(shell: Shell) -> Iterator[threading.Event]:
    """An application that writes and reads a few keys through the gateway, except while it
    rests.
    """
    stop, rest, port = threading.Event(), threading.Event(), shell.file.plan.gateway.port

    def work() -> None:
        with redis.Redis(port=port) as client:
            while not stop.wait(0.01):
                with contextlib.suppress(redis.ConnectionError):  # one test stops the gateway
                    for key in range(0 if rest.is_set() else 5):
                        client.set(f"k:{key}", "v")
                        client.get(f"k:{key}")

    thread = threading.Thread(target=work)
    thread.start()
    yield rest
    stop.set()
    thread.join(10)


def test_a_phase_runs_wherever_the_stack_was_started(
    shell: Shell, traffic: threading.Event
) -> None:
    """Flows are found by their module: neither `$PWD` nor a working directory matters.

    The folder's name may have spaces, and what is printed can be pasted.
    """
    told = json.loads(shell.said("up", "--json"))["Prefect login"]
    pasted = subprocess.run(["sh", "-c", told], capture_output=True, text=True, check=True)
    assert pasted.stdout.strip() == shell.home.prefect_login()
    asked = shell.asking("pre-test")
    assert asked["question"] == "Can Exodus observe representative traffic safely?"


def test_a_run_that_crashed_before_it_began_is_shown_with_its_reason(shell: Shell) -> None:
    """The control store knows nothing of the run, since its flow was never found."""
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


def test_a_start_that_is_refused_starts_nothing(shell: Shell, traffic: threading.Event) -> None:
    shell.asking("pre-test")
    counted = {"flow_runs": {}}
    before = shell.api._call("POST", "/flow_runs/count", json=counted).json()
    for phase, why in (
        ("test", "pre-test is waiting"),
        ("pre-test", "pre-test is waiting"),
        ("lifecycle", "pre-test is waiting"),
    ):
        done = shell.run("start", phase)
        assert (done.returncode, done.stdout) == (1, "")
        assert why in done.stderr
    assert shell.api._call("POST", "/flow_runs/count", json=counted).json() == before


def test_the_summary_is_shown_before_an_answer_is_taken(
    shell: Shell, traffic: threading.Event
) -> None:
    asked = shell.asking("pre-test")
    shown = shell.said("answer")
    assert "Can Exodus observe representative traffic safely?" in shown
    assert "requests of" in shown
    assert "report evidence.pre-test, digest" in shown
    assert "answer approve" in shown
    docs = json.loads(shell.said("report", "pre-test", "--json"))["data_docs"]
    assert Path(docs["index"]).is_file()
    assert docs["index"] in shell.said("report", "pre-test").replace("\n", "")
    assert json.loads(shell.said("answer", "--json"))["words"] == ["approve", "reject"]
    wrong = shell.run("answer", "retry", "--why", "a wrong word")
    assert (wrong.returncode, "the form has the words approve, reject" in wrong.stderr) == (2, True)
    assert shell.waits("pre-test")["flow_run_id"] == asked["flow_run_id"]

    done = shell.said("reject", "--why", "because it is tested")
    assert done.index("requests of") < done.index("pre-test, observe: reject")
    # Once it is answered, nobody sees the question as open, whatever state its run is in.
    while (now := shell.status())["phases"]["pre-test"]["state"] != "rejected":
        assert now["waiting"] is None
        assert "asks" not in now["why_waiting"]
    twice = shell.run("reject", "--why", "a second time")
    assert (twice.returncode, "no decision is open" in twice.stderr) == (1, True)


def test_a_finding_of_compare_is_accepted_by_its_name(
    shell: Shell, traffic: threading.Event
) -> None:
    """No sampled key was requested. Before, the phase then failed on three rows with ERROR, and
    nobody could accept them.
    """
    for phase in ("pre-test", "analyze"):
        shell.asking(phase)
        shell.said("approve", "--why", "because it is tested")
        shell.becomes(phase, "approved")
    traffic.set()
    try:
        asked = shell.asking("compare")
    finally:
        traffic.clear()
    assert "1 FINDING(S): resolve them, or accept each by name: nothing compared" in shell.said(
        "answer"
    )
    done = shell.run("approve", "--yes", "--why", "the finding has no answer", "--wait")
    assert (done.returncode, "compare asks again" in done.stderr) == (1, True)
    assert "nothing compared" in done.stderr
    waiting = shell.status()["waiting"]
    assert waiting["attempt"] == asked["attempt"] + 1
    assert f"asked again: {waiting['asked_again']}" in shell.said("answer")
    shell.said(
        "answer",
        "approve",
        "--why",
        "there is no traffic at night",
        "--field",
        "accept_findings=nothing compared",
    )
    shell.becomes("compare", "approved")

    async def decided() -> LedgerEntry | None:
        async with await ControlStore.connect(shell.file.control_store, "demo") as store:
            return ledger.last_decision(await ledger.read(store), Phase.COMPARE)

    entry = asyncio.run(decided())
    assert entry is not None
    assert entry.facts["accept_findings"] == "nothing compared"


def test_a_person_at_a_terminal_is_asked_once_more(shell: Shell, traffic: threading.Event) -> None:
    asked = shell.asking("pre-test")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [str(BIN / "exodus"), "reject", "--why", "because it is tested"],
        cwd=shell.folder,
        env=shell.environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(master, 4096)
    assert said.index(b"requests of") < said.index(b"reject? [y/N]")
    os.write(master, b"n\n")
    assert process.wait(30) == 1
    os.close(master)
    assert shell.waits("pre-test")["flow_run_id"] == asked["flow_run_id"]


class _Failing(http.server.BaseHTTPRequestHandler):
    """A connection to Prefect that answers 500 to the `fails_at`-th write of a block."""

    upstream = ""
    writes = 0
    fails_at = 0

    def _pass(self) -> None:
        kind = type(self)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.command in ("POST", "PATCH") and re.fullmatch(
            r"/api/block_documents/([0-9a-f-]{36})?", self.path
        ):
            kind.writes += 1
            if kind.writes == kind.fails_at:
                self.send_error(500)
                return
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("host", "content-length", "accept-encoding")
        }
        answer = httpx.request(
            self.command, kind.upstream + self.path, content=body, headers=headers, timeout=30
        )
        self.send_response(answer.status_code)
        for name in ("content-type",):
            self.send_header(name, answer.headers.get(name, "application/json"))
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _pass

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def _kept(shell: Shell, name: str) -> tuple[list[dict], bytes | None]:
    """Return the blocks of a migration, and its plan in the control store."""
    documents = shell.api._call(
        "POST", "/block_documents/filter", json={"include_secrets": True}
    ).json()
    blocks = [
        {"name": row["name"], "data": row["data"]}
        for row in documents
        if row["name"] == name or row["name"].startswith(f"{name}-")
    ]
    control = shell.file.control_store
    with redis.Redis(
        port=control.port, username=control.username, password=control.secret("control_store")
    ) as store:
        return sorted(blocks, key=lambda row: row["name"]), store.get(f"exodus:{{{name}}}:plan")


def _other_file(shell: Shell, tmp_path: Path, **fields: object) -> Path:
    gateway = {"port": fields.pop("port", None) or free_port()}
    document = {
        **yaml.safe_load(shell.home.migration_file.read_text()),
        "name": "other",
        "gateway": gateway,
        **fields,
    }
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_with_prefect_away_nothing_is_registered(shell: Shell, tmp_path: Path) -> None:
    away = {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}
    done = shell.run("apply", str(_other_file(shell, tmp_path)), **away)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: Prefect at {away['PREFECT_API_URL']} does not answer")
    assert "Traceback" not in done.stderr
    assert _kept(shell, "other") == ([], None)


def test_a_plan_is_registered_whole_or_not_at_all(shell: Shell, tmp_path: Path) -> None:
    """Prefect fails at each write of a block in turn.

    A new migration then leaves nothing behind. A registered one stays as it was.
    """
    _Failing.upstream = shell.api.url.removesuffix("/api")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Failing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    way = {
        "PREFECT_API_URL": f"http://127.0.0.1:{server.server_port}/api",
        "PREFECT_API_AUTH_STRING": shell.home.prefect_login(),
    }
    port = free_port()
    try:
        file = _other_file(shell, tmp_path, allow_nonempty=True, port=port)
        for number in (2, 4):
            _Failing.writes, _Failing.fails_at = 0, number
            done = shell.run("apply", str(file), **way, PREFECT_CLIENT_MAX_RETRIES="0")
            assert done.returncode != 0
            assert "the blocks were not written" in done.stderr, done.stderr
            assert "Traceback" not in done.stderr
            assert _kept(shell, "other") == ([], None)
        _Failing.fails_at = 0
        assert shell.run("apply", str(file), **way).returncode == 0
        before = _kept(shell, "other")
        assert [row["name"] for row in before[0]] == [
            "other",
            "other-control-store",
            "other-source",
            "other-target",
        ]
        changed = _other_file(
            shell, tmp_path, allow_nonempty=True, port=port, partitions=4, advance="auto"
        )
        assert "changed: partitions: 8 → 4" in shell.said("apply", str(changed), "--check")
        _Failing.writes, _Failing.fails_at = 0, 4
        done = shell.run("apply", str(changed), **way, PREFECT_CLIENT_MAX_RETRIES="0")
        assert done.returncode != 0
        assert _kept(shell, "other") == before
        done = shell.run("apply", str(changed))
        assert "void: test, migrate, verification" in done.stdout
        assert done.returncode == 0, done.stderr
        listed = {
            row["migration"]: row["state"]
            for row in json.loads(shell.said("migrations", "--json"))["migrations"]
        }
        assert listed["other"] == "idle"
        assert (
            json.loads(shell.said("status", "--json", "--migration", "other"))["due"] == "pre-test"
        )
        shell.said("archive", "--migration", "other", "--why", "it never began")
        assert _kept(shell, "other") == ([], None)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_an_abandoned_migration_is_done_and_can_be_put_away(
    shell: Shell, traffic: threading.Event
) -> None:
    shell.said("start", "rollback", "--why", "given up")
    shell.waits("rollback")
    plain = shell.run("reject", "--why", "not clear what that means")
    assert (plain.returncode, "reject would mean abandon here" in plain.stderr) == (1, True)
    assert "abandon, which means: end the migration for good" in shell.said(
        "answer", "abandon", "--why", "given up", "--field", "clean_target=false"
    )
    status = shell.becomes("rollback", "approved")
    assert (status["state"], status["ended"]["how"]) == ("done", "abandoned")
    assert "the migration is done: it was abandoned by" in shell.said("status")
    for phase in ("pre-test", "commit", "rollback", "lifecycle"):
        refused = shell.run("start", phase)
        assert (refused.returncode, "the migration is done" in refused.stderr) == (1, True)
    # A run that was started in the UI is refused by itself.
    run_id = shell.api.start("pre-test", {"migration": "demo"})["id"]
    wait_until(
        lambda: shell.api.run(run_id)["state"]["type"] == "FAILED",
        within_s=60,
        otherwise="the run was not refused",
    )
    assert "the migration is done" in shell.api.run(run_id)["state"]["message"]
    assert shell.status()["state"] == "done"

    running = shell.run("archive", "--why", "given up")
    assert (running.returncode, "3 of its processes run" in running.stderr) == (1, True)
    end(
        [entry for entry in shell.home.running() if entry.name in ("gateway", "syncer", "comparer")]
    )
    wait_until(
        lambda: shell.run("archive", "--why", "given up").returncode == 0,
        within_s=30,
        otherwise="it was not archived",
    )
    (note,) = [
        note
        for note in json.loads(shell.said("migrations", "--json"))["archived"]
        if note["migration"] == "demo"
    ]
    assert Path(note["folder"]).parent.parent == shell.home.root / "evidence"
    shell.said("evidence", "check", note["folder"], "--head", note["head"])
    assert "was archived at" in shell.said("status")
    assert _kept(shell, "demo") == ([], None)

    # The name is free: the same file is registered anew, and the stack goes on with it.
    shell.said("apply", str(shell.home.migration_file))
    shell.said("up")
    assert shell.status()["state"] == "idle"
