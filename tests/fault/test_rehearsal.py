"""The rehearsal: the switch there and back for sessions of the reserved prefix. Applications notice
nothing.
"""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from exodus import registration
from exodus.control import journal, registry
from exodus.control.changes import Barrier, Key
from exodus.control.gaps import open_gaps
from exodus.control.ledger import REHEARSAL
from exodus.control.route import read_route
from exodus.cutover import switch
from exodus.cutover.rehearsal_report import PLAN_FIELDS, REPORT, check_rehearsal, fingerprint
from exodus.errors import CutoverAborted, DecisionRefused
from exodus.plan.gate_checks import GateChecks
from exodus.plan.vocabulary import Side
from exodus.rehearsal.clients import names
from exodus.rehearsal.copying import ReservedSync
from exodus.rehearsal.fence import RehearsedFence
from exodus.rehearsal.rehearse import rehearse
from exodus.rehearsal.steps import RehearsedSwitch, live_sync_done
from exodus.topology.endpoint import Endpoint
from tests.support.full import FULL
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
    assert {row["outcome"] for row in found["switches"]} == {"switched"}
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
    """Each side may ask everybody for a password of its own. No password is sent to the other
    side.
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
    local.plan = local.reached().model_copy(update={"rehearsal_hours_max": 1.0})
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    with pytest.raises(DecisionRefused, match="never rehearsed"):
        await switch.apply(local.store, local.plan, Side.TARGET)
    # One that fails is kept too: no gateway can hold within no time at all.
    hurried = local.plan.model_copy(update={"hold_seconds_max": 1e-9})
    with pytest.raises(CutoverAborted):
        await rehearse(local.store, hurried)
    with pytest.raises(DecisionRefused, match="did not go well: not every gateway could hold"):
        await switch.apply(local.store, local.plan, Side.TARGET)
    # Live sync is on: it must not put an older state of the source over what the rehearsal writes
    # at the target.
    found = await rehearse(local.store, local.plan)
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
    """The prefix is held and flushed, although the rest of the journal never is. Live sync goes one
    way, and carries nothing of it back.
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
    """The flush will mark every key, the rehearsal's too. An older state would then replace what
    the other side has by then.
    """
    await local.start_live_sync()  # which nobody does here
    hurried = local.plan.model_copy(update={"hold_seconds_max": 0.2})

    def held() -> RehearsedSwitch:
        return RehearsedSwitch(local.store, hurried, Side.TARGET, before, held_at=time.monotonic())

    before = await read_route(local.store)
    await live_sync_done(held())
    await journal.append(local.store, [], local.plan.partitions, [Barrier("flushall")])
    with pytest.raises(CutoverAborted, match="did not come to the rehearsal's keys"):
        await live_sync_done(held())


async def test_a_gateway_that_dies_in_a_round_loses_nothing(local: LocalMigration) -> None:
    """The gateway is the rehearsal's own: no session of an application ends."""
    gateway = await local.gateway()
    app = local.app(single_connection_client=True)
    await app.set("k", 0)
    checks = GateChecks(rehearsal_rounds=2)
    plan = local.reached().model_copy(update={"test_checks": checks})
    await local.store.save_plan(plan)
    found = await rehearse(local.store, plan)
    assert (found["ok"], found["lost_writes"], found["resurrected_writes"]) == (True, 0, 0), found
    assert found["killed"]["done"]
    assert found["killed"]["acknowledged_writes"] > 0
    assert sum(bool(row["killed"]) for row in found["switches"]) == 1
    assert await app.incr("k") == 1
    assert dict(gateway.sessions_closed) == {}
    beats = await registry.heartbeats(local.store, "gateway")
    assert [beat.process for beat in beats] == ["gw-1"]
    assert await open_gaps(local.store) == {}
    for box in local.servers.values():
        with box.client(decode_responses=True) as side:
            assert [key for key in side.keys("*") if key != "k"] == []
            assert not [user for user in side.acl_users() if user.startswith("exodus-rehearsal")]


@pytest.mark.timeout(900)
@pytest.mark.skipif(not FULL, reason="the long form")
async def test_a_gateway_may_die_at_any_step(local: LocalMigration) -> None:
    await local.gateway()
    plan = local.reached().model_copy(update={"test_checks": GateChecks(rehearsal_rounds=1)})
    await local.store.save_plan(plan)
    died = set()
    for seed in range(30):
        found = await rehearse(local.store, plan, seed=seed)
        assert found["ok"], (seed, found)
        if found["killed"]["done"]:
            died.add((found["killed"]["to"], found["killed"]["step"]))
    assert len(died) > 8


async def test_a_lost_and_a_resurrected_write_are_found(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rehearsal that cannot fail proves nothing. Here a drain copies nothing."""
    await local.gateway()

    async def nothing(self: ReservedSync, keys: set[bytes]) -> None:
        del self, keys

    monkeypatch.setattr(ReservedSync, "_copy", nothing)
    monkeypatch.setattr(ReservedSync, "finish", _nothing_left)
    checks = GateChecks(rehearsal_rounds=4, rehearsal_kill=False)
    plan = local.reached().model_copy(update={"test_checks": checks})
    found = await rehearse(local.store, plan)
    assert not found["ok"]
    assert found["lost_writes"] > 0
    assert found["resurrected_writes"] > 0
    assert "lost writes" in found["why"]


async def _nothing_left(self: ReservedSync, *, everything: bool = False) -> list[Key]:
    del everything
    self._ending.set()
    return []


async def test_a_spot_check_finds_a_key_that_was_not_carried(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    await local.gateway()

    async def nothing(self: ReservedSync, keys: set[bytes]) -> None:
        del self, keys

    monkeypatch.setattr(ReservedSync, "_copy", nothing)
    with pytest.raises(CutoverAborted, match="keys of the rehearsal differ between the sides"):
        await rehearse(local.store, local.reached())
    assert (await read_route(local.store)).rehearsal_prefix is None


async def test_a_fence_that_does_not_hold_is_found(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    await local.gateway()
    prepare = RehearsedFence.prepare

    async def without_effect(self: RehearsedFence, *given: object) -> None:
        await prepare(self, *given)  # type: ignore[arg-type]
        self._commands = [("PING",)]

    monkeypatch.setattr(RehearsedFence, "prepare", without_effect)
    with pytest.raises(CutoverAborted, match="the fence on the source does not hold"):
        await rehearse(local.store, local.reached())
    report = await local.store.report(REPORT)
    assert report is not None
    assert "does not hold" in report["why"]


async def test_what_a_dead_rehearsal_left_is_removed_without_a_scan(local: LocalMigration) -> None:
    """Applications would notice a SCAN of a production server."""
    await local.gateway()
    for box in local.servers.values():
        box.client().mset(dict.fromkeys(names("exodus-rehearsal:killed:"), 1))
        box.client().execute_command("ACL", "SETUSER", "exodus-rehearsal-0011223344556677")
        box.client().config_resetstat()
    assert (await rehearse(local.store, local.reached()))["ok"]
    for box in local.servers.values():
        assert box.client().keys("*") == []
        assert (
            "exodus-rehearsal-0011223344556677" not in box.client(decode_responses=True).acl_users()
        )
        assert "cmdstat_scan" not in box.client().info("commandstats")


@pytest.mark.parametrize(
    ("side", "change", "named"),
    [
        (Side.TARGET, ("CONFIG", "SET", "maxmemory", "100000000"), "target.maxmemory"),
        (Side.TARGET, ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"), "maxmemory-policy"),
        (Side.SOURCE, ("CONFIG", "SET", "timeout", "77"), "source.timeout"),
        (None, ("hold_seconds_max", 7.0), "plan.hold_seconds_max"),
        (None, ("version", "valkey 8.0.0"), "target.version: valkey 8.0.0, now valkey 9"),
        (None, (), ""),
    ],
)
async def test_a_rehearsal_of_something_else_does_not_count(
    local: LocalMigration, side: Side | None, change: tuple, named: str
) -> None:
    """Commit names what changed since."""
    plan = local.reached().model_copy(update={"rehearsal_hours_max": 1.0})
    legs = [await Endpoint(each, plan.address(each)).connect(name="exodus-test") for each in Side]
    report = {"at_ms": await local.store.now_ms(), "ok": True, "stall_ms_max": 1.0}
    report["fingerprint"] = await fingerprint(plan, *legs)
    if side is not None:
        with local.servers[side].client() as client:
            client.execute_command(*change)
    elif change[:1] == ("version",):
        report["fingerprint"]["target.version"] = change[1]
    elif change:
        plan = plan.model_copy(update={change[0]: change[1]})
    await local.store.save_report(REPORT, report)
    if named:
        with pytest.raises(DecisionRefused, match="was of something else") as caught:
            await check_rehearsal(local.store, plan, *legs)
        assert named in caught.value.why
    else:
        assert "rehearsed" in await check_rehearsal(local.store, plan, *legs)
    assert not re.search(r"[0-9]{9}", str(report["fingerprint"].get("target.maxmemory")))
    for leg in legs:
        await leg.close()


def test_what_voids_a_rehearsal_is_in_its_fingerprint() -> None:
    voids = {name for name, what in registration._VOIDS.items() if REHEARSAL in what}
    assert voids <= set(PLAN_FIELDS)
