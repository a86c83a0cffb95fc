"""The rehearsal where sides are clusters: the switch there and back through the listeners, for
sessions on keys of every node.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis.asyncio as redis

from exodus.control import registry
from exodus.control.gaps import open_gaps
from exodus.control.route import read_route
from exodus.cutover.fence_methods import Command
from exodus.cutover.rehearsal_report import REPORT, check_rehearsal
from exodus.errors import CutoverAborted, DecisionRefused
from exodus.plan.gate_checks import GateChecks
from exodus.plan.vocabulary import Cutover, Feed, Side
from exodus.rehearsal import clients, steps
from exodus.rehearsal import rehearse as rehearsing
from exodus.rehearsal.fence_cluster import RehearsedClusterFence
from exodus.rehearsal.rehearse import rehearse
from exodus.rehearsal.steps import RehearsedSwitch
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from tasks.acceptance import judge_rehearsal
from tests.support.cluster_gateway import cluster_migration
from tests.support.clusters import ClusterBox
from tests.support.local_migration import LocalMigration
from tests.support.pair_of_clusters import Pair, setting
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault
_CHECKS = GateChecks(rehearsal_rounds=1, rehearsal_kill=False)


@asynccontextmanager
async def migration(
    source: ClusterBox | DatabaseServer,
    target: ClusterBox | DatabaseServer,
    control: DatabaseServer,
    folder: Path,
    **more: object,
) -> AsyncIterator[LocalMigration]:
    """A migration with one gateway."""
    fields = {"cutover": Cutover.GATEWAY, "test_checks": _CHECKS, **more}
    async with cluster_migration(source, target, control, folder, **fields) as local:
        await local.gateway()
        yield local


def left_on(box: ClusterBox) -> set[str]:
    """Return Exodus's keys, and the users of rehearsals, on all nodes."""
    found: set[str] = set()
    for node in box.nodes:
        with node.client(decode_responses=True) as client:
            found |= set(client.scan_iter(match="exodus*", count=10_000))
            found |= {user for user in client.acl_users() if user.startswith("exodus-rehearsal")}
    return found


async def test_every_node_is_written_both_ways_and_a_dead_gateway_loses_nothing(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """Applications notice nothing of it, and nothing is left of it."""
    checks = GateChecks(rehearsal_rounds=2)
    async with migration(
        pair.source, pair.target, control_server, tmp_path, test_checks=checks
    ) as local:
        gateway, _ = local.gateways["gw-1"]
        app = redis.RedisCluster(host="127.0.0.1", port=local.port)
        await app.set("k", 0)
        stop, sides = asyncio.Event(), set()

        async def write() -> int:
            count = 0
            while not stop.is_set():
                count = int(await app.incr("k"))
                sides.update(
                    each.side for each in gateway.connections if each.session.state.name == b""
                )
                await asyncio.sleep(0.001)
            return count

        writing = asyncio.create_task(write())
        found = await rehearse(local.store, local.plan, seed=3)
        stop.set()
        count = await writing
        assert await app.get("k") == b"%d" % count
        await app.aclose()
        assert found["ok"], found
        assert found["killed"]["done"], found["killed"]
        assert sides == {Side.SOURCE}
        whole = [row for row in found["switches"] if not row["killed"]]
        assert {(row["to"], row["outcome"]) for row in whole} == {
            (Side.TARGET, "switched"),
            (Side.SOURCE, "switched"),
        }
        fences = {row["to"]: row["fence"] for row in whole}
        assert fences[Side.TARGET].endswith("on each of 3 masters")
        assert fences[Side.SOURCE].endswith("on each of 2 masters and 2 replicas")
        rows = {row.check: row for row in judge_rehearsal(found)}
        assert all(row.ok for row in rows.values()), rows
        written = rows["the rehearsal wrote to every node"]
        assert written.detail == "3 of the source, 2 of the target"
        assert left_on(pair.source) == left_on(pair.target) == set()
        assert await open_gaps(local.store) == {}
        beats = await registry.heartbeats(local.store, "gateway")
        assert [beat.process for beat in beats] == ["gw-1"]
        route = await read_route(local.store)
        assert (route.authority, route.rehearsal_prefix) == (Side.SOURCE, None)
        await _counts_for_what_is_there(local, pair, found)


async def _counts_for_what_is_there(
    local: LocalMigration, pair: Pair, report: dict[str, object]
) -> None:
    """A cutover asks for it. One node with another setting, or one master more, is another side."""
    plan = local.plan.model_copy(update={"rehearsal_hours_max": 1.0})
    ends = [Endpoint(side, plan.address(side)) for side in Side]
    async with (
        await ends[0].connect(name="test") as source,
        await ends[1].connect(name="test") as target,
    ):
        assert "rehearsed 0.0 h ago" in await check_rehearsal(local.store, plan, source, target)
        with (
            setting(pair.target.masters()[1], "maxmemory-policy", "allkeys-lru"),
            pytest.raises(DecisionRefused, match=r"changed since: target\.maxmemory-policy"),
        ):
            await check_rehearsal(local.store, plan, source, target)
        other = {**report["fingerprint"], "source.masters": "4"}  # type: ignore[dict-item]
        await local.store.save_report(REPORT, {**report, "fingerprint": other})
        with pytest.raises(DecisionRefused, match=r"source\.masters: 4, now 3"):
            await check_rehearsal(local.store, plan, source, target)
        await local.store.drop_report(REPORT)
        with pytest.raises(DecisionRefused, match="never rehearsed"):
            await check_rehearsal(local.store, plan, source, target)


async def test_what_goes_wrong_on_one_node_is_found_and_the_node_is_named(
    pair: Pair,
    control_server: DatabaseServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with migration(
        pair.source, pair.target, control_server, tmp_path, hold_seconds_max=10.0
    ) as local:
        with monkeypatch.context() as patch:
            await _a_node_that_nobody_wrote_to(local, pair, patch)
        for side, box, of_replica in (
            (Side.SOURCE, pair.source, False),
            (Side.TARGET, pair.target, True),
        ):
            with monkeypatch.context() as patch:
                await _a_fence_that_does_not_hold(local, side, box, patch, of_replica=of_replica)
        with monkeypatch.context() as patch:
            await _a_reshard_in_the_middle(local, pair, patch)
        assert left_on(pair.source) == left_on(pair.target) == set()
        assert (await read_route(local.store)).rehearsal_prefix is None


async def _a_node_that_nobody_wrote_to(
    local: LocalMigration, pair: Pair, patch: pytest.MonkeyPatch
) -> None:
    def of_one_slot(prefix: str, session: int, slots: Sequence[int]) -> list[str]:
        del slots
        return [f"{prefix}{{a}}counter:{session}"]

    patch.setattr(clients, "_counters", of_one_slot)
    patch.setattr(clients, "_removed", lambda prefix, step: f"{prefix}{{a}}removed:{step % 9}")
    patch.setattr(clients, "_jobs", lambda prefix: f"{prefix}{{a}}jobs")
    patch.setattr(rehearsing, "REHEARSAL_WITHIN_S", 0.2)
    found = await rehearse(local.store, local.plan)
    assert (found["ok"], found["error_count"], found["lost_writes"]) == (False, 0, 0)
    assert "silent nodes" in found["why"]
    (row,) = [each for each in judge_rehearsal(found) if not each.ok]
    assert row.check == "the rehearsal wrote to every node"
    owner = pair.target.master_of("{a}").port
    (other,) = [node.port for node in pair.target.masters() if node.port != owner]
    assert f"127.0.0.1:{other} of the target" in row.detail
    assert f"127.0.0.1:{owner} " not in row.detail


async def _a_fence_that_does_not_hold(
    local: LocalMigration,
    side: Side,
    box: ClusterBox,
    patch: pytest.MonkeyPatch,
    *,
    of_replica: bool,
) -> None:
    master = box.masters()[1]
    node = box.replicas_of(master)[0] if of_replica else master
    change = RehearsedClusterFence.change

    async def not_there(self: RehearsedClusterFence, server: str, commands: list[Command]) -> bool:
        if server == f"127.0.0.1:{node.port}":
            commands = [("PING",)]
        return await change(self, server, commands)

    patch.setattr(RehearsedClusterFence, "change", not_there)
    with pytest.raises(CutoverAborted, match=f"fence on the {side} does not hold") as failed:
        await rehearse(local.store, local.plan)
    assert f"127.0.0.1:{node.port}" in failed.value.why


async def _a_reshard_in_the_middle(
    local: LocalMigration, pair: Pair, patch: pytest.MonkeyPatch
) -> None:
    """It gives up as a cutover would: by the same check, right before the route changes."""
    closing = steps._close_epoch
    before = pair.target.owner_of(0)
    others = [node for node in pair.target.masters() if node is not before]

    async def then_a_reshard(switch: RehearsedSwitch) -> None:
        await asyncio.to_thread(pair.target.move_slot, 3, others[0])
        await closing(switch)

    patch.setattr(steps, "_close_epoch", then_a_reshard)
    with pytest.raises(CutoverAborted, match="are not what the switch prepared for"):
        await rehearse(local.store, local.plan)
    report = await local.store.report(REPORT)
    assert report is not None
    assert not report["ok"]
    await asyncio.to_thread(pair.target.reshard, range(3, 4), before)


async def test_a_move_from_one_server_to_a_cluster_is_rehearsed_behind_the_facade(
    pair: Pair,
    make_server: Callable[..., DatabaseServer],
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    source = make_server(ServerKind.REDIS_62)
    async with migration(
        source,
        pair.target,
        control_server,
        tmp_path,
        # Clients are told ports that only they reach.
        listen={"facade": "cluster", "advertise": "elsewhere.test:30400"},
        feed=Feed.TRACKING,
    ) as local:
        found = await rehearse(local.store, local.plan)
        assert found["ok"], found
        assert found["clusters"] == [Side.TARGET]
        fences = [row["fence"] for row in found["switches"]]
        assert "masters" not in fences[0]
        assert fences[1].endswith("on each of 2 masters and 2 replicas")
        with source.client() as client:
            assert client.keys("*") == []
        assert left_on(pair.target) == set()
