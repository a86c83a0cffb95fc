"""Which phases a migration with a cluster has; and Analyze and Compare, before a move from one
server to a cluster, under a real Prefect server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.cluster import RedisCluster

from blocks import Migration
from blocks.endpoint import RedisEndpoint
from exodus.control import ledger
from exodus.control.phase_order import check_may_begin, due_phase
from exodus.cutover.rehearsal_report import check_rehearsal
from exodus.errors import DecisionRefused, EvidenceFailed
from exodus.plan.vocabulary import Phase
from exodus.shadow.comparer import Comparer
from exodus.stack.servers import ServerKind
from flows import analyze, compare
from tests.support.cluster_gateway import LISTENERS, cluster_migration
from tests.support.clusters import ClusterBox
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault
_ACCEPTED = "databases"


async def _save(local: LocalMigration, source: DatabaseServer, target: ClusterBox) -> None:
    """Store what flows know of the migration."""
    ours, theirs = source.address(), target.address()
    assert theirs.password_file is not None
    assert ours.password_file is not None
    gateway = {"host": "127.0.0.1", "port": local.port, "listeners": LISTENERS}
    block = Migration(
        migration=local.plan.name,
        options={
            "gateway": {**gateway, "facade": "cluster"},
            "rehearsal_hours_max": None,
            "observe_seconds": 1.5,
            "sample": 1.0,
        },
        source=RedisEndpoint(url=ours.url, password_file=str(ours.password_file)),
        target=RedisEndpoint(
            cluster=list(theirs.cluster),
            username=theirs.username,
            password_file=str(theirs.password_file),
        ),
        control_store=RedisEndpoint(
            url=local.control.address().url,
            password_file=str(local.control.address().password_file),
        ),
    )
    await asyncio.to_thread(block.save, local.plan.name, overwrite=True)
    await local.store.save_plan(block.plan())
    local.plan = block.plan()


async def _shop(port: int, stop: asyncio.Event) -> None:
    """Use the gateway as a cluster client until told to stop."""

    def work() -> None:
        with RedisCluster(host="127.0.0.1", port=port, client_name="shop") as shop:
            number = 0
            while not stop.is_set():
                number += 1
                shop.set(f"k{number % 100}", number)
                shop.get(f"k{number % 100}")

    await asyncio.to_thread(work)


async def _approve(local: LocalMigration, phase: Phase) -> None:
    """Write into the ledger what `ask` does."""
    entry = ledger.LedgerEntry(
        at_ms=await local.store.now_ms(), phase=phase, event="decided", verdict="approve"
    )
    await ledger.record(local.store, entry)


@asynccontextmanager
async def _comparer(local: LocalMigration) -> AsyncIterator[None]:
    comparer = Comparer(local.store, local.plan, "comparer-1")
    task = asyncio.create_task(comparer.run())
    try:
        yield
    finally:
        comparer.stop()
        await task


# Great Expectations, which flows import in processes of their own
@pytest.mark.filterwarnings("default")
async def test_analyze_says_what_does_not_fit_and_tries_every_node(
    make_server: Callable[..., DatabaseServer],
    make_cluster: Callable[..., ClusterBox],
    control_server: DatabaseServer,
    tmp_path: Path,
    prefect_server: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """First beside a client that knows of no cluster and reads keys of several slots: the phase
    fails. Then without it: the open findings are accepted by name, and Migrate may begin.
    """
    asked: list[dict] = []

    def answer(form: object, **shown: Any) -> dict:
        # In place of the suspension, which needs a worker (tests/e2e has it).
        del form
        asked.append(shown)
        facts = {"decision": "approve", "accept_findings": _ACCEPTED}
        shown["why_refused"] = shown["refuse"](facts, None)
        verdict = "reject" if shown["why_refused"] else "approve"
        return {"verdict": verdict, "decided_by": "the test", "why": "it is tested", "facts": facts}

    for flow in (analyze, compare):
        monkeypatch.setattr(flow, "ask", answer)
        monkeypatch.setattr(flow, "go_on", lambda _: None)
    source, target = make_server(ServerKind.REDIS_62), make_cluster(ServerKind.VALKEY_91, masters=3)
    async with cluster_migration(
        source, target, control_server, tmp_path, listen={"facade": "cluster"}
    ) as local:
        await _save(local, source, target)
        await local.gateway()
        assert due_phase(await ledger.read(local.store), local.plan) is Phase.PRE_TEST
        for phase, needed in (
            (Phase.ANALYZE, "pre-test"),
            (Phase.COMPARE, "analyze"),
            (Phase.TEST, "compare"),
            (Phase.MIGRATE, "test"),
        ):
            with pytest.raises(DecisionRefused, match=f"{needed} was not approved"):
                await check_may_begin(local.store, local.plan, phase)
        await _approve(local, Phase.PRE_TEST)
        stop = asyncio.Event()
        shopping = asyncio.create_task(_shop(local.port, stop))
        orders = redis.asyncio.Redis(port=local.port, client_name="orders")

        async def read() -> None:
            while True:
                await orders.mget("k1", "k2")
                await asyncio.sleep(0.01)

        reading = asyncio.create_task(read())
        try:
            with pytest.raises(EvidenceFailed) as failed:
                await asyncio.to_thread(analyze.analyze, local.plan.name)
            reading.cancel()
            await asyncio.wait([reading])
            await orders.aclose()
            await asyncio.sleep(2)  # the gateway tells its counters twice a second
            await asyncio.to_thread(analyze.analyze, local.plan.name)
            await _approve(local, Phase.ANALYZE)
            assert due_phase(await ledger.read(local.store), local.plan) is Phase.COMPARE
            async with _comparer(local):
                await asyncio.to_thread(compare.compare, local.plan.name)
        finally:
            stop.set()
            await shopping
        judged = asked.pop()
        assert any("0 of 100 keys differ" in line for line in judged["summary"]), judged
        assert not any("FINDING" in line for line in judged["summary"]), judged
        assert target.contents() == {}  # the sample is removed
        assert "every client can use a cluster: orders from 127.0.0.1" in failed.value.why
        assert "MGET: keys of several slots in one command" in failed.value.why
        (shown,) = asked
        assert shown["refuse"]({"decision": "approve", "accept_findings": ""}, None)
        report = await local.store.report("evidence.analyze")
        assert report is not None
        verdicts = {row["shape"]: row["verdict"] for row in report["frames"]["shapes"]}
        assert (verdicts["SET"], verdicts["GET"]) == ("accepted", "accepted")
        assert shown["why_refused"] is None
        await _approve(local, Phase.COMPARE)
        await check_may_begin(local.store, local.plan, Phase.TEST)
        assert due_phase(await ledger.read(local.store), local.plan) is Phase.TEST
        with pytest.raises(DecisionRefused, match="test was not approved"):
            await check_may_begin(local.store, local.plan, Phase.MIGRATE)
        await _approve(local, Phase.TEST)
        await check_may_begin(local.store, local.plan, Phase.MIGRATE)
        wanted = local.plan.model_copy(update={"rehearsal_hours_max": 24.0})
        with pytest.raises(DecisionRefused, match="never rehearsed"):
            await check_rehearsal(local.store, wanted)
