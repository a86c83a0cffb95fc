"""Pre-test and Analyze's trials where sides are clusters: each row with a defect of one node."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import redis.asyncio

from exodus.copy.guard import set_writer_epoch
from exodus.cutover.preflight import check_all
from exodus.errors import SourceError
from exodus.observe import ramp, traffic_copy
from exodus.observe.capture import Capture
from exodus.plan.vocabulary import Cutover, Side
from exodus.topology.endpoint import Endpoint
from tasks import probe, profile, shapes, sizing, trials
from tasks.context import Json, Opened
from tasks.proofs import judge_copy, judge_mix
from tests.fault.test_pretest import watched
from tests.support.cluster_gateway import cluster_migration
from tests.support.packets import Recorder, pcap
from tests.support.pair_of_clusters import Pair, setting
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


@asynccontextmanager
async def migration(
    pair: Pair, control: DatabaseServer, folder: Path, **more: object
) -> AsyncIterator[Opened]:
    fields = {"cutover": Cutover.GATEWAY, **more}
    async with cluster_migration(pair.source, pair.target, control, folder, **fields) as local:
        yield Opened(local.plan, local.store, local.plan)


def red(checks: list[Json]) -> dict[str, Json]:
    return {row["check"]: row for row in checks if not row["ok"]}


async def findings(it: Opened) -> dict[str, str]:
    """Return what is not ok of the checks before a migration, by check."""
    found = await check_all(it.plan, it.store)
    return {each.check: each.what for each in found if each.severity != "ok"}


@asynccontextmanager
async def shopping(pair: Pair) -> AsyncIterator[None]:
    """A cluster client that uses the source directly."""
    stop = asyncio.Event()

    async def work() -> None:
        client, number = (
            redis.asyncio.RedisCluster(host="127.0.0.1", port=pair.source.nodes[0].port),
            0,
        )
        async with client:
            while not stop.is_set():
                number += 1
                await client.set(f"order:{number % 50}", "x" * 100, ex=60)
                await client.hset(f"cart:{number % 20}", "item", number)
                await asyncio.sleep(0.003)

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        stop.set()
        await task


async def test_every_master_is_watched_and_the_mix_is_tried_on_every_master(
    pair: Pair,
    control_server: DatabaseServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ramp, "RAMP_STEP_S", 0.2)
    async with migration(pair, control_server, tmp_path) as it:
        assert await findings(it) == {}
        before = await inspect.unwrap(probe.fingerprint_source.fn)(it)
        async with shopping(pair):
            report = await watched(it, 1.0)
        assert red(judge_copy(report)) == {}
        assert report["seen_share"] == 1.0
        assert {row["node"] for row in report["nodes"]} == {
            f"127.0.0.1:{node.port}" for node in pair.source.masters()
        }
        assert all(row["requests"] > 10 for row in report["nodes"])
        rows = {row["command"]: row for row in report["reconciled"]}
        assert rows["SET"]["seen"] == rows["SET"]["executed"] > 20
        for node in pair.target.masters():
            with node.client() as client:
                client.config_resetstat()
        tried = await inspect.unwrap(trials.try_mix.fn)(it)
        assert red(judge_mix(tried)) == {}
        for node in pair.target.masters():
            with node.client() as client:
                assert client.info("commandstats")["cmdstat_set"]["calls"] > 2
                assert client.dbsize() == 0
        assert red(await inspect.unwrap(probe.unchanged.fn)(it, before, {})) == {}
        third = pair.source.masters()[2]
        with setting(third, "maxclients", "9000"):
            changed = red(await inspect.unwrap(probe.unchanged.fn)(it, before, {}))
        (row,) = [each for each in changed.values() if each["level"] == "must"]
        assert row["detail"] == f"maxclients of 127.0.0.1:{third.port}"


async def test_a_node_whose_traffic_is_not_copied_is_named(
    pair: Pair,
    control_server: DatabaseServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By packets, where a port was left out; and by MONITOR, where one node refuses it."""
    first, second, third = pair.source.masters()
    folder = tmp_path / "captured"
    folder.mkdir()
    # Reads that nobody captures are waited for.
    monkeypatch.setattr(traffic_copy, "Capture", partial(Capture, late_s=0.3))
    file = folder / "1.pcap"
    async with migration(pair, control_server, tmp_path, capture_folder=folder) as it:
        with Recorder(first.port) as one, Recorder(second.port) as two:
            file.write_bytes(pcap([]))
            stop = asyncio.Event()

            async def write() -> None:
                done = [0, 0]
                while not stop.is_set():
                    with file.open("ab") as out:
                        for at, recorder in enumerate((one, two)):
                            packets = recorder.packets[done[at] :]
                            done[at] += len(packets)
                            out.write(pcap(packets)[24:])
                    await asyncio.sleep(0.05)

            writing = asyncio.create_task(write())
            async with shopping(pair):
                report = await watched(it, 1.0)
            stop.set()
            await writing
        found = red(judge_copy(report))
        row = found["the copy shows the reads that Exodus sent to the source"]
        assert row["detail"].startswith("0 of ")
        assert row["detail"].endswith(f"reads of 127.0.0.1:{third.port}")
        counted = found["the copy shows what the source executed"]
        assert "several masters" in counted["detail"]
        assert counted["level"] == "should"
    with second.client() as client:
        client.execute_command("ACL", "SETUSER", "exodus", "-monitor")
    try:
        async with migration(pair, control_server, tmp_path) as it:
            with pytest.raises(SourceError, match="refuses MONITOR"):
                await watched(it, 0.5)
    finally:
        with second.client() as client:
            client.execute_command("ACL", "SETUSER", "exodus", "+@all")


_SETTINGS = [
    ("maxmemory", "900000000"),
    ("maxmemory-policy", "allkeys-lru"),
    ("notify-keyspace-events", "AKE"),
    ("cluster-require-full-coverage", "no"),
    ("maxclients", "9000"),
    ("appendonly", "yes"),
    ("timeout", "100"),
]


@pytest.mark.parametrize("side", list(Side))
async def test_a_node_that_is_not_like_the_others_is_named(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path, side: Side
) -> None:
    box = pair.source if side is Side.SOURCE else pair.target
    master = box.masters()[1]
    other = (box.replicas_of(master) or box.masters())[0]  # a replica, where there are some
    async with migration(pair, control_server, tmp_path) as it:
        for number, (name, value) in enumerate(_SETTINGS):
            node = other if number % 2 else master
            with setting(node, name, value):
                found = await findings(it)
            said = found.get(f"{name} of the nodes of the {side}", "")
            assert f"{value} on 127.0.0.1:{node.port}" in said, (name, found)
        with other.client() as client:
            client.execute_command("ACL", "SETUSER", "shop", "on", ">p", "~*", "+@all")
        try:
            found = await findings(it)
        finally:
            with other.client() as client:
                client.acl_deluser("shop")
        (said,) = [what for check, what in found.items() if check.startswith("users of the nodes")]
        assert said == f"shop: other rules on 127.0.0.1:{other.port}"
        with master.client() as client:
            client.execute_command("ACL", "SETUSER", "exodus", "-config|get", "-restore")
        try:
            found = await findings(it)
        finally:
            with master.client() as client:
                client.execute_command("ACL", "SETUSER", "exodus", "+@all")
        assert f"127.0.0.1:{master.port}" in found[f"what the nodes of the {side} tell"]
        assert "may not run" in found[f"rights on the {side}"]
        assert await findings(it) == {}


async def test_less_room_and_another_coverage_of_the_target_are_found(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    with pair.source.client() as client:
        for number in range(300):
            client.set(f"big:{number}", "v" * 30_000)
    async with migration(pair, control_server, tmp_path) as it:
        second = pair.target.masters()[1]
        with setting(second, "maxmemory", "5000000"):
            said = (await findings(it))["memory of each node of the target"]
        assert f"127.0.0.1:{second.port} allows 5,000,000 bytes" in said
        assert str(pair.target.masters()[0].port) not in said
        for node in pair.source.nodes:
            with node.client() as client:
                client.config_set("cluster-require-full-coverage", "no")
        try:
            found = await findings(it)
        finally:
            for node in pair.source.nodes:
                with node.client() as client:
                    client.config_set("cluster-require-full-coverage", "yes")
        assert list(found) == ["cluster-require-full-coverage"]


async def test_guards_that_an_earlier_phase_left_are_not_keys_of_others(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """A cluster has more than a thousand of them."""
    async with migration(pair, control_server, tmp_path) as it:
        await set_writer_epoch(Endpoint(Side.TARGET, it.plan.target), it.plan.name, 1)
        assert await findings(it) == {}
        with pair.target.client() as client:
            client.set("somebody's", "v")
        said = (await findings(it))["empty target"]
        assert said == "the target holds 1 keys in 1 database(s)"


async def test_analyze_tries_requests_scripts_and_a_sample_on_every_master(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    with pair.source.client() as client:
        for number in range(300):
            client.set(f"order:{number}", "v" * 100)
    async with migration(pair, control_server, tmp_path) as it:
        seen = [{"command": name, "calls": 1} for name in ("GET", "SET", "ZADD")]

        async def proved() -> dict[str, tuple[str, str]]:
            rows = await inspect.unwrap(shapes.prove_shapes.fn)(it, seen)
            return {row["shape"]: (row["verdict"], row["how"]) for row in rows}

        async def sized() -> Json:
            workload = {"hot_keys": [], "requests_per_s": 1.0}
            return await inspect.unwrap(sizing.measure_size.fn)(it, workload)

        assert set((await proved()).values()) == {("accepted", "")}
        size = await sized()
        assert red(sizing.judge_size(size)) == {}
        assert (size["keys"], size["sampled"], size["restored"]) == (300, 300, 300)
        hot = [{"key": f"large:{number}", "requests_per_s": 1.0} for number in range(6)]
        with pair.source.client() as client:
            for row in hot:
                client.set(row["key"], "v" * 2_000_000)
        assert [row["key"] for row in await profile._large(it, hot)] == [row["key"] for row in hot]
        await it.store.client.hset(it.store.keys.scripts, b"0" * 40, b"return 1")
        tried = await inspect.unwrap(shapes.try_scripts.fn)(it)
        assert red(shapes.judge_scripts(tried)) == {}
        second = pair.target.masters()[1]
        with setting(second, "maxmemory", "1"):
            found = await proved()
            assert {name for name, (verdict, _) in found.items() if verdict == "differs"} == {
                "SET",
                "ZADD",
                "GET",
            }
            assert f"on 127.0.0.1:{second.port}: the target answers: OOM" in found["SET"][1]
            size = await sized()
            refused = red(sizing.judge_size(size))[
                "a sample of the keys can be restored on the target"
            ]
            assert 0 < size["restored"] < 300
            assert "OOM" in refused["detail"]
        with second.client() as client:
            client.execute_command("ACL", "SETUSER", "exodus", "-script")
        try:
            tried = await inspect.unwrap(shapes.try_scripts.fn)(it)
        finally:
            with second.client() as client:
                client.execute_command("ACL", "SETUSER", "exodus", "+@all")
        assert "the target takes every script that was seen" in red(shapes.judge_scripts(tried))
        for node in pair.target.masters():
            with node.client() as client:
                assert list(client.scan_iter(match="exodus*")) == []
