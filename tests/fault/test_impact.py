"""The impact budget of the servers: kept, changeable while a copy runs. And a target without
room.
"""

from __future__ import annotations

import asyncio
import threading

import pytest

from exodus.backfill.slices import copy_slice
from exodus.control.checkpoint import load_progress
from exodus.control.registry import heartbeats
from exodus.copy import impact
from exodus.copy.impact import Pace, read_paces, set_budget
from exodus.copy.scan import plan_slices
from exodus.plan.settings import Budget
from exodus.plan.vocabulary import Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node
from tests.support.comparing import comparing, counted
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

pytestmark = pytest.mark.fault


def _fill(local: LocalMigration, keys: int, value: str) -> None:
    pipe = local.servers[Side.SOURCE].client().pipeline(transaction=False)
    for number in range(keys):
        pipe.set(f"k{number}", value)
    pipe.execute()


def _source(local: LocalMigration) -> Node:
    return Node(Side.SOURCE, local.plan.source)


async def test_a_backfill_keeps_its_budget_says_why_it_is_slow_and_hears_of_another(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At every probe, so that the copy is not over before the budget bites
    monkeypatch.setattr(impact, "IMPACT_LOOK_EVERY_S", 0.0)
    _fill(local, 60_000, "x" * 100)
    local.plan = local.plan.model_copy(update={"budget": Budget(cpu_share_max=0.001), "slices": 1})
    await local.start_live_sync()
    engine = await local.engine()
    (piece,) = await plan_slices(engine.authority, 1)
    copying = asyncio.create_task(copy_slice(engine, "run", piece, budget_s=120))

    async def slowed() -> bool:
        return any(
            report.pause_ms >= 4 and "of a core, 0 % are allowed" in report.why
            for report in await read_paces(local.store)
        )

    await until(slowed, within_s=30, otherwise="the backfill was not slowed, or did not say so")
    assert not copying.done()
    await set_budget(local.store, Budget())
    done = await copying
    assert done.done
    assert done.keys_copied == 60_000
    assert await read_paces(local.store) == []


_SPIN = "local n = 0 for i = 1, 300000 do n = n + i end return n"


async def test_a_share_of_a_core_is_what_exodus_adds_to_the_applications_load(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Applications that use a whole core do not slow the copy, whenever they begin. The copy's own
    load does.
    """
    monkeypatch.setattr(impact, "IMPACT_REST_EVERY_MS", 2_000)
    caplog.set_level("INFO", logger="exodus.copy.impact")
    source = local.servers[Side.SOURCE]
    stop = threading.Event()

    def spin() -> None:
        with source.client() as client:
            while not stop.is_set():
                client.eval(_SPIN, 0)

    async def busy(reader: Pace) -> bool:
        await reader.turn()
        return (reader.applications or 0.0) > 0.4

    async with Pace(
        local.store,
        _source(local),
        Budget(cpu_share_max=0.3),
        what="test",
    ) as reader:
        assert reader.applications is not None
        assert reader.applications < 0.3
        spinning = asyncio.create_task(asyncio.to_thread(spin))
        try:
            await until(
                lambda: busy(reader),
                within_s=20,
                otherwise="the applications' load was never measured",
            )
            async with Pace(
                local.store,
                _source(local),
                Budget(cpu_share_max=0.3),
                what="later",
            ) as later:
                assert later.applications is not None
                assert later.applications > 0.4, "who begins while another is at work is told by it"
            async with Pace(
                local.store,
                Node(Side.TARGET, local.plan.target),
                Budget(cpu_share_max=0.3),
                what="another server",
            ) as elsewhere:
                assert elsewhere.applications is not None
                assert elsewhere.applications < 0.3, "it was told the source's load"

            async def free() -> bool:
                await reader.turn()
                (report,) = await read_paces(local.store)
                return report.server_cpu_share > 0.4 and not report.why

            await until(free, within_s=20, otherwise="the applications' load slowed the copy")
        finally:
            stop.set()
            await spinning
        # The load is Exodus's own now: its reads come with its turns.
        await set_budget(local.store, Budget(cpu_share_max=0.05))
        async with await Endpoint(Side.SOURCE, local.plan.source).connect(
            name="exodus-test"
        ) as leg:

            async def slowed() -> bool:
                for _ in range(20):
                    await reader.turn()
                    await leg.call("EVAL", _SPIN, 0)
                told = any(
                    "throttled: Exodus adds" in record.getMessage() for record in caplog.records
                )
                return told and reader.turns_delayed > 3

            await until(slowed, within_s=30, otherwise="Exodus's own load did not slow it")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) < 12, "once a change, not once a look"


async def test_the_probe_tells_what_other_clients_feel(local: LocalMigration) -> None:
    """Something else blocks the server: bulk readers slow down."""
    source = local.servers[Side.SOURCE].client()
    budget = Budget(probe_ms_added_max=5.0)
    async with Pace(local.store, _source(local), budget, what="test") as reader:
        await reader.turn()
        assert reader.turns_delayed == 0

        async def gives_way() -> bool:
            await asyncio.to_thread(
                source.eval, "local n = 0 for i = 1, 4000000 do n = n + i end return n", 0
            )
            await reader.turn()
            return reader.turns_delayed > 0 and "the probe's p99" in reader.why

        await until(gives_way, within_s=30, otherwise="nobody gave way")


async def test_a_target_without_room_pauses_the_copy_and_it_goes_on_by_itself(
    local: LocalMigration,
) -> None:
    _fill(local, 20_000, "x" * 500)
    target = local.servers[Side.TARGET].client()
    used = target.info("memory")["used_memory"]
    target.config_set("maxmemory", used + 3_000_000)
    try:
        await local.start_live_sync()
        engine = await local.engine()
        (piece,) = await plan_slices(engine.authority, 1)
        copying = asyncio.create_task(copy_slice(engine, "run", piece, budget_s=120))

        async def waits() -> bool:
            progress = (await load_progress(local.store, "run")).get(piece.slice_id)
            return progress is not None and progress.why.startswith("OOM")

        await until(waits, within_s=30, otherwise="the copy did not say that there is no room")
        assert not copying.done()
        target.config_set("maxmemory", 0)
        done = await copying
        assert (done.done, done.keys_failed, done.why) == (True, 0, "")
        assert (await local.verify()).divergences == []
    finally:
        target.config_set("maxmemory", 0)


async def test_a_replica_of_the_target_that_falls_behind_holds_the_copy(
    local: LocalMigration, make_server, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    """Otherwise the target's output buffer would reach its limit, and the target would drop the
    replica.
    """
    monkeypatch.setattr(impact, "IMPACT_LOOK_EVERY_S", 0.0)
    _fill(local, 60_000, "x" * 500)
    local.plan = local.plan.model_copy(
        update={"budget": Budget(replica_behind_mb_max=1), "slices": 1}
    )
    target, replica = local.servers[Side.TARGET], make_server(ServerKind.VALKEY_91)
    replica.client().replicaof("127.0.0.1", target.port)

    async def follows() -> bool:
        target.client().set("k", 1)
        return int(target.client().info("replication").get("slave0", {}).get("offset", 0)) > 0

    await until(follows, within_s=20, otherwise="it never became a replica")
    await local.start_live_sync()
    engine = await local.engine()
    (piece,) = await plan_slices(engine.authority, 1)
    replica.pause()
    try:
        copying = asyncio.create_task(copy_slice(engine, "run", piece, budget_s=120))

        async def waits() -> bool:
            return any(
                "MB behind, 1 MB are allowed" in report.why
                for report in await read_paces(local.store)
            )

        await until(waits, within_s=30, otherwise="the copy did not wait, or did not say why")
        assert not copying.done()
    finally:
        replica.resume()
    assert (await copying).keys_copied == 60_000


async def test_compare_keeps_the_budget_on_both_sides(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(impact, "IMPACT_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(impact, "IMPACT_REST_EVERY_MS", 10**9)
    await set_budget(local.store, Budget(cpu_share_max=0.001))
    stop = asyncio.Event()

    async def read() -> None:
        async with local.app() as client:
            while not stop.is_set():
                await asyncio.gather(*[client.get(f"k{number}") for number in range(10)])
                await asyncio.sleep(0.01)

    async def compared_in(seconds: float) -> int:
        before = (await counted(local, "GET")).get("compared", 0)
        await asyncio.sleep(seconds)
        return (await counted(local, "GET")).get("compared", 0) - before

    async def slowed() -> bool:
        servers = {"authority": local.plan.source.place, "follower": local.plan.target.place}
        return {
            report.what.removeprefix("comparing, "): report.server.split()[1]
            for report in await read_paces(local.store)
            if report.pause_ms >= 100 and "of a core, 0 % are allowed" in report.why
        } == servers

    async def fast() -> bool:
        return await compared_in(2.0) > 200

    async with comparing(local):
        reading = asyncio.create_task(read())
        try:
            await until(slowed, within_s=20, otherwise="one side's load had no bound")
            (beat,) = await heartbeats(local.store, "comparer")
            assert beat.why.startswith(("throttled: Exodus adds", "within the budget again"))
            assert await compared_in(2.0) < 50
            await set_budget(local.store, Budget())
            await until(fast, within_s=20, otherwise="without a budget it did not speed up")
        finally:
            stop.set()
            await reading
