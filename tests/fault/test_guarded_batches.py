"""A batch of writes under its guard: expected answers are not parsed, all others are, and neither
disturbs what follows.
"""

from __future__ import annotations

import pytest

from exodus.control.schema import guard_key
from exodus.copy.guard import Guard, GuardedLeg, set_writer_epoch
from exodus.copy.read import Reader, ReadMode
from exodus.errors import EpochEnded
from exodus.net.leg import Leg, ReplyError
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode_many
from exodus.topology.endpoint import Endpoint
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault
TIMED = 3_000


@pytest.mark.parametrize("db", [0, 3])
@pytest.mark.parametrize("guarded", [False, True])
async def test_answers_that_were_expected_and_others_follow_each_other(
    valkey91: DatabaseServer, db: int, guarded: bool
) -> None:
    follower = Endpoint(Side.TARGET, valkey91.address())
    await set_writer_epoch(follower, "batches", 7)
    guard = Guard(((guard_key("batches"), b"7"),)) if guarded else Guard()
    async with await Leg.connect(valkey91.address(), Side.TARGET) as leg:
        batches = GuardedLeg(leg, guard)
        for count in (2, 20_000):  # the answer to the second comes in several parts
            commands = [("SET", f"k{number}", number) for number in range(count)]
            assert await batches.run(db, encode_many(commands), count) == [b"OK"] * count
            mixed = [*commands, ("LPUSH", "k1", "no list"), ("INCR", "k1"), ("UNLINK", "k0", "k1")]
            replies = await batches.run(db, encode_many(mixed), len(mixed))
            assert replies[:count] == [b"OK"] * count
            refused, counted, gone = replies[count:]
            assert isinstance(refused, ReplyError)
            assert (counted, gone) == (2, 2)
        if guarded:
            await set_writer_epoch(follower, "batches", 8)
            with pytest.raises(EpochEnded):
                await batches.run(db, encode_many([("SET", "k0", "late")]), 1)
    with valkey91.client(db=db) as client:
        assert client.get("k0") is None
        assert client.get("k2") == b"2"


async def test_expiries_of_many_keys_are_read_to_the_millisecond_without_pexpiretime(
    redis62: DatabaseServer,
) -> None:
    begin_ms = 1_900_000_000_000
    with redis62.client() as client:
        pipe = client.pipeline(transaction=False)
        for number in range(TIMED):
            pipe.set(f"t{number}", number)
            if number % 3:
                pipe.pexpireat(f"t{number}", begin_ms + number)
        pipe.execute()
    endpoint = Endpoint(Side.SOURCE, redis62.address())
    (node,) = await endpoint.each_node()
    found: dict[bytes, int] = {}
    async with await node.connect() as leg:
        reader = Reader(leg, await node.facts(), ReadMode.PAYLOAD)
        cursor = -1
        while cursor:
            cursor, batch = await reader.scan(max(cursor, 0), 256)
            found.update(zip(batch.keys, batch.expiries_ms, strict=True))
    for number in range(TIMED):
        wanted = begin_ms + number if number % 3 else -1
        assert found[b"t%d" % number] == wanted
