"""The lag that an application sees, of each node where a side is a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from exodus.live.lag_probe import silent
from exodus.live.syncer import Syncer
from exodus.plan.vocabulary import Cutover, Side
from exodus.stack.servers import ServerKind
from tests.support.cluster_gateway import cluster_migration
from tests.support.clusters import ClusterBox
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def test_each_node_is_measured_and_one_that_stalls_is_the_slowest(
    make_server: Callable[..., DatabaseServer],
    make_cluster: Callable[..., ClusterBox],
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """Of two clusters, each master is on a way that is measured."""
    source = make_cluster(ServerKind.REDIS_62, masters=2)
    target = make_cluster(ServerKind.VALKEY_91, masters=2)
    for node in source.nodes:  # the probe has to log in
        with node.client() as client:
            client.acl_setuser("default", enabled=False)
    async with cluster_migration(
        source, target, control_server, tmp_path, cutover=Cutover.GATEWAY
    ) as local:
        await local.gateway()
        syncer = await local.syncer()
        await local.start_live_sync()
        nodes = {
            f"{side} 127.0.0.1:{node.port}"
            for side, box in (("source", source), ("target", target))
            for node in box.masters()
        }

        async def both_late() -> bool:
            return all(spot.why for spot in syncer._probe.spots.values())

        async def measured() -> bool:
            return _measured(syncer) == nodes

        await until(measured, within_s=15, otherwise="a node is not measured")
        facts = syncer.heartbeat(0).facts
        assert (facts.probes_missed, facts.probe_why) == (0, "")
        ways = {
            labels["way"]
            for name, _, labels, _ in syncer.metrics()
            if name == "exodus_syncer_probe_lag_ms_p99"
        }
        assert facts.probe_slowest in ways
        assert {node for way in ways for node in way.split(" to ")} == nodes
        stalled = target.masters()[1]
        with target.patient():  # else the other master finds no majority, and refuses as well
            stalled.pause()

            async def told() -> bool:
                facts = syncer.heartbeat(0).facts
                return (
                    f":{stalled.port}: {silent(Side.TARGET)}" in (facts.probe_why or "")
                    and (facts.probe_lag_ms_p99 or 0) >= 5_000
                )

            await until(told, within_s=30, otherwise="the stalled node is not told")
            # Its batch is late at the other node, too: the one that stalls is still named
            await until(both_late, within_s=30, otherwise="the other node is not late")
            assert (syncer.heartbeat(0).facts.probe_slowest or "").endswith(f":{stalled.port}")

        async def well() -> bool:
            return not syncer.heartbeat(0).facts.probe_why

        await until(well, within_s=40, otherwise="the node is still said to be away")

        async def no_key() -> bool:  # between two measurements
            found = []
            for node in (*source.masters(), *target.masters()):
                with node.client() as client:
                    found += list(client.scan_iter(match="exodus-rehearsal*"))
            return not found

        await until(no_key, within_s=15, otherwise="a key of the probe is left")


def _measured(syncer: Syncer) -> set[str]:
    """Return the nodes on the ways that were measured."""
    probe = syncer._probe
    ways = [spot.name for spot in probe.spots.values() if spot.lag_ms] if probe else []
    return {node for way in ways for node in way.split(" to ")}
