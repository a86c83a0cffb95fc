"""Postponing, releasing and aborting a switch; its window; settling what a dead one left; rollback
by force.
"""

from __future__ import annotations

import asyncio

import pytest

from exodus.closing import finalise_checks
from exodus.closing.collect import collect, dirty_keys, remaining_keys
from exodus.control import ledger
from exodus.control.approvers import PersonIdentity
from exodus.control.freshness import record_pass
from exodus.control.ledger import CUTOVER, LedgerEntry
from exodus.control.route import read_route
from exodus.control.schema import guard_key
from exodus.cutover import forced_rollback, levers, switch
from exodus.cutover.context import Switch
from exodus.cutover.fence import read_record
from exodus.cutover.settle import settle
from exodus.errors import CutoverAborted, DecisionRefused
from exodus.plan.vocabulary import Hold, JournalMode, Phase, Side
from exodus.plan.window import Window
from exodus.verify.reconcile import reconcile
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

pytestmark = pytest.mark.fault


@pytest.fixture
async def ready(local: LocalMigration) -> LocalMigration:
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    await local.app().set("k", 1)
    await local.drained()
    return local


async def _waits_for(local: LocalMigration, text: str) -> None:
    async def said() -> bool:
        return text in str((await local.store.report(levers.NOW) or {}).get("waits_for"))

    await until(said, within_s=10, otherwise=f"the switch never said that it waits for {text!r}")


async def test_a_postponed_switch_stays_ready_and_goes_on_when_released(
    ready: LocalMigration,
) -> None:
    await levers.postpone(ready.store, by="Ada", why="the batch job is late")
    switching = asyncio.create_task(switch.apply(ready.store, ready.plan, Side.TARGET))
    await _waits_for(ready, "postponed by Ada: the batch job is late")
    await ready.app().set("k", 2)
    route = await levers.release_hold(ready.store, ready.plan, "it is done")
    assert route.hold is Hold.NONE
    done = await switching
    assert done.switched
    assert "Ada" in str(done.facts["waited_for"])
    assert ready.servers[Side.TARGET].client().get("k") == b"2"


async def test_a_switch_that_is_called_off_while_it_waits_changes_nothing(
    ready: LocalMigration,
) -> None:
    await levers.postpone(ready.store, by="Ada", why="not yet")
    before = await read_route(ready.store)
    assert not await levers.under_way(ready.store)
    switching = asyncio.create_task(switch.apply(ready.store, ready.plan, Side.TARGET))
    await _waits_for(ready, "not yet")
    assert await levers.under_way(ready.store)
    await levers.give_up(ready.store, ready.plan, "another day")
    with pytest.raises(CutoverAborted, match="called off"):
        await switching
    assert not await levers.under_way(ready.store)
    assert await read_route(ready.store) == before


@pytest.mark.parametrize(
    "step",
    ["drain", "fence", "confirm", "close the epoch", "open", "switch"]
    if FULL
    else ["fence", "switch"],
)
async def test_a_switch_that_is_given_up_at_any_step_is_undone(
    ready: LocalMigration, step: str
) -> None:
    """Another process gives it up while it holds writes. It finds the route changed; the fence and
    the write grants are as before.
    """
    aborting: list[asyncio.Task] = []
    original = switch.apply

    def tell(_: Switch, at: switch.Step) -> None:
        if at.name == step:
            aborting.append(
                asyncio.create_task(levers.give_up(ready.store, ready.plan, "given up"))
            )

    steps = switch.steps(ready.plan, Side.TARGET)
    index = [each.name for each in steps].index(step)
    real = steps[index].do

    async def after_the_abort(at: Switch) -> None:
        await aborting[0]
        await real(at)

    steps[index] = switch.Step(step, "", after_the_abort, steps[index].undo, bounded=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(switch, "steps", lambda *_: steps)
        with pytest.raises((CutoverAborted, DecisionRefused)):
            await original(ready.store, ready.plan, Side.TARGET, tell=tell)
    await ready.store.client.delete(ready.store.keys.abort)
    kept = await ready.store.report(levers.FAILED)
    assert kept is not None
    assert kept == await ready.store.report(f"{levers.FAILED}.{kept['switch']}")
    names = [row["step"] for row in kept["timeline"]]
    assert names.index(step) <= next(
        index for index, row in enumerate(kept["timeline"]) if "failed" in row
    )
    assert "undo hold" in names
    assert [row["at"] for row in kept["timeline"]] == sorted(row["at"] for row in kept["timeline"])
    assert await settle(ready.store, ready.plan) == []
    route = await read_route(ready.store)
    assert (route.authority, route.hold, route.sync) == (Side.SOURCE, Hold.NONE, True)
    assert await read_record(ready.store, Side.SOURCE) is None
    assert (
        ready.servers[Side.TARGET].client().get(guard_key(ready.plan.name))
        == b"%d" % route.writer_epoch
    )
    await asyncio.wait_for(ready.app().set("k", step), 10)
    await ready.drained()
    assert (await ready.verify()).divergences == []
    assert (await switch.apply(ready.store, ready.plan, Side.TARGET)).switched


async def test_a_switch_waits_for_its_window_and_says_so(ready: LocalMigration) -> None:
    now_ms = await ready.store.now_ms()
    minute = now_ms // 60_000 % (24 * 60)
    closed = Window(
        opens=f"{(minute + 120) // 60 % 24:02d}:00", closes=f"{(minute + 180) // 60 % 24:02d}:00"
    )
    switching = asyncio.create_task(
        switch.apply(ready.store, ready.plan, Side.TARGET, window=closed)
    )
    await _waits_for(ready, f"the window opens at {closed.opens}")
    await levers.give_up(ready.store, ready.plan, "it waited long enough for a test")
    with pytest.raises(CutoverAborted):
        await switching
    await ready.store.client.delete(ready.store.keys.abort)
    done = await switch.apply(
        ready.store, ready.plan, Side.TARGET, window=Window(quiet_seconds=0.5)
    )
    assert done.switched
    assert "0.5" in str(done.facts["waited_for"]) or "kept up" in str(done.facts["waited_for"])


async def test_a_second_switch_may_not_begin_while_writes_are_held(ready: LocalMigration) -> None:
    await ready.change(hold=Hold.WRITES)
    with pytest.raises(DecisionRefused, match="not settled"):
        await switch.apply(ready.store, ready.plan, Side.TARGET)
    route = await levers.release_hold(ready.store, ready.plan, "nobody else will")
    assert route.hold is Hold.NONE


async def test_a_dead_target_is_left_behind_with_a_list_of_what_stays_there(
    ready: LocalMigration,
) -> None:
    """The target is frozen, so that its data can be looked at afterwards. When it comes back, no
    writer of ours writes there.
    """
    target = ready.servers[Side.TARGET]
    app = ready.app()
    assert (await switch.apply(ready.store, ready.plan, Side.TARGET)).switched
    await app.set("flowed back", 1)
    await ready.drained()
    with pytest.raises(DecisionRefused, match="the target answers"):
        await forced_rollback.force_back(ready.store, ready.plan)
    syncer, task = ready.syncers.pop("syncer-1")
    syncer.stop()
    await task
    await app.set("stays there", 1)
    await ready.flushed()
    target.pause()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forced_rollback, "CONNECT_TIMEOUT_S", 0.3)
            patch.setattr(forced_rollback, "FORCED_ROLLBACK_BETWEEN_S", 0.05)
            keys, total = await dirty_keys(ready.store, ready.plan, 100)
            assert (keys, total) == ([(0, b"stays there")], 1)
            done = await forced_rollback.force_back(ready.store, ready.plan)
        assert "did not answer 3 times" in done["target"]
        assert done["not_settled"] == []
        again = ready.app()
        assert await asyncio.wait_for(again.set("after", 1), 10)
        assert await again.get("flowed back") == b"1"
        assert await again.get("stays there") is None
    finally:
        target.resume()
    route = await read_route(ready.store)
    assert (route.authority, route.journal, route.sync) == (Side.SOURCE, JournalMode.OFF, False)
    await ready.syncer("syncer-2")
    await asyncio.sleep(0.5)
    with target.client() as client:
        assert client.get("stays there") == b"1"
        assert client.get("after") is None


async def test_the_source_is_not_given_up_before_its_time(ready: LocalMigration) -> None:
    store, plan = (
        ready.store,
        ready.plan.model_copy(update={"observation_hours_min": 1.0, "two_people": True}),
    )
    assert "the source is the authority" in await finalise_checks.problems(
        store, plan, PersonIdentity(person="Ada")
    )
    assert (await switch.apply(store, ready.plan, Side.TARGET)).switched
    await ready.drained()
    now_ms = await store.now_ms()
    decided = LedgerEntry(
        at_ms=now_ms,
        phase=Phase.COMMIT,
        event="decided",
        gate=CUTOVER,
        verdict="approve",
        decided_by="Ada",
    )
    await ledger.record(store, decided)
    await ledger.record(
        store,
        LedgerEntry(
            at_ms=now_ms - 1_800_000, phase=Phase.COMMIT, event="switched", verdict="target"
        ),
    )
    assert "no verification of all keys began after the cutover" in str(
        await finalise_checks.problems(store, plan, PersonIdentity(person=" ada"))
    )
    await reconcile(await ready.engine(), Phase.COMMIT, settle_s=0.1)
    found = await finalise_checks.problems(store, plan, PersonIdentity(person=" ada"))
    assert len(found) == 2
    assert "open for another 0.5 h" in found[0]
    assert "somebody else must decide" in found[1]
    assert await finalise_checks.problems(store, ready.plan, PersonIdentity(person="Ada")) == []
    await ledger.record(
        store,
        LedgerEntry(
            at_ms=now_ms - 30 * 3_600_000, phase=Phase.COMMIT, event="switched", verdict="target"
        ),
    )
    await record_pass(store, now_ms - 25 * 3_600_000, {}, 1)
    assert "is 25.0 h old (verification_hours_max)" in str(
        await finalise_checks.problems(store, ready.plan, PersonIdentity(person="Ada"))
    )
    with pytest.raises(DecisionRefused, match="may not be given up"):
        await finalise_checks.check(store, ready.plan, PersonIdentity(person="Ada"))
    await ready.change(sync=False)
    assert "reverse sync is not healthy" in str(
        await finalise_checks.problems(store, ready.plan, PersonIdentity(person="Grace"))
    )
    await ready.change(sync=True)
    stranger = ready.servers[Side.SOURCE].client(client_name="old-cron-job")
    plain = type(stranger)(port=ready.servers[Side.SOURCE].port, client_name="old-cron-job")
    plain.ping()
    listed = await finalise_checks.checklist(store, ready.plan)
    assert any(
        (row["name"], row["kind"], row["connections"]) == ("old-cron-job", "client", 1)
        for row in listed["clients"]
    )
    assert any("old-cron-job" in row["detail"] for row in listed["checklist"])
    assert listed["source"]["keys"] == 1
    assert any(
        "stays fenced" in row["todo"] and row["detail"] == "fenced (acl)"
        for row in listed["checklist"]
    )
    plain.close()


async def test_what_is_collected_names_no_secret_and_what_is_left_is_listed(
    ready: LocalMigration,
) -> None:
    documents = await collect(ready.store, ready.plan)
    secret = ready.servers[Side.SOURCE].address().secret("source")
    assert secret
    assert secret not in str(documents)
    assert {"plan", "ledger", "route", "gateways", "syncers", "phases"} <= set(documents)
    left = await remaining_keys(ready.store, ready.plan)
    assert any("target: key" in line and "epoch" in line for line in left)
