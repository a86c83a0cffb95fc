"""The fence of a cluster: on every node, proved on every master, and looked at again before the
route changes. Each defect is planted.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import pytest
import pytest_asyncio
import redis

from exodus.commands.slots import tag_of
from exodus.control.store import ControlStore
from exodus.cutover.fence import Record
from exodus.cutover.fence_cluster import ClusterFence, fence_for
from exodus.cutover.fence_methods import AclFence, Command
from exodus.cutover.fence_nodes import ClusterNodes
from exodus.cutover.topology_check import (
    check_replicas_have,
    check_unchanged,
    look_at_servers,
)
from exodus.errors import CutoverAborted, DecisionRefused, SourceError
from exodus.plan.plan import Plan
from exodus.plan.settings import Fencing
from exodus.plan.vocabulary import Cutover, Feed, FenceKind, Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from exodus.topology.permits import try_rights
from exodus.topology.rights import UsedFeatures, UserRole, rule_of, server_of
from tests.support.clusters import ClusterBox
from tests.support.full import FULL
from tests.support.servers import DatabaseServer
from tests.support.wait import wait_until

pytestmark = pytest.mark.fault
_KINDS = [ServerKind.VALKEY_91, *([ServerKind.REDIS_62] if FULL else [])]


@pytest.fixture(scope="module", params=_KINDS, ids=str)
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterBox]:
    box = ClusterBox(request.param, tmp_path_factory.mktemp("fenced"), masters=2, replicas=1)
    yield box
    box.close()


@pytest.fixture
def box(
    request: pytest.FixtureRequest, shared: ClusterBox, make_cluster: Callable[..., ClusterBox]
) -> Iterator[ClusterBox]:
    """Two masters with a replica each; rules and keys as at first. With a parameter, a cluster
    of its own whose last node has no slots at first.
    """
    if getattr(request, "param", ""):
        # Where it may, a node that loses its slots becomes a replica of the one that gets them.
        stays = (
            {} if shared.kind is ServerKind.REDIS_62 else {"cluster_allow_replica_migration": "no"}
        )
        yield make_cluster(shared.kind, masters=2, spare=1, **stays)
        return
    yield shared
    for node in shared.nodes:
        node.resume()
    shared.wait_ready()
    in_step(shared)
    for node in shared.nodes:
        with node.client() as client:
            client.execute_command(
                "ACL", "SETUSER", "default", "reset", "on", "nopass", "~*", "&*", "+@all"
            )
            client.config_set("min-replicas-to-write", 0)
    for node in shared.masters():
        with node.client() as client:
            client.flushall()


@pytest.fixture
def plan(box: ClusterBox, valkey91: DatabaseServer) -> Plan:
    return Plan(
        name="fenced",
        source=box.address(),
        target=valkey91.address(),
        cutover=Cutover.OWN,
        feed=Feed.TRACKING,
    )


@pytest_asyncio.fixture
async def store(control_server: DatabaseServer, plan: Plan) -> AsyncIterator[ControlStore]:
    async with await ControlStore.connect(control_server.address(), plan.name) as store:
        await store.save_plan(plan)
        yield store


@pytest_asyncio.fixture
async def fence(store: ControlStore, plan: Plan) -> AsyncIterator[ClusterFence]:
    async with fence_for(store, Side.SOURCE, plan) as fence:
        assert isinstance(fence, ClusterFence)
        yield fence


def in_use(box: ClusterBox) -> list[DatabaseServer]:
    """Masters and replicas; not a node without slots."""
    return [
        node
        for master in box.masters()
        for node in (master, *box.replicas_of(master))
        if node.running
    ]


def in_step(box: ClusterBox) -> None:
    """Wait until every replica has what its master writes now, and every node knows it.

    In Redis 6.2 a node that CLUSTER FAILOVER made a replica has its link at once, and takes
    nothing from it for ten seconds. The others hear of it a second later.
    """

    def follows() -> bool:
        masters = box.masters()
        found = [node.client().info("replication") for node in box.nodes if node not in masters]
        return len(in_use(box)) == len(box.nodes) and all(
            each.get("master_link_status") == "up" for each in found
        )

    wait_until(follows, within_s=30, otherwise="a replica never followed its master")
    box.wait_ready()
    for master in box.masters():
        login, key = master.address(), b"{%b}" % tag_of(b"step", a_slot(master, box))
        with redis.Redis(
            port=master.port, username=login.username, password=login.secret("test")
        ) as client:
            client.set(key, 1)
            client.delete(key)
            assert client.wait(1, 15_000) == 1, "a replica never had what its master wrote"


def a_slot(node: DatabaseServer, box: ClusterBox) -> int:
    return next(slot for slot in range(0, 16_384, 64) if box.owner_of(slot) is node)


def write(node: DatabaseServer, box: ClusterBox) -> object:
    """A write of an application to a key of a slot of this node."""
    with redis.Redis(port=node.port) as client:
        return client.set(b"{%b}" % tag_of(b"w", a_slot(node, box)), 1)


async def up(fence: ClusterFence, switch: str = "s1") -> dict[str, str]:
    await fence.prepare(switch)
    return await fence.raise_()


async def test_every_node_is_fenced_and_given_back(
    box: ClusterBox, fence: ClusterFence, store: ControlStore
) -> None:
    """Also on a replica that a failover makes a master, and also where it was lowered before."""
    before = {node.port: node.client().acl_list() for node in in_use(box)}
    proofs = await up(fence)
    assert "a write of its was refused, on each of 2 masters and 2 replicas" in proofs["default"]
    assert all(map(DatabaseServer.fenced, in_use(box)))
    for node in box.masters():
        with pytest.raises(redis.exceptions.NoPermissionError):
            write(node, box)
    promoted = box.failover(box.masters()[0])
    with pytest.raises(redis.exceptions.NoPermissionError):
        write(promoted, box)
    in_step(box)
    record = await fence.record()
    assert record is not None
    assert len(record.servers) == 4
    await fence.open(record)
    assert not any(map(DatabaseServer.fenced, in_use(box)))
    await fence.resume(record)
    assert all(map(DatabaseServer.fenced, in_use(box)))
    await fence.lower(record)
    assert await fence.record() is None
    assert {node.port: node.client().acl_list() for node in in_use(box)} == before
    assert all(write(node, box) for node in box.masters())
    await fence.resume(record)  # of a process that slept: its right has ended on every node
    assert not any(map(DatabaseServer.fenced, in_use(box)))


async def test_redis_62_is_fenced_likewise(
    make_cluster: Callable[..., ClusterBox], plan: Plan, store: ControlStore
) -> None:
    """Its replicas let a reader watch keys, so their fence has the guard, too."""
    box = make_cluster(ServerKind.REDIS_62, masters=2, replicas=1)
    plan = plan.model_copy(update={"source": box.address()})
    async with fence_for(store, Side.SOURCE, plan) as fence:
        proofs = await up(fence)  # type: ignore[arg-type]
        assert "on each of 2 masters and 2 replicas" in proofs["default"]
        assert all(map(DatabaseServer.fenced, in_use(box)))
        record = await fence.record()
        assert record is not None
        await fence.lower(record)
        await fence.resume(record)
        assert not any(map(DatabaseServer.fenced, in_use(box)))


async def test_a_replica_that_is_behind_keeps_the_fence_s_record(
    box: ClusterBox, fence: ClusterFence
) -> None:
    """Its rules are given back when it is in step again."""
    await up(fence)
    behind = box.replicas_of(box.masters()[0])[0]
    with behind.client() as client:
        client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")  # its master's commands too
    record = await fence.record()
    assert record is not None
    with pytest.raises(SourceError, match="could not be changed under the fence's guard"):
        await fence.lower(record)
    assert behind.fenced()
    assert sum(map(DatabaseServer.fenced, in_use(box))) == 1
    with behind.client() as client:
        client.execute_command("CLIENT", "UNPAUSE")
    record = await fence.record()
    assert record is not None
    await fence.lower(record)
    assert not any(map(DatabaseServer.fenced, in_use(box)))


async def test_strays_are_ended_on_every_node(box: ClusterBox, fence: ClusterFence) -> None:
    clients = [redis.Redis(port=node.port) for node in in_use(box)]
    assert all(client.ping() for client in clients)
    await up(fence)
    assert await fence.kill_strays() == len(clients)
    record = await fence.record()
    assert record is not None
    await fence.lower(record)
    for client in clients:
        client.close()
    box.wait_ready()  # replicas and the bus are not ended


async def test_min_replicas_is_proved_by_a_key_of_each_master(
    box: ClusterBox, plan: Plan, store: ControlStore
) -> None:
    chosen = plan.model_copy(update={"fence": Fencing(source=FenceKind.MIN_REPLICAS)})
    async with fence_for(store, Side.SOURCE, chosen) as fence:
        if box.kind is ServerKind.REDIS_62:
            with pytest.raises(DecisionRefused, match="scripts write all the same"):
                await fence.check_possible()
            return
        await up(fence)  # type: ignore[arg-type]
        for node in box.masters():
            with pytest.raises(redis.ResponseError, match="Not enough good replicas"):
                write(node, box)
        record = await fence.record()
        assert record is not None
        await fence.lower(record)
        assert all(write(node, box) for node in box.masters())


@pytest.mark.parametrize("what", ["master", "replica"])
async def test_a_node_that_is_not_fenced_is_found(
    box: ClusterBox, fence: ClusterFence, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    master = box.masters()[1]
    left = master if what == "master" else box.replicas_of(master)[0]
    change = ClusterNodes.change

    async def all_but_one(
        nodes: ClusterNodes, name: str, guard: bytes, commands: list[Command]
    ) -> bool:
        missed = name == f"127.0.0.1:{left.port}"
        return await change(nodes, name, guard, [] if missed else commands)

    await fence.prepare("s1")
    with monkeypatch.context() as patch:
        patch.setattr(ClusterNodes, "change", all_but_one)
        with pytest.raises(SourceError, match="does not hold"):
            await fence.raise_()
    record = await fence.record()
    assert record is not None
    await fence.lower(record)
    assert not any(map(DatabaseServer.fenced, in_use(box)))


async def test_a_write_that_passes_one_master_is_found(
    box: ClusterBox, fence: ClusterFence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof writes a key that this master has: elsewhere it would be answered MOVED."""
    monkeypatch.setattr(AclFence, "up", lambda _, kept: [("ACL", "SETUSER", user) for user in kept])
    await fence.prepare("s1")
    with pytest.raises(SourceError, match="does not hold") as caught:
        await fence.raise_()
    assert "'default' could still write" in caught.value.why
    monkeypatch.setattr(
        ClusterNodes, "probe_key", lambda nodes, _: b"exodus:{%b}" % tag_of(b"probe", 16_383)
    )
    with pytest.raises(SourceError, match="does not hold"):
        await fence.raise_()
    record = await fence.record()
    assert record is not None
    await fence.lower(record)


async def test_a_switch_that_was_ended_fences_no_node(
    box: ClusterBox, plan: Plan, store: ControlStore, fence: ClusterFence
) -> None:
    """Another process settled it, and a new switch took the right."""
    await fence.prepare("slept")
    async with fence_for(store, Side.SOURCE, plan) as other:
        assert isinstance(other, ClusterFence)
        await other.check_possible()
        await other.lower(fence._prepared)  # type: ignore[arg-type]
        with pytest.raises(CutoverAborted, match="was not fenced"):
            await fence.raise_()
        assert not any(map(DatabaseServer.fenced, in_use(box)))
        with pytest.raises(CutoverAborted, match="another switch took the right"):
            await other.prepare("late")  # what it saw before is not so any more
    async with fence_for(store, Side.SOURCE, plan) as newer:
        await up(newer, "newer")  # type: ignore[arg-type]
        with pytest.raises(CutoverAborted, match="was not fenced"):
            await fence.raise_()
        await fence.lower(fence._prepared)  # type: ignore[arg-type]
        assert all(map(DatabaseServer.fenced, in_use(box)))  # not the slept one's to lower


async def test_a_node_that_does_not_answer_ends_the_switch_in_time(
    box: ClusterBox, fence: ClusterFence
) -> None:
    """The other nodes are given back at once, it when it answers again."""
    silent = box.replicas_of(box.masters()[0])[0]
    await fence.prepare("s1")
    silent.pause()
    with pytest.raises(SourceError):
        await fence.raise_()
    record = await fence.record()
    assert record is not None
    with pytest.raises(SourceError):
        await fence.lower(record)
    assert not any(node.fenced() for node in box.nodes if node is not silent)
    silent.resume()
    box.wait_ready()
    wait_until(lambda: _replicas(box, silent), within_s=20, otherwise="the replica is not back")
    wait_until(
        lambda: _is_listed_by_all(box, silent),
        within_s=20,
        otherwise="a node does not list it",
    )
    record = await fence.record()
    assert record is not None
    await fence.lower(record)
    assert not any(map(DatabaseServer.fenced, in_use(box)))
    with box.patient():  # else the others soon call it failed, and it is no node to be fenced
        silent.pause()
        with pytest.raises(DecisionRefused, match=r"cannot be fenced on its node 127\.0\.0\.1"):
            await fence.check_possible()


# ---------------------------------------------------------------------- the topology changes


async def prepared_for(box: ClusterBox, plan: Plan, fence: ClusterFence):  # type: ignore[no-untyped-def]
    """A switch that stands before the change of the route."""
    standing = await look_at_servers(plan)
    await up(fence)
    check = partial(check_unchanged, plan, standing, Side.SOURCE, fence.fenced_servers)
    await check()
    return check


async def test_a_replica_promoted_behind_the_fence_gives_the_switch_up(
    box: ClusterBox, plan: Plan, fence: ClusterFence
) -> None:
    check = await prepared_for(box, plan, fence)
    box.failover(box.masters()[0])
    with pytest.raises(CutoverAborted, match="not what the switch prepared for"):
        await check()
    record = await fence.record()
    assert record is not None
    await fence.lower(record)
    assert not any(map(DatabaseServer.fenced, in_use(box)))


async def test_slots_moved_under_the_hold_give_the_switch_up(
    box: ClusterBox, plan: Plan, fence: ClusterFence
) -> None:
    check = await prepared_for(box, plan, fence)
    first, second = box.masters()
    slots = range(100, 103)  # the masters stay in the order of their first slots
    box.reshard(slots, second)
    with pytest.raises(CutoverAborted, match="not what the switch prepared for"):
        await check()
    record = await fence.record()
    assert record is not None
    await fence.lower(record)
    box.reshard(slots, first)
    assert not any(map(DatabaseServer.fenced, in_use(box)))


async def test_a_master_that_does_not_answer_gives_the_switch_up(
    box: ClusterBox, plan: Plan, fence: ClusterFence
) -> None:
    check = await prepared_for(box, plan, fence)
    silent = box.masters()[0]
    silent.pause()
    with pytest.raises(CutoverAborted, match="not what the switch prepared for"):
        await check()
    with pytest.raises(DecisionRefused, match="not known for certain"):
        await look_at_servers(plan)
    silent.resume()


@pytest.mark.parametrize("box", ["with a spare node"], indirect=True)
async def test_a_node_that_appears_gives_the_switch_up_and_is_fenced_later(
    box: ClusterBox, plan: Plan, fence: ClusterFence
) -> None:
    """Until the end of the migration the gateways call `keep_raised`. Lowering reaches it too, also
    where it has no slot any more.
    """
    check = await prepared_for(box, plan, fence)
    spare, first = box.nodes[-1], box.masters()[0]
    box.reshard(range(16), spare)
    with pytest.raises(CutoverAborted):
        await check()
    standing = await look_at_servers(plan)
    with pytest.raises(CutoverAborted) as caught:
        await check_unchanged(plan, standing, Side.SOURCE, fence.fenced_servers)
    assert "appeared and is not fenced" in caught.value.why
    record = await fence.record()
    assert record is not None
    assert not spare.fenced()
    await fence.keep_raised(record)
    assert spare.fenced()
    with pytest.raises(redis.exceptions.NoPermissionError):
        write(spare, box)
    if box.kind is not ServerKind.REDIS_62:  # there it becomes a replica in the middle of it
        box.reshard(range(16), first)
    record = await fence.record()
    assert record is not None
    await fence.lower(record)
    assert not spare.fenced()
    assert not any(map(DatabaseServer.fenced, in_use(box)))


@pytest.mark.parametrize("box", ["with a spare node"], indirect=True)
async def test_nodes_that_changed_since_the_preparation_are_not_fenced_blindly(
    box: ClusterBox, fence: ClusterFence
) -> None:
    await fence.prepare("s1")
    spare, first = box.nodes[-1], box.masters()[0]
    box.reshard(range(16), spare)
    with pytest.raises(CutoverAborted, match="was not fenced") as caught:
        await fence.raise_()
    assert str(spare.port) in caught.value.why
    assert not any(map(DatabaseServer.fenced, in_use(box)))
    box.reshard(range(16), first)


async def test_a_fenced_node_that_is_down_is_not_forgotten(
    box: ClusterBox, fence: ClusterFence
) -> None:
    """It would come back as a replica that refuses the applications' writes once it is a master.
    One that the cluster forgot is nobody's any more.
    """
    await up(fence)
    record = await fence.record()
    assert isinstance(record, Record)
    gone = Record(**{**vars(record), "nodes": {**record.nodes, "127.0.0.1:1": record.kept}})
    down = box.replicas_of(box.masters()[0])[0]
    down.kill()
    wait_until(
        lambda: down not in in_use(box) and not _replicas(box, down),
        within_s=20,
        otherwise="the cluster never noticed that a replica is down",
    )
    with pytest.raises(SourceError, match="could not be lifted"):
        await fence.lower(gone)
    assert not any(map(DatabaseServer.fenced, in_use(box)))
    down.start()
    box.wait_ready()
    wait_until(lambda: _replicas(box, down), within_s=20, otherwise="the replica is not back")
    record = await fence.record()
    assert record is not None
    await fence.lower(Record(**{**vars(gone), "lowered": record.lowered}))


def _replicas(box: ClusterBox, node: DatabaseServer) -> bool:
    return any(node in box.replicas_of(master) for master in box.masters())


def _is_listed_by_all(box: ClusterBox, replica: DatabaseServer) -> bool:
    """Return whether CLUSTER SLOTS of every node names a replica.

    A node leaves out a replica that it calls failed, or whose offset it has not heard yet.
    """
    for node in box.nodes:
        with node.client() as client:
            told = str(client.execute_command("CLUSTER SLOTS"))
        if re.search(rf"\b{replica.port}\b", told) is None:
            return False
    return True


async def test_a_replica_of_each_new_master_must_have_all_keys(box: ClusterBox, plan: Plan) -> None:
    await look_at_servers(plan)
    async with await Endpoint(Side.SOURCE, plan.source).connect(name="test") as leg:
        keys = [b"{%b}" % tag_of(b"w", slot) for slot in (0, 16_000)]
        await leg.pipeline([("SET", key, 1) for key in keys])
        assert await check_replicas_have(plan, Side.SOURCE, leg, 5) == 1
        silent = box.replicas_of(box.masters()[1])[0]
        silent.pause()
        await leg.pipeline([("SET", key, 2) for key in keys])
        with pytest.raises(
            CutoverAborted, match=f"no replica of 127.0.0.1:{box.masters()[1].port}"
        ):
            await check_replicas_have(plan, Side.SOURCE, leg, 0.2)
        silent.resume()


async def test_the_rights_that_a_fence_of_a_cluster_needs_are_printed_and_tried(
    box: ClusterBox, plan: Plan, store: ControlStore, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    """With exactly these rights it is raised and lowered; without one, the checks name it."""
    file = tmp_path / "password"
    file.write_text("secret")
    server = server_of("redis-6.2" if box.kind is ServerKind.REDIS_62 else "valkey-9.1")
    wanted = UsedFeatures(cluster=True, feed=Feed.TRACKING)
    rule = rule_of(UserRole, Side.SOURCE, *server, wanted).split()
    for node in box.nodes:
        with node.client() as client:
            client.execute_command("ACL", "SETUSER", "rights", "on", ">secret", *rule)
    login = {"username": "rights", "password_file": file, "password": None}
    plan = plan.model_copy(update={"source": plan.source.model_copy(update=login)})
    try:
        assert await try_rights(plan, Side.SOURCE, *server) == []
        async with fence_for(store, Side.SOURCE, plan) as fence:
            await up(fence)  # type: ignore[arg-type]
            record = await fence.record()
            assert record is not None
            await fence.lower(record)
        with box.masters()[1].client() as client:
            client.execute_command("ACL", "SETUSER", "rights", "-readonly")
        assert [each.command for each in await try_rights(plan, Side.SOURCE, *server)] == [
            "readonly"
        ]
    finally:
        for node in box.nodes:
            with node.client() as client:
                client.acl_deluser("rights")
