"""The write grant on a cluster: revoking it works on every node, wherever its slots move."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from exodus.commands.slots import tag_of
from exodus.control.schema import guard_key, lane_guard_key
from exodus.copy.guard import (
    Guard,
    has_write_grant,
    lost_lane_grants,
    read_write_grants,
    regain_write_grants,
    replace_write_grant,
    set_lane_grants,
    set_writer_epoch,
)
from exodus.copy.guarded_cluster import GuardedCluster, guarded_leg
from exodus.copy.payload import PackedStrings, State
from exodus.errors import EpochEnded
from exodus.net.leg import ReplyError
from exodus.plan.vocabulary import Side
from exodus.stack.servers import USER, ServerKind
from exodus.topology.endpoint import Endpoint
from tests.support.clusters import ClusterBox

pytestmark = pytest.mark.fault
MakeCluster = Callable[..., ClusterBox]
NAME = "guarded"
FAR_MS = 4_000_000_000_000
KINDS = [ServerKind.REDIS_62, ServerKind.VALKEY_91]


def in_slot(slot: int, name: str) -> bytes:
    """A key of a slot."""
    return b"{%b}%b" % (tag_of(b"t", slot), name.encode())


def states(keys: list[bytes], value: bytes = b"new") -> list[State]:
    return [State(key, commands=(("SET", key, value),)) for key in keys]


def strings(keys: list[bytes], value: bytes = b"new") -> PackedStrings:
    """The keys as a backfill writes them, every fourth with an expiry."""
    expiries_ms = [-1 if at % 4 else FAR_MS + at for at in range(len(keys))]
    return PackedStrings(keys, expiries_ms, [value] * len(keys))


def calls(box: ClusterBox, command: str) -> int:
    """How often the nodes ran a command."""
    found = [node.client().info("commandstats").get(f"cmdstat_{command}") for node in box.masters()]
    return sum(each["calls"] for each in found if each is not None)


def refused(replies: list[object]) -> list[str]:
    return [str(reply) for reply in replies if isinstance(reply, ReplyError)]


@pytest.fixture(params=KINDS)
def box(request: pytest.FixtureRequest, make_cluster: MakeCluster) -> ClusterBox:
    return make_cluster(request.param)


@pytest.fixture
def follower(box: ClusterBox) -> Endpoint:
    return Endpoint(Side.TARGET, box.address())


@pytest_asyncio.fixture
async def writer(follower: Endpoint) -> AsyncIterator[GuardedCluster]:
    await set_writer_epoch(follower, NAME, 7)
    guard = Guard(((guard_key(NAME), b"7"),))
    leg = guarded_leg(await follower.connect(name="test"), guard)
    assert isinstance(leg, GuardedCluster)
    yield leg
    await leg.leg.close()


async def test_a_batch_goes_to_every_node(box: ClusterBox, writer: GuardedCluster) -> None:
    keys = [f"k{number}".encode() for number in range(200)]
    replies, counts = await writer.run_states(0, states(keys))
    assert counts == [2] * 200
    assert replies == [b"OK"] * 400
    with box.client() as client:
        assert all(client.get(key) == b"new" for key in keys)
    assert all(node.client().dbsize() > 300 for node in box.masters())  # guard keys among them


async def test_a_writer_that_slept_through_the_switch_writes_nothing(
    box: ClusterBox, follower: Endpoint, writer: GuardedCluster
) -> None:
    keys = [f"k{number}".encode() for number in range(30)]
    await writer.run_states(0, states(keys, b"old"))
    await set_writer_epoch(follower, NAME, 8)
    for key in keys:
        with pytest.raises(EpochEnded):
            await writer.run_states(0, states([key]))
    with box.client() as client:
        assert {client.get(key) for key in keys} == {b"old"}


async def test_nor_where_slots_moved_before_and_after_the_switch(
    box: ClusterBox, follower: Endpoint, writer: GuardedCluster
) -> None:
    """One guard key a node would be missing where its slots go later."""
    first, second, third = box.masters()
    await writer.run_states(0, states([b"before"]))
    box.reshard(range(40), second)
    await set_writer_epoch(follower, NAME, 8)
    box.reshard(range(5_461, 5_480), third)
    box.reshard(range(16_300, 16_384), first)
    for slot in (0, 5, 39, 40, 5_470, 6_000, 16_383):
        with pytest.raises(EpochEnded):
            await writer.run_states(0, states([in_slot(slot, "late")]))
    with box.client() as client:
        assert not any(client.exists(in_slot(slot, "late")) for slot in (0, 5, 39, 5_470, 16_383))


async def test_keys_of_a_slot_on_its_way_are_written_where_they_are(
    box: ClusterBox, writer: GuardedCluster
) -> None:
    first, second, _ = box.masters()
    old = [in_slot(100, f"old{number}") for number in range(10)]
    new = [in_slot(100, f"new{number}") for number in range(3)]
    await writer.run_states(0, states(old, b"old"))
    with box.migrating(100, second):
        assert box.move_keys(100, first, second, at_most=5) == 5
        replies, *_ = await writer.run_states(0, states([*old, *new, b"elsewhere"]))
        assert not refused(replies)
    with box.client() as client:
        assert {client.get(key) for key in [*old, *new, b"elsewhere"]} == {b"new"}


async def test_the_right_ends_for_such_a_key_too(
    box: ClusterBox, follower: Endpoint, writer: GuardedCluster
) -> None:
    second = box.masters()[1]
    key = in_slot(100, "key")
    with box.migrating(100, second):
        await set_writer_epoch(follower, NAME, 8)
        with pytest.raises(EpochEnded):
            await writer.run_states(0, states([key]))
    with box.client() as client:
        assert client.get(key) is None


async def test_a_guard_on_its_way_is_replaced_by_another_one(
    box: ClusterBox, writer: GuardedCluster
) -> None:
    """While a slot moves, the node's first guard key may be away. The writer then uses another."""
    first, second, _ = box.masters()
    await writer.run_states(0, states([b"before"]))
    with box.migrating(0, second):
        assert box.move_keys(0, first, second) == 1
        replies, *_ = await writer.run_states(0, states([in_slot(1, "meanwhile")]))
        assert not refused(replies)
    replies, *_ = await writer.run_states(0, states([in_slot(0, "moved"), in_slot(2, "stayed")]))
    assert not refused(replies)


async def test_a_node_without_a_guard_is_not_written_to(
    make_cluster: MakeCluster,
) -> None:
    box = make_cluster(ServerKind.VALKEY_91, spare=1)
    follower = Endpoint(Side.TARGET, box.address())
    await set_writer_epoch(follower, NAME, 7)
    box.reshard(range(1, 4), box.nodes[-1])
    async with await follower.connect(name="test") as leg:
        writer = guarded_leg(leg, Guard(((guard_key(NAME), b"7"),)))
        replies, *_ = await writer.run_states(0, states([in_slot(2, "key"), b"other"]))
        assert [isinstance(reply, ReplyError) for reply in replies] == [True, True, False, False]
        assert "has no guard key" in str(replies[0])
        box.reshard(range(16, 17), box.nodes[-1])
        replies, *_ = await writer.run_states(0, states([in_slot(2, "key")]))
        assert not refused(replies)


async def test_without_scripts_each_key_has_its_transaction(
    box: ClusterBox, follower: Endpoint
) -> None:
    await set_writer_epoch(follower, NAME, 7)
    for node in box.nodes:
        with node.client() as client:
            client.execute_command("ACL", "SETUSER", USER, "-eval", "-evalsha")
    keys = [f"k{number}".encode() for number in range(20)]
    async with await follower.connect(name="test") as leg:
        scripts = (await follower.facts()).capabilities["scripts"]
        writer = guarded_leg(leg, Guard(((guard_key(NAME), b"7"),)), scripts=scripts)
        replies, *_ = await writer.run_states(0, states(keys))
        assert not refused(replies)
        await set_writer_epoch(follower, NAME, 8)
        with pytest.raises(EpochEnded):
            await writer.run_states(0, states(keys, b"late"))
    with box.client() as client:
        assert {client.get(key) for key in keys} == {b"new"}


async def test_the_right_is_replaced_only_where_it_is_what_it_was(follower: Endpoint) -> None:
    await set_writer_epoch(follower, NAME, 7)
    assert await has_write_grant(follower, NAME, 7)
    assert await replace_write_grant(follower, NAME, b"7", b"closed by 1")
    assert not await replace_write_grant(follower, NAME, b"7", b"9")
    assert set((await read_write_grants(follower, NAME)).values()) == {b"closed by 1"}


async def test_a_node_that_was_emptied_lacks_the_right_and_gets_it_again(
    box: ClusterBox, follower: Endpoint, writer: GuardedCluster
) -> None:
    node = box.masters()[1]
    with node.client() as client:
        client.flushall()
    assert not await has_write_grant(follower, NAME, 7)
    key = in_slot(6_000, "key")
    with pytest.raises(EpochEnded):
        await writer.run_states(0, states([key]))
    grants = await read_write_grants(follower, NAME)
    lacking = {name: value for name, value in grants.items() if value is None}
    assert 300 < len(lacking) < len(grants) == 1_024
    assert await regain_write_grants(follower, NAME, lacking, b"7")
    await writer.run_states(0, states([key]))
    with box.client() as client:
        assert client.get(key) == b"new"


async def test_a_lane_that_lost_its_lease_writes_nothing(follower: Endpoint) -> None:
    await set_writer_epoch(follower, NAME, 7)
    await set_lane_grants(follower, NAME, {3: 11, 4: 12})
    assert await lost_lane_grants(follower, NAME, {3: 11, 4: 12}) == []
    guard = Guard(((guard_key(NAME), b"7"), (lane_guard_key(NAME, 3), b"11")))
    async with await follower.connect(name="test") as leg:
        writer = guarded_leg(leg, guard)
        await writer.check(enforced=True)
        await set_lane_grants(follower, NAME, {3: 13})
        assert await lost_lane_grants(follower, NAME, {3: 11, 4: 12}) == [3]
        with pytest.raises(EpochEnded):
            await writer.run_states(0, states([b"key"]))
        with pytest.raises(EpochEnded):
            await writer.check(enforced=True)


async def test_strings_of_a_slot_are_written_by_one_command(
    box: ClusterBox, writer: GuardedCluster
) -> None:
    """A command in a script costs a node more than the key in it."""
    slots = (0, 100, 5_461, 16_383)
    keys = [in_slot(slot, f"k{number}") for number in range(16) for slot in slots]
    with box.client() as client:
        client.rpush(keys[1], "another type")
        client.set(keys[5], "expires", px=60_000)
    before = calls(box, "mset"), calls(box, "set")
    assert await writer.run_packed(0, strings(keys)) == [b"OK"] * len(keys)
    timed = keys[::4]
    assert (calls(box, "mset") - before[0], calls(box, "set") - before[1]) == (3, len(timed))
    with box.client() as client:
        assert {client.get(key) for key in keys} == {b"new"}
        for at, key in enumerate(keys):
            left_ms = client.pttl(key)
            assert (left_ms > 60_000) if at % 4 == 0 else (left_ms == -1)


async def test_a_slot_may_have_more_strings_than_a_command_in_a_script_holds(
    box: ClusterBox, writer: GuardedCluster
) -> None:
    keys = [in_slot(100, f"k{number}") for number in range(4_500)]
    packed = PackedStrings(keys, [-1] * len(keys), [b"new"] * len(keys))
    before = calls(box, "mset")
    assert await writer.run_packed(0, packed) == [b"OK"] * len(keys)
    assert calls(box, "mset") - before == 2
    with box.client() as client:
        assert set(client.mget(keys)) == {b"new"}


async def test_a_writer_that_slept_through_the_switch_writes_no_strings(
    box: ClusterBox, follower: Endpoint, writer: GuardedCluster
) -> None:
    keys = [in_slot(slot, f"k{number}") for slot in (1, 6_000, 16_383) for number in range(8)]
    await writer.run_packed(0, strings(keys, b"old"))
    await set_writer_epoch(follower, NAME, 8)
    with pytest.raises(EpochEnded):
        await writer.run_packed(0, strings(keys))
    with box.client() as client:
        assert {client.get(key) for key in keys} == {b"old"}


async def test_strings_of_a_slot_on_its_way_are_written_where_they_are(
    box: ClusterBox, writer: GuardedCluster
) -> None:
    """A part of the keys of one MSET is on each node: no node may run it."""
    first, second, _ = box.masters()
    keys = [in_slot(100, f"k{number}") for number in range(12)]
    new = [in_slot(100, f"new{number}") for number in range(6)]
    await writer.run_packed(0, strings(keys, b"old"))
    with box.migrating(100, second):
        assert box.move_keys(100, first, second, at_most=6) == 6
        written = [*keys, *new, b"elsewhere"]
        assert await writer.run_packed(0, strings(written)) == [b"OK"] * len(written)
    with box.client() as client:
        assert {client.get(key) for key in written} == {b"new"}


async def test_one_string_that_is_refused_stops_no_other_of_its_slot(
    box: ClusterBox, writer: GuardedCluster
) -> None:
    keys = [in_slot(100, name) for name in ("fine1", "fine2", "fine3", "fine4", "odd", "fine5")]
    for node in box.nodes:
        with node.client() as client:
            allowed = ["~exodus:*guarded.*", "~*fine*"]  # the guard keys, and all but one
            client.execute_command("ACL", "SETUSER", USER, "resetkeys", *allowed)
    replies = await writer.run_packed(0, strings(keys))
    assert [isinstance(reply, ReplyError) for reply in replies] == [
        key.endswith(b"odd") for key in keys
    ]
    with box.client() as client:
        assert [client.get(key) for key in keys] == [
            None if key.endswith(b"odd") else b"new" for key in keys
        ]


async def test_without_the_right_to_mset_each_string_is_written_by_itself(
    box: ClusterBox, writer: GuardedCluster
) -> None:
    for node in box.nodes:
        with node.client() as client:
            client.execute_command("ACL", "SETUSER", USER, "-mset")
    keys = [in_slot(100, f"k{number}") for number in range(8)]
    for value in (b"first", b"second"):
        assert await writer.run_packed(0, strings(keys, value)) == [b"OK"] * len(keys)
        with box.client() as client:
            assert {client.get(key) for key in keys} == {value}
    assert calls(box, "mset") == 0
    with box.masters()[0].client() as client:
        errors = client.info("commandstats").get("cmdstat_mset", {}).get("rejected_calls", 1)
    assert errors <= 1, "it was tried again"
