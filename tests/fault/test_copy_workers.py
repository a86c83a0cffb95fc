"""Migrate under a real Prefect server: slices copied by whatever the plan names, and every other
strategy and feed from start to decision.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.variables import Variable
from pydantic import ValidationError

from blocks import Migration
from blocks.endpoint import RedisEndpoint
from exodus.backfill import runs
from exodus.backfill.progress import REPORT
from exodus.control import ledger
from exodus.control.checkpoint import load_progress
from exodus.control.route import read_route
from exodus.copy.impact import read_budget
from exodus.errors import OperatorError
from exodus.plan.settings import Budget, Workers
from exodus.plan.vocabulary import CopyStrategy, Feed, Phase, Side
from flows import migrate
from tasks.budget import BUDGET_VARIABLE, budget_heard
from tasks.context import opened, run
from tasks.evidence import artifact_key
from tasks.live_sync import verify_sides
from tests.fault.test_switch import _writers
from tests.fault.test_verify import fill
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
KEYS = 8_000


@flow
def copying(migration: str, live: dict) -> dict:
    """The part of Migrate that copies."""
    return migrate.copy_all(migration, live)


def _endpoint(box: DatabaseServer) -> RedisEndpoint:
    address = box.address()
    secret = address.secret("test")
    return RedisEndpoint(url=address.url, **({} if secret is None else {"password": secret}))


async def _save(local: LocalMigration, **options: object) -> None:
    """Store what flows know of the migration."""
    block = Migration(
        migration=local.plan.name,
        options={"rehearsal_hours_max": None, **options},
        source=_endpoint(local.servers[Side.SOURCE]),
        target=_endpoint(local.servers[Side.TARGET]),
        control_store=_endpoint(local.control),
    )
    await asyncio.to_thread(block.save, local.plan.name, overwrite=True)
    await local.store.save_plan(block.plan())


@pytest.mark.parametrize("kind", ["threads", "processes", "dask"])
async def test_slices_are_copied_by_the_workers_that_the_plan_names(
    local: LocalMigration, prefect_server: None, kind: str
) -> None:
    with local.servers[Side.SOURCE].client() as source:
        source.mset({f"k{number}": number for number in range(KEYS)})
    await local.start_live_sync()
    await _save(local, workers={"kind": kind, "count": 2}, slices=4)
    live = {"run": "run", "writer_epoch": (await read_route(local.store)).writer_epoch}
    counted = await asyncio.to_thread(copying, local.plan.name, live)
    assert counted["slices"] == counted["slices_done"] == 4
    assert counted["keys_seen"] == counted["keys_accounted"] >= KEYS
    shown = await local.store.report(REPORT)
    assert shown is not None
    assert (shown["what"], shown["keys"], shown["keys_total"]) == (
        "backfill",
        counted["keys_seen"],
        KEYS,
    )
    assert f"{counted['keys_seen']:,} of {counted['keys_seen']:,} keys" in shown["text"]
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(
            key=ArtifactFilterKey(any_=[artifact_key(local.plan.name, "migrate", "backfill")])
        )
        (artifact,) = await asyncio.to_thread(client.read_artifacts, artifact_filter=wanted)
    assert artifact.data == 100.0
    assert "keys/s" in str(artifact.description)
    assert "MB" in str(artifact.description)
    pids = {
        int(progress.worker.rpartition(":")[2])
        for progress in (await load_progress(local.store, "run")).values()
    }
    assert (pids == {os.getpid()}) is (kind == "threads")
    assert (await local.verify()).keys_verified == KEYS


@pytest.mark.parametrize(
    ("strategy", "feed"),
    [
        (CopyStrategy.MIGRATE, Feed.TRACKING),
        *([(CopyStrategy.KEYS, Feed.NOTIFICATIONS)] if FULL else []),
    ],
)
# Great Expectations, which flows import in processes of their own
@pytest.mark.filterwarnings("default")
async def test_migrate_comes_to_its_decision(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
    prefect_server: None,
    monkeypatch: pytest.MonkeyPatch,
    strategy: CopyStrategy,
    feed: Feed,
) -> None:
    """From the start of the flow, under writes through a gateway, to the question: all that the
    person sees is right.
    """
    asked: list[dict] = []

    def approve(form: object, **shown: Any) -> dict:
        # In place of the suspension, which needs a worker (tests/e2e has it).
        del form
        asked.append(shown)
        return {
            "verdict": "approve",
            "decided_by": "the test",
            "why": "it is tested",
            "facts": {"accept_dead_letters": ""},
        }

    monkeypatch.setattr(migrate, "ask", approve)
    local = LocalMigration(
        redis62, valkey91, control_server, tmp_path, strategy=strategy, feed=feed
    )
    await local.open()
    try:
        with redis62.client() as source, valkey91.client() as target:
            fill(source)
            source.mset({f"cold:{number}": number for number in range(KEYS)})
            if strategy is CopyStrategy.MIGRATE:
                target.execute_command("ACL", "SETUSER", "default", "-restore")
            for client in (source, target):
                client.config_set(
                    "notify-keyspace-events", "AK" if feed is Feed.NOTIFICATIONS else ""
                )
        await local.gateway()
        await local.syncer()
        await _save(
            local,
            strategy=str(strategy),
            feed=str(feed),
            slices=4,
            gateway={"host": "127.0.0.1", "port": local.port},
        )
        tested = ledger.LedgerEntry(
            at_ms=await local.store.now_ms(), phase=Phase.TEST, event="decided", verdict="approve"
        )
        await ledger.record(local.store, tested)
        stop = asyncio.Event()
        writing = asyncio.create_task(_writers(local, stop))
        try:
            await asyncio.to_thread(migrate.migrate, local.plan.name)
        finally:
            stop.set()
            await writing
        assert [shown["question"] for shown in asked] == ["Is progress healthy enough to continue?"]
        assert "0 divergences" in asked[0]["summary"][1]
        sent: Counter[str] = Counter()
        for progress in (
            await load_progress(local.store, (await runs.current(local.store)).run)
        ).values():
            sent.update(progress.strategies)
        assert (sent["MIGRATE"] >= KEYS) is (strategy is CopyStrategy.MIGRATE)
        assert (await local.store.phases())[Phase.MIGRATE].state == "approved"
        await local.drained()
        assert (await local.verify()).divergences == []
    finally:
        await local.close()
        with valkey91.client() as target:
            for name in target.acl_users():
                if name.startswith("exodus-"):
                    target.acl_deluser(name)
        for box in (redis62, valkey91):
            with box.client() as client:
                client.config_set("notify-keyspace-events", "")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "processes", "dask_scheduler": "tcp://h:1"}, "set kind: dask"),
        ({"kind": "dask", "dask_scheduler": "tcp://h:1", "count": 2}, "count"),
    ],
)
def test_what_does_not_fit_its_kind_is_refused(fields: dict, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Workers(**fields)


@flow
def verifying(migration: str) -> dict:
    """The part of Migrate that compares."""
    return verify_sides(migration, "migrate")


async def test_the_budget_of_the_prefect_variable_holds_for_a_verification_and_may_change_meanwhile(
    local: LocalMigration, prefect_server: None
) -> None:
    await local.start_live_sync()
    await _save(local)

    def put(value: dict) -> None:
        Variable.set(BUDGET_VARIABLE, value, overwrite=True)

    @flow
    def changing(migration: str) -> None:
        async def work() -> None:
            async with opened(migration) as it, budget_heard(it.store, every_s=0.05):
                await asyncio.to_thread(put, {"cpu_share_max": "lots"})
                await asyncio.sleep(0.5)
                assert await read_budget(it.store) == Budget(cpu_share_max=0.5), (
                    "what is none changes nothing"
                )
                await asyncio.to_thread(put, {"cpu_share_max": 0.3})

                async def heard() -> bool:
                    return await read_budget(it.store) == Budget(cpu_share_max=0.3)

                await until(heard, within_s=20, otherwise="the variable was not read again")

        run(work())

    def all_of_it() -> None:
        try:
            put({"cpu_share_max": 0.5})
            assert verifying(local.plan.name)["divergences_total"] == 0
            changing(local.plan.name)
            put({"cpu_share_max": "lots"})
            with pytest.raises(OperatorError, match="cpu_share_max: 'lots'"):
                verifying(local.plan.name)
        finally:
            Variable.unset(BUDGET_VARIABLE)

    await asyncio.to_thread(all_of_it)
    assert await read_budget(local.store) == Budget(cpu_share_max=0.3)
