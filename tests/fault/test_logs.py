"""The logs of gateway, syncer and comparer: each change once, with its reason."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from exodus.plan.vocabulary import JournalMode, Side
from exodus.stack.processes import Started, end, start
from exodus.stack.servers import ServerKind
from tests.support.local_migration import LocalMigration
from tests.support.process import migration_file
from tests.support.servers import DatabaseServer
from tests.support.wait import wait_until

pytestmark = pytest.mark.fault
KINDS = ("gateway", "syncer", "comparer")


class Processes:
    """The data plane, each with its log."""

    def __init__(self, local: LocalMigration, *more: str) -> None:
        self._started: dict[str, Started] = {}
        file = migration_file(local)
        for kind in KINDS:
            command = [
                sys.executable,
                "-m",
                "exodus.cli.app",
                kind,
                "--file",
                str(file),
                "--id",
                kind,
                *more,
            ]
            if kind == "gateway":
                command += ["--state-dir", str(local.folder / "state")]
            self._started[kind] = start(kind, command, log=local.folder / f"{kind}.log")

    def log(self, kind: str) -> str:
        return self._started[kind].log.read_text()

    def said(self, kind: str, pattern: str) -> int:
        return len(re.findall(pattern, self.log(kind)))

    def wait(self, kind: str, pattern: str) -> None:
        try:
            wait_until(
                lambda: self.said(kind, pattern) > 0,
                within_s=30,
                otherwise=f"{kind} never said {pattern!r}",
            )
        except AssertionError as exc:
            raise AssertionError(f"{exc}: {self.log(kind)[-2000:]}") from exc

    def end(self) -> None:
        end([each.running() for each in self._started.values() if each.process.poll() is None])
        for each in self._started.values():
            each.process.wait()


@pytest.fixture
def mortal(
    make_server, tmp_path: Path
) -> Iterator[tuple[LocalMigration, DatabaseServer, DatabaseServer]]:  # type: ignore[no-untyped-def]
    source, target, control = (
        make_server(ServerKind.REDIS_62),
        make_server(ServerKind.VALKEY_91),
        make_server(ServerKind.VALKEY_91, appendonly="yes"),
    )
    yield LocalMigration(source, target, control, tmp_path), source, control


async def test_each_change_is_logged_once_with_its_reason(
    mortal: tuple[LocalMigration, DatabaseServer, DatabaseServer],
) -> None:
    local, source, control = mortal
    await local.open()
    processes = Processes(local)
    try:
        for kind in KINDS:
            processes.wait(kind, r"INFO .*route: epoch 0, the source is the authority")
        await local.start_live_sync()
        for kind in KINDS:
            processes.wait(
                kind,
                r"route: epoch 1, the source is the authority, journal all, live sync by gateway "
                r"\(test\)",
            )
        await local.change(shadow_rate=0.5, shadow_salt=1)
        processes.wait("comparer", "50% shadowed")
        control.kill()
        for kind in KINDS:
            processes.wait(kind, r"INFO .*the control store is away: .*\w")
        control.start()
        for kind in KINDS:
            processes.wait(kind, r"INFO .*the control store is back after [\d.]+ s")
        source.kill()
        processes.wait("gateway", "INFO .*the source is away: the source")
        processes.wait("syncer", "INFO .*live sync waits: ")
        source.start()
        processes.wait("gateway", "INFO .*the source is back after")
        processes.wait("syncer", "INFO .*live sync goes on after")
        processes.wait("syncer", "INFO .*gap .* is open: ")
        for kind in KINDS:
            assert processes.said(kind, "the control store is away") == 1, processes.log(kind)
            assert processes.said(kind, "the control store is back") == 1, processes.log(kind)
            assert processes.said(kind, "route: epoch 1,") == 1
        assert processes.said("gateway", "the source is back") == 1, processes.log("gateway")
    finally:
        processes.end()
        await local.close()


async def test_a_log_is_json_on_request(local: LocalMigration) -> None:
    await local.change(journal=JournalMode.ALL)
    processes = Processes(local, "--log-format", "json")
    try:
        for kind in KINDS:
            processes.wait(kind, "route: epoch 1")
            rows = [orjson.loads(line) for line in processes.log(kind).splitlines()]
            (told,) = [row for row in rows if row["message"].startswith("route:")]
            assert told["level"] == "INFO"
            assert told["logger"].startswith("exodus.")
            assert told["at"].endswith("+00:00")
        assert Side.SOURCE in told["message"]
    finally:
        processes.end()
