"""What each node of a cluster has of its own beside the keys: compared, loaded and carried on every
node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from exodus.cli.carry import _carry
from exodus.control.store import ControlStore
from exodus.cutover.beside_keys import compare, required
from exodus.cutover.rehearsal_report import changed, fingerprint_of_side
from exodus.cutover.script_loading import load_scripts
from exodus.plan.migration_file import MigrationFile
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Cutover, Feed, Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from tests.support.clusters import ClusterBox
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


async def test_each_node_is_compared_and_mended(
    make_cluster: Callable[..., ClusterBox],
    redis62: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    target = make_cluster(ServerKind.VALKEY_91, masters=2, replicas=1)
    plan = Plan(
        name="beside",
        source=redis62.address(),
        target=target.address(),
        cutover=Cutover.OWN,
        feed=Feed.TRACKING,
    )
    file = MigrationFile(plan=plan, control_store=control_server.address())
    first, second = target.masters()
    with redis62.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all")
    with first.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all")
    ends = [Endpoint(side, plan.address(side)) for side in Side]
    async with (
        await ends[0].connect(name="test") as authority,
        await ends[1].connect(name="test") as follower,
        await ControlStore.connect(control_server.address(), plan.name) as store,
    ):
        rows = {row.what: row for row in required(await compare(plan, authority, follower))}
        assert rows["user app"].follower == f"missing (on 127.0.0.1:{second.port})"
        await store.save_plan(plan)
        carried, _ = await _carry(file, "users")
        assert len([line for line in carried.done if "ACL SETUSER app" in line]) == 4
        for node in target.nodes:
            with node.client() as client:
                assert b"app" in client.execute_command("ACL", "USERS")
        found = required(await compare(plan, authority, follower))
        assert "user app" not in [row.what for row in found]

        text = b"return 7"
        sha = hashlib.sha1(text, usedforsecurity=False).hexdigest()
        await store.client.hset(store.keys.scripts, sha, text)  # type: ignore[misc]
        assert await load_scripts(store, follower, set()) == []
        for node in (first, second):
            with node.client() as client:
                assert client.script_exists(sha) == [True]

        prints = [await fingerprint_of_side(node) for node in await follower.nodes()]
        for each, node in zip(prints, await follower.nodes(), strict=True):
            assert node.address.port in (first.port, second.port)
            assert each["target.mode"] == "cluster"
        before = await fingerprint_of_side(follower)
        assert changed(before, await fingerprint_of_side(follower)) == []
        with second.client() as client:
            assert client.config_set("maxmemory-policy", "allkeys-lru")
        rows = {row.what: row for row in await compare(plan, authority, follower)}
        assert str(second.port) in rows["maxmemory-policy"].follower
