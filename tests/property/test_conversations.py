"""Drawn conversations with a real server, cut anywhere: the gateway returns the same bytes as the
server.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exodus.control.gap_reasons import SCRIPTS
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode, encode_many
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.property

_KEY = st.sampled_from([b"a", b"b", b"c{x}", b"d{x}", b"\x00\xff\r\n"])
_VALUE = st.sampled_from(
    [b"", b"1", b"-7", b"word", b"two words", b"\r\n$3\r\n", b"\x80" * 40, b"z" * 3000]
)
_NUMBER = st.sampled_from([b"0", b"1", b"2", b"-1", b"100", b"nan"])
_DB = st.sampled_from([b"0", b"1", b"15", b"16"])
_MIX: dict[str, st.SearchStrategy[bytes]] = {"K": _KEY, "V": _VALUE, "N": _NUMBER, "D": _DB}
# What a reply of these says depends on the conversation alone: no clock, no ids, no draws by the
# server.
_COMMANDS = """
SET K V|GET K|SET K V NX|SET K V GET|APPEND K V|STRLEN K|SETRANGE K N V|GETRANGE K N N|INCR K
INCRBY K N|INCRBYFLOAT K N|DECR K|MSET K V K V
MGET K K|MSETNX K V K V|GETDEL K|SETBIT K 7 1|BITCOUNT K|BITOP OR K K K|DEL K K|UNLINK K
EXISTS K K|TYPE K|RENAME K K|RENAMENX K K|COPY K K
PERSIST K|MOVE K D|DBSIZE|LPUSH K V V|RPUSH K V|LPOP K|RPOP K N|LRANGE K N N|LINSERT K BEFORE V V
LSET K N V|LREM K N V|LTRIM K N N
LMOVE K K LEFT RIGHT|LLEN K|BLPOP K K 0.01|HSET K V V|HGET K V|HDEL K V|HINCRBY K V N|HLEN K
HMGET K V V|HSETNX K V V|SADD K V V|SREM K V
SISMEMBER K V|SCARD K|SMOVE K K V|SINTERSTORE K K K|SDIFFSTORE K K K|ZADD K N V|ZADD K NX N V
ZINCRBY K N V|ZSCORE K V
ZRANGE K N N WITHSCORES|ZRANGESTORE K K N N|ZREM K V|ZPOPMIN K|ZCOUNT K -inf +inf
ZUNIONSTORE K 2 K K|XADD K 1-N V V|XLEN K|XRANGE K - +
XDEL K 1-1|XGROUP CREATE K g 0 MKSTREAM|XREADGROUP GROUP g c COUNT 1 STREAMS K >|XACK K g 1-1
XREAD COUNT 2 STREAMS K 0|PFADD K V|PFCOUNT K
GEOADD K 13.4 52.5 V|GEODIST K V V|SORT K ALPHA|SORT K ALPHA STORE K|OBJECT HELP|FLUSHDB
SWAPDB 0 1|MULTI|EXEC|DISCARD|WATCH K|UNWATCH
SELECT D|PING|PING V|ECHO V|CLIENT SETNAME me|CLIENT GETNAME|CLIENT REPLY SKIP|CLIENT REPLY OFF
CLIENT REPLY ON|RESET|SUBSCRIBE V
UNSUBSCRIBE|PSUBSCRIBE V|PUNSUBSCRIBE|PUBLISH V V|NOSUCH K|GET|SET K|LPUSH K
EVAL return(ARGV[1]) 1 K V
EVAL return(redis.call('INCR',KEYS[1])) 1 K|EVALSHA 0000 0|SCRIPT EXISTS 00|WAIT 0 0
"""
_TEMPLATES = [line.split(" ") for row in _COMMANDS.strip().splitlines() for line in row.split("|")]


@st.composite
def request(draw: st.DrawFn) -> bytes:
    template = draw(st.sampled_from(_TEMPLATES))
    args = [
        draw(_MIX[word])
        if word in _MIX
        else word.replace("1-N", f"1-{draw(st.integers(1, 9))}").encode()
        for word in template
    ]
    if draw(st.integers(0, 9)) == 0 and all(
        arg and not set(arg) & set(b"\r\n\x00\"' ") and arg.isascii() for arg in args
    ):
        return b" ".join(args) + draw(st.sampled_from([b"\r\n", b"\n"]))
    return encode(*args)


@dataclass
class Bridge:
    """A source, and the gateway before it, which runs on a thread of its own."""

    source: DatabaseServer
    port: int
    local: LocalMigration


@pytest.fixture
def bridge(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> Iterator[Bridge]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    local = LocalMigration(redis62, valkey91, control_server, tmp_path)

    async def begin() -> None:
        await local.open()
        await local.gateway()
        await local.change(journal="all")

    try:
        asyncio.run_coroutine_threadsafe(begin(), loop).result(30)
        yield Bridge(local.servers[Side.SOURCE], local.port, local)
        asyncio.run_coroutine_threadsafe(local.close(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _said(port: int, data: bytes, cuts: list[int], *, hello: bool) -> bytes:
    """Return all that comes back, up to the answer to a last PING or the connection's end."""
    last = b"the-end"
    # A transaction may be open, a channel subscribed to, replies off: a server that does not reply
    # to QUIT does not close either.
    ends = (
        ("DISCARD",),
        ("UNSUBSCRIBE",),
        ("PUNSUBSCRIBE",),
        ("CLIENT", "REPLY", "ON"),
        ("PING", "here"),
        ("QUIT",),
    )
    data = data + encode_many(ends)
    if hello:
        data = encode("HELLO", 3) + data
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        places = sorted({cut % len(data) for cut in cuts} | {0, len(data)})
        for start, stop in itertools.pairwise(places):
            sock.sendall(data[start:stop])
        while last not in said:
            got = sock.recv(1 << 16)
            if not got:
                said += b"<closed>"
                break
            said += got
    # Before that stands the connection's id
    return said[said.index(b"$4\r\nmode") :] if hello else said


@settings(
    max_examples=2_000 if FULL else 60,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
@given(
    requests=st.lists(request(), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 100_000), max_size=12),
    hello=st.booleans(),
)
def test_the_same_bytes_come_back(
    bridge: Bridge, requests: list[bytes], cuts: list[int], hello: bool
) -> None:
    data = b"".join(requests)
    told = []
    with redis.Redis(port=bridge.source.port) as client:
        for port, places in ((bridge.source.port, []), (bridge.port, cuts)):
            client.flushall()
            client.script_flush()
            told.append(_said(port, data, places, hello=hello))
    assert told[1] == told[0]
    gateway, _ = bridge.local.gateways["gw-1"]
    assert not gateway.journaler.gaps.keys() - {SCRIPTS}
