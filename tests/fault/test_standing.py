"""The switch itself checks again what a person approved: when it begins, before it holds writes,
and before the authority changes.
"""

from __future__ import annotations

import asyncio

import orjson
import pytest

from exodus.control.freshness import read_freshness
from exodus.control.route import read_route
from exodus.cutover import levers, preconditions, switch
from exodus.cutover.context import Switch
from exodus.cutover.preconditions import (
    Approved,
    check_fresh,
    plan_digest,
    wait_until_fresh,
)
from exodus.errors import CutoverAborted, DecisionRefused
from exodus.plan.vocabulary import Hold, Side
from exodus.verify.reconcile import reconcile
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

pytestmark = pytest.mark.fault

_CODE = (
    "#!lua name=shop\nredis.register_function('price', function(keys, args) return "
    "redis.call('INCRBY', keys[1], args[1]) end)"
)
_NEWER = _CODE.replace("INCRBY", "DECRBY")


@pytest.fixture
async def ready(modern: LocalMigration) -> LocalMigration:
    for box in modern.servers.values():
        box.client().function_flush()
    await modern.gateway()
    await modern.syncer()
    await modern.start_live_sync()
    await modern.app().set("k", 1)
    await modern.drained()
    return modern


async def _open_gap(local: LocalMigration) -> None:
    await local.store.client.hset(
        local.store.keys.gap, "planted", orjson.dumps({"at_ms": 0, "why": "planted"})
    )


async def _load_newer(local: LocalMigration) -> None:
    local.servers[Side.SOURCE].client().function_load(_NEWER, replace=True)


async def _load_on_the_target(local: LocalMigration) -> None:
    local.servers[Side.TARGET].client().function_load(_NEWER, replace=True)


async def _other_plan(local: LocalMigration) -> None:
    await local.store.save_plan(local.plan.model_copy(update={"slices": 2 * local.plan.slices}))


async def _forget_the_pass(local: LocalMigration) -> None:
    await local.store.client.delete(local.store.keys.verified_pass)


async def _verified(local: LocalMigration) -> None:
    await reconcile(await local.engine(), "migrate", settle_s=0.1)

    async def fresh() -> bool:  # once every lane counts from that pass
        return (await read_freshness(local.store, local.plan.partitions)).share == 1.0

    await until(fresh, within_s=15, otherwise="the verification never counted")


async def _approved(local: LocalMigration) -> Approved:
    return Approved(await plan_digest(local.store), fresh=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_open_gap, "open gap"),
        (_other_plan, "the plan was changed"),
        (_forget_the_pass, "too little is verified"),
    ],
    ids=["gap", "plan", "freshness"],
)
async def test_what_changes_while_a_switch_is_postponed_is_seen_when_it_goes_on(
    ready: LocalMigration, change, text: str
) -> None:  # type: ignore[no-untyped-def]
    await _verified(ready)
    await levers.postpone(ready.store, by="Ada", why="lunch")
    switching = asyncio.create_task(
        switch.apply(ready.store, ready.plan, Side.TARGET, approved=await _approved(ready))
    )

    async def waits() -> bool:
        assert not switching.done(), switching.exception()
        return bool((await ready.store.report(levers.NOW) or {}).get("waits_for"))

    await until(waits, within_s=15, otherwise="the switch never waited")
    await change(ready)
    await ready.store.client.delete(ready.store.keys.postponed)
    with pytest.raises(DecisionRefused, match=text):
        await switching
    assert (await read_route(ready.store)).authority is Side.SOURCE


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_open_gap, "open gap"),
        (
            _load_on_the_target,
            "beside the keys must be mended before the cutover: function library shop",
        ),
        (_other_plan, "the plan was changed"),
    ],
    ids=["gap", "functions", "plan"],
)
async def test_what_changes_under_the_hold_is_seen_before_the_authority_changes(
    ready: LocalMigration, change, text: str
) -> None:  # type: ignore[no-untyped-def]
    ready.servers[Side.SOURCE].client().function_load(_CODE)
    await _verified(ready)
    loop, doing = asyncio.get_running_loop(), list[asyncio.Future[None]]()

    def tell(_: Switch, step: switch.Step) -> None:
        if step.name == "drain":  # writes are held
            doing.append(asyncio.ensure_future(change(ready), loop=loop))

    with pytest.raises(DecisionRefused, match=text):
        await switch.apply(
            ready.store, ready.plan, Side.TARGET, approved=await _approved(ready), tell=tell
        )
    await asyncio.gather(*doing)
    route = await read_route(ready.store)
    assert (route.authority, route.hold) == (Side.SOURCE, Hold.NONE)
    await ready.app().set("k", 2)


async def test_recent_writes_are_waited_for_and_nothing_else(ready: LocalMigration) -> None:
    await _verified(ready)
    for syncer, task in ready.syncers.values():  # nothing verifies what is written now
        syncer.stop()
        await task
    await ready.app().set("k", 2)
    await ready.flushed()
    with pytest.raises(DecisionRefused, match=r"0.00 % verified, 1 dirty"):
        await check_fresh(ready.store, ready.plan)
    waiting = asyncio.create_task(wait_until_fresh(ready.store, ready.plan))
    await ready.syncer("another")
    await waiting
    assert (await check_fresh(ready.store, ready.plan)).share == 1.0


async def test_what_time_does_not_mend_is_not_waited_for(
    ready: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preconditions, "FRESH_WAIT_S", 300.0)
    await _verified(ready)
    for change in (_open_gap, _forget_the_pass):
        await change(ready)
        await asyncio.wait_for(wait_until_fresh(ready.store, ready.plan), 60)
        with pytest.raises(DecisionRefused, match="too little is verified"):
            await check_fresh(ready.store, ready.plan)
        await ready.store.client.delete(ready.store.keys.gap)


async def test_writes_that_nothing_verifies_are_not_waited_for_without_end(
    ready: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preconditions, "FRESH_WAIT_S", 1.0)
    await _verified(ready)
    for syncer, task in ready.syncers.values():
        syncer.stop()
        await task
    await ready.app().set("k", 2)
    await ready.flushed()
    await asyncio.wait_for(wait_until_fresh(ready.store, ready.plan), 60)
    with pytest.raises(DecisionRefused, match="1 dirty"):
        await check_fresh(ready.store, ready.plan)


async def test_a_library_that_was_loaded_while_the_form_waited_is_carried_by_the_switch(
    ready: LocalMigration,
) -> None:
    ready.servers[Side.SOURCE].client().function_load(_CODE)
    await _load_newer(ready)
    assert (await switch.apply(ready.store, ready.plan, Side.TARGET)).switched
    assert await ready.app().fcall("price", 1, "priced", 5) == -5


async def test_a_control_store_that_is_restarted_under_the_hold_gives_the_switch_up(
    ready: LocalMigration,
) -> None:
    def tell(at: Switch, step: switch.Step) -> None:
        if step.name == "fence":
            at.store_run = "another"  # its INFO from before the restart

    with pytest.raises(CutoverAborted, match="restarted while writes were held"):
        await switch.apply(ready.store, ready.plan, Side.TARGET, tell=tell)
    assert (await read_route(ready.store)).authority is Side.SOURCE
