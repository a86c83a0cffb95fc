"""Conversations replayed directly and through the gateway give the same bytes back, at several
splits.
"""

from __future__ import annotations

import asyncio

import pytest

from exodus.control.gap_reasons import SCRIPTS
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode, encode_many
from tests.support.local_migration import LocalMigration

pytestmark = pytest.mark.fault


def _many(*lines: str) -> bytes:
    return encode_many([line.split(" ") for line in lines])


CONVERSATIONS = {
    "strings": _many(
        "SET k v",
        "GET k",
        "APPEND k x",
        "STRLEN k",
        "GETRANGE k 0 1",
        "GETSET k n",
        "INCR k",
        "DEL k",
        "GET k",
    ),
    "expiry": _many(
        "SET k v EX 100", "TTL k", "PERSIST k", "TTL k", "SETEX k 100 v", "EXPIRE k 50", "TTL k"
    ),
    "lists": _many(
        "RPUSH l a b c", "LRANGE l 0 -1", "LPOP l", "LINSERT l BEFORE c x", "LLEN l", "LINDEX l 9"
    ),
    "hashes": _many("HSET h a 1 b 2", "HGETALL h", "HINCRBY h a 5", "HMGET h a z", "HDEL h a"),
    "sets": _many("SADD s a", "SMEMBERS s", "SISMEMBER s a", "SREM s a", "SCARD s"),
    "sorted sets": _many(
        "ZADD z 1.5 a 2 b", "ZRANGE z 0 -1 WITHSCORES", "ZINCRBY z 1 a", "ZSCORE z q"
    ),
    "streams": _many(
        "XADD x 1-1 f v",
        "XGROUP CREATE x g 0",
        "XREADGROUP GROUP g c COUNT 1 STREAMS x >",
        "XACK x g 1-1",
        "XRANGE x - +",
        "XPENDING x g",
    ),
    "transaction": _many("MULTI", "SET k 1", "INCR k", "EXEC", "GET k"),
    "discard": _many("MULTI", "SET k 1", "DISCARD", "GET k"),
    "errors in a transaction": _many(
        "MULTI", "NOSUCH", "SET k", "EXEC", "MULTI", "SET k a", "INCR k", "EXEC"
    ),
    "nested multi": _many("MULTI", "MULTI", "EXEC", "EXEC"),
    "watch": _many("WATCH k", "SET k 2", "MULTI", "GET k", "EXEC", "UNWATCH"),
    "databases": _many(
        "SELECT 3", "SET k three", "SELECT 0", "GET k", "SELECT 99", "SELECT x", "GET k"
    ),
    "wrong": _many("GET", "NOSUCH a b", "SET k v XX", "LPUSH k", "HGET k f"),
    "scripts": encode(
        "EVAL", "return {KEYS[1], ARGV[1], redis.call('SET', KEYS[1], ARGV[1])}", 1, "k", "v"
    )
    + _many("GET k", "EVALSHA abc 0"),
    "reply skip": _many("CLIENT REPLY SKIP", "SET k 1", "GET k"),
    "reply off": _many("CLIENT REPLY OFF", "SET k 1", "GET k", "CLIENT REPLY ON", "GET k"),
    "blocking served": _many("RPUSH q a", "BLPOP q 1"),
    "blocking in a transaction": _many("MULTI", "BLPOP nothing 0", "EXEC"),
    "blocking that ends": _many("BLPOP nothing 0.05", "PING"),
    "subscribe": _many("SUBSCRIBE a b", "PING", "UNSUBSCRIBE", "PING"),
    "patterns": _many("PSUBSCRIBE a*", "SUBSCRIBE c", "UNSUBSCRIBE c", "PUNSUBSCRIBE", "SET k 1"),
    "names": _many("CLIENT SETNAME me", "CLIENT GETNAME", "ECHO hello", "PING x"),
    "inline": b"PING\r\nSET k \"a b\"\r\nGET k\r\n\r\nGET 'k'\n",
    "empty requests": b"*0\r\n*-1\r\n\r\n" + _many("PING"),
    "large value": encode("SET", "k", b"x" * 300_000) + _many("GET k", "STRLEN k"),
    "long pipeline": b"".join(_many(f"SET k{n} {n}", f"GET k{n}") for n in range(300)),
    "binary keys": encode("SET", b"\x00\xff\r\n", b"\r\n$5\r\n") + encode("GET", b"\x00\xff\r\n"),
    "movable keys": _many(
        "ZADD z1 1 a",
        "ZADD z2 2 a",
        "ZUNIONSTORE d 2 z1 z2",
        "ZRANGE d 0 -1 WITHSCORES",
        "SORT l STORE m",
    ),
    "bad protocol": b"*1\r\n$4\r\nPING\r\n*1\r\n+oops\r\n",
    "unbalanced": b'PING\r\nSET "a\r\n',
    "quit": _many("PING", "QUIT"),
    "reset": _many("SELECT 2", "MULTI", "RESET", "PING"),
}
RESP3 = (
    "strings",
    "hashes",
    "sets",
    "sorted sets",
    "streams",
    "transaction",
    "errors in a transaction",
    "wrong",
    "subscribe",
    "reply off",
    "databases",
)


async def _talk(port: int, data: bytes, piece: int, *, hello: bool, wanted: int = 1) -> bytes:
    """Return all replies: at least `wanted` bytes, and what follows until there is silence."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = b""
    if hello:
        writer.write(encode("HELLO", 3))
        await asyncio.wait_for(reader.read(4096), 10)
        await asyncio.sleep(0.02)
    for at in range(0, len(data), piece):
        writer.write(data[at : at + piece])
        if piece < len(data):
            await asyncio.sleep(0)
    while True:
        try:
            got = await asyncio.wait_for(reader.read(1 << 20), 10 if len(said) < wanted else 0.15)
        except TimeoutError:
            break
        if not got:
            said += b"<closed>"
            break
        said += got
    writer.close()
    return said


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("hello", [False, True], ids=["resp2", "resp3"])
async def test_the_same_bytes_come_back(local: LocalMigration, name: str, hello: bool) -> None:
    if hello and name not in RESP3:
        return
    data = CONVERSATIONS[name]
    source = local.servers[Side.SOURCE]
    await local.gateway()
    await local.change(journal="all")
    with source.client() as client:
        direct = await _talk(source.port, data, len(data), hello=hello)
        for piece in (len(data), 7, 1) if len(data) < 400 else (len(data), 1 << 14):
            client.flushall()
            client.script_flush()
            said = await _talk(local.port, data, piece, hello=hello, wanted=len(direct))
            assert said == direct
    gateway, _ = local.gateways["gw-1"]
    assert not gateway.journaler.gaps.keys() - {SCRIPTS}


async def test_a_client_that_leaves_ends_its_leg(local: LocalMigration) -> None:
    await local.gateway()
    source = local.servers[Side.SOURCE].client()
    before = source.info("clients")["connected_clients"]
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", local.port)
        writer.write(encode("PING"))
        writer.close()
    await asyncio.sleep(0.5)
    gateway, _ = local.gateways["gw-1"]
    assert not gateway.connections
    assert source.info("clients")["connected_clients"] <= before


async def test_a_half_closed_client_gets_its_replies(local: LocalMigration) -> None:
    await local.gateway()
    reader, writer = await asyncio.open_connection("127.0.0.1", local.port)
    writer.write(encode("SET", "k", "v") + encode("GET", "k"))
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 3) == b"+OK\r\n$1\r\nv\r\n"
    writer.close()
