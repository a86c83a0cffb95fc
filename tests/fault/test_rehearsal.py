"""The rehearsal: the switch there and back for sessions of the reserved prefix, while applications
notice nothing.
"""

from __future__ import annotations

import asyncio

import pytest

from exodus.control import journal
from exodus.control.changes import Barrier
from exodus.control.route import read_route
from exodus.cutover import rehearsal, switch
from exodus.cutover.rehearsal import rehearse
from exodus.errors import CutoverAborted, DecisionRefused
from exodus.plan.vocabulary import Side
from tests.support.local_migration import LocalMigration

pytestmark = pytest.mark.fault


async def test_a_rehearsal_loses_nothing_and_moves_nobody_else(local: LocalMigration) -> None:
    await local.gateway()
    app = local.app(single_connection_client=True)
    await app.set("k", 0)
    stop = asyncio.Event()
    moved: set[int] = set()

    async def write() -> int:
        count = 0
        while not stop.is_set():
            count = int(await app.incr("k"))
            moved.update(
                connection.side is Side.TARGET
                for connection in gateway.connections
                if connection.session.state.name == b""
            )
            await asyncio.sleep(0.001)
        return count

    gateway, _ = local.gateways["gw-1"]
    writing = asyncio.create_task(write())
    found = await rehearse(local.store, local.reached())
    stop.set()
    count = await writing
    assert found["lost_writes"] == found["error_count"] == 0
    assert found["acknowledged_writes"] > 0
    assert [row["to"] for row in found["switches"]] == [Side.TARGET, Side.SOURCE]
    assert moved == {False}
    assert local.servers[Side.SOURCE].client().get("k") == b"%d" % count
    with local.servers[Side.TARGET].client() as target:
        assert [key for key in target.keys("*") if not key.startswith(b"exodus:{")] == []
    route = await read_route(local.store)
    assert (route.authority, route.rehearsal_prefix) == (Side.SOURCE, None)


@pytest.mark.parametrize("asks", [(Side.SOURCE, Side.TARGET), (Side.TARGET,), (Side.SOURCE,)])
async def test_each_side_s_own_login_is_said_to_it(
    local: LocalMigration, asks: tuple[Side, ...]
) -> None:
    """Both sides may ask everybody for a password, each for another; nobody's password is sent to
    the other side.
    """
    for side in asks:
        local.servers[side].client().config_set("requirepass", f"everybody's on the {side}")
    with local.servers[Side.TARGET].client() as target:
        target.execute_command("ACL", "LOG", "RESET")
        await local.gateway()
        found = await rehearse(local.store, local.reached())
        assert (found["errors"], found["lost_writes"]) == ([], 0)
        assert found["acknowledged_writes"] > 0
        refused = [entry for entry in target.acl_log() if entry["reason"] == "auth"]
    assert refused == [], "the target was shown the source's password"
    gateway, _ = local.gateways["gw-1"]
    assert dict(gateway.sessions_closed) == {}


async def test_an_application_that_calls_itself_a_rehearsal_is_none(local: LocalMigration) -> None:
    gateway = await local.gateway()
    named = local.app(client_name=local.plan.rehearsal_prefix, single_connection_client=True)
    await named.set("k", 0)
    rehearsing = asyncio.create_task(rehearse(local.store, local.reached()))
    sides = set()
    while not rehearsing.done():
        await named.incr("k")
        sides |= {
            connection.side
            for connection in gateway.connections
            if connection.session.state.name == local.plan.rehearsal_prefix.encode()
        }
    assert (await rehearsing)["lost_writes"] == 0
    assert sides == {Side.SOURCE}
    assert int(await named.get("k")) == int(local.servers[Side.SOURCE].client().get("k") or 0) > 0


async def test_a_cutover_asks_for_a_good_recent_rehearsal_and_a_rollback_does_not(
    local: LocalMigration,
) -> None:
    local.plan = local.plan.model_copy(update={"rehearsal_hours_max": 1.0})
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    with pytest.raises(DecisionRefused, match="never rehearsed"):
        await switch.apply(local.store, local.plan, Side.TARGET)
    # One that fails is kept too: no gateway can hold within no time at all.
    hurried = local.plan.model_copy(update={"hold_seconds_max": 1e-9})
    with pytest.raises(CutoverAborted):
        await rehearse(local.store, local.reached(hurried))
    with pytest.raises(DecisionRefused, match="did not go well: a gateway could not hold"):
        await switch.apply(local.store, local.plan, Side.TARGET)
    # Live sync is on: it must not put an older state of the source over what the rehearsal writes
    # at the target.
    found = await rehearse(local.store, local.reached())
    assert (found["lost_writes"], found["error_count"]) == (0, 0)
    assert await local.store.report("rehearsal") == found
    await local.store.save_report("rehearsal", {**found, "at_ms": found["at_ms"] - 2 * 3_600_000})
    with pytest.raises(DecisionRefused, match=r"2\.0 h old"):
        await switch.apply(local.store, local.plan, Side.TARGET)
    await local.store.save_report("rehearsal", found)
    done = await switch.apply(local.store, local.plan, Side.TARGET)
    assert "rehearsed 0.0 h ago" in str(done.facts["rehearsal"])
    await local.store.client.delete(local.store.keys.report("rehearsal"))
    assert (await switch.apply(local.store, local.plan, Side.SOURCE)).switched


async def test_it_is_rehearsed_again_beside_live_sync_of_a_busy_application(
    local: LocalMigration,
) -> None:
    """The prefix is held and flushed, though the rest of the journal never is; and live sync, which
    goes one way, carries nothing of it back.
    """
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    stop = asyncio.Event()

    async def write(number: int) -> None:
        app = local.app()
        while not stop.is_set():
            await app.mset({f"busy:{number}:{at}": number for at in range(10)})

    writing = [asyncio.create_task(write(number)) for number in range(4)]
    found = await rehearse(local.store, local.reached())
    stop.set()
    await asyncio.gather(*writing)
    assert (found["lost_writes"], found["errors"]) == (0, [])
    await local.drained()
    assert (await local.verify()).divergences == []


async def test_a_flush_that_live_sync_has_not_come_to_is_waited_for(local: LocalMigration) -> None:
    """It will mark every key, the rehearsal's too, and would carry an older state over what is
    written at the other side by then.
    """
    await local.start_live_sync()  # which nobody does here
    hurried = local.plan.model_copy(update={"hold_seconds_max": 0.2})
    await rehearsal._synced(local.store, hurried)
    await journal.append(local.store, [], local.plan.partitions, [Barrier("flushall")])
    with pytest.raises(CutoverAborted, match="did not come to the rehearsal's keys"):
        await rehearsal._synced(local.store, hurried)
