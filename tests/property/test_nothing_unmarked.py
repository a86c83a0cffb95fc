"""Drawn and mutated requests of clients with different rights, directly and through the gateway, on
every server.

The same bytes come back. Each changed key was marked, or is covered by a barrier or a gap. A client
without rights marks nothing. No drawn request has a clock, ids or random draws in its reply.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from exodus.control.changes import Barrier, Key
from exodus.gateway.hub import Gateway
from exodus.resp.encode import encode
from tests.property.test_conversations import request as plain_request
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import wait_until

pytestmark = pytest.mark.property

EXAMPLES = int(os.environ.get("EXAMPLES", "50"))
_UNDECLARED = b"redis.call('SET',ARGV[1],'1') return 1"
_ELSEWHERE = b"redis.call('SELECT',3) redis.call('SET',KEYS[1],'1') return 1"
_FAILS = b"redis.call('SET',KEYS[1],'1') return redis.call('NOSUCH')"
# What once hid a write: commands whose failure, form or place changes what the next one means.
_TRICKS = [
    encode(*words)
    for words in (
        ("SELECT", 70000),
        ("SELECT", "9" * 5000),
        ("SELECT", 2**63),
        ("SELECT", "01"),
        ("MOVE", "a", 70000),
        ("COPY", "a", "b", "DB", 70000),
        ("SWAPDB", 0, 70000),
        ("COPY", "a", "b", "DB", 2, "REPLACE"),
        ("HELLO", 3),
        ("HELLO", 2),
        ("HELLO", 4),
        ("HELLO", 3, "BAD"),
        ("HELLO",),
        ("CLIENT", "REPLY", "OFF", "x"),
        ("CLIENT", "REPLY", "BAD"),
        ("SUBSCRIBE",),
        ("SUBSCRIBE", "a", "b"),
        ("UNSUBSCRIBE", "a", "zz"),
        ("MULTI", "x"),
        ("EXEC", "x"),
        ("DISCARD", "x"),
        ("RESET", "x"),
        ("UNWATCH", "x"),
        ("AUTH", "nobody", "wrong"),
        ("RESET",),
        ("EVAL", _UNDECLARED, 0, "undeclared"),
        ("EVAL", _ELSEWHERE, 1, "a"),
        ("EVAL", _FAILS, 1, "b"),
        ("EVAL", "return 1", "9" * 5000, "a"),
        ("EVAL", "return {'message','a','b'}", 0),
        ("EVAL", "return redis.error_reply('NOAUTH no')", 1, "a"),
        ("RPUSH", "list", "message", "a"),
        ("LRANGE", "list", 0, -1),
        ("SET", "k" * 70_000, "v"),
        ("EXPIRE", "b", 100),
        ("GETEX", "a", "EX", 100),
        ("SCAN", 0, "COUNT", 100_000),
        ("LMPOP", "9" * 400, "a", "LEFT"),
        ("QUIT",),
        ("FLUSHALL", "ASYNC"),
        ("FLUSHALL", "BAD"),
        ("FLUSHDB", "SYNC"),
        ("MIGRATE", "h", 1, "a", 99, 10),
        ("DEBUG", "JMAP"),
        ("BLPOP", "list", "c{x}", "0.01"),
        ("BLPOP", "a", "x"),
        ("XADD", "s", "1-1", "f", "v"),
        ("SORT", "list", "ALPHA", "STORE", "c{x}"),
    )
] + [b"\r\n", b"*0\r\n", b"*-1\r\n", b'ECHO "a"b\r\n', b"SET inline 'x y'\n", b"*1000\r\n"]
_TRICKS.append(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870913\r\n")


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    found = draw(st.one_of(plain_request(), plain_request(), st.sampled_from(_TRICKS)))
    kind = draw(st.integers(0, 11))
    if kind == 0 and found:  # one byte is another
        at = draw(st.integers(0, len(found) - 1))
        return found[:at] + draw(st.binary(min_size=1, max_size=2)) + found[at + 1 :]
    if kind == 1 and found:  # a part is missing
        at = draw(st.integers(0, len(found) - 1))
        return found[:at] + found[at + draw(st.integers(1, 4)) :]
    return found


@dataclass
class Recorded:
    """A source with the gateway before it, which runs on a thread of its own and tells what it
    marks.
    """

    source: DatabaseServer
    local: LocalMigration
    gateway: Gateway
    keys: list[Key] = field(default_factory=list)
    barriers: list[Barrier] = field(default_factory=list)

    def mark(self, keys: list[Key], barrier: Barrier | None) -> None:
        self.keys.extend(keys)
        if barrier is not None:
            self.barriers.append(barrier)

    @property
    def gaps(self) -> int:
        return sum(gap.count for gap in self.gateway.journaler.gaps.values())

    def quiet(self) -> bool:
        gateway = self.gateway
        return (
            not gateway.connections and not len(gateway.lost_legs) and not len(gateway.undescribed)
        )


@pytest.fixture(params=["redis62", "redis82", "valkey81", "valkey91"])
def recorded(
    request: pytest.FixtureRequest, control_server: DatabaseServer, tmp_path: Path
) -> Iterator[Recorded]:
    source: DatabaseServer = request.getfixturevalue(request.param)
    target: DatabaseServer = request.getfixturevalue(
        "valkey81" if request.param == "valkey91" else "valkey91"
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    local = LocalMigration(source, target, control_server, tmp_path)

    async def begin() -> Gateway:
        await local.open()
        gateway = await local.gateway()
        await local.change(journal="all")
        return gateway

    try:
        gateway = asyncio.run_coroutine_threadsafe(begin(), loop).result(30)
        found = Recorded(source, local, gateway)
        gateway.mark = found.mark  # type: ignore[method-assign]
        with source.client() as client:
            client.acl_setuser(
                "limited",
                reset=True,
                reset_channels=True,
                enabled=True,
                passwords=["+pw"],
                keys=["a*"],
                channels=["a*"],
                commands=["+@all", "-@dangerous", "-multi"],
            )
            client.acl_setuser(
                "nobody", reset=True, enabled=True, passwords=["+pw"], commands=["-@all"]
            )
        yield found
        with source.client() as client:
            client.acl_deluser("limited", "nobody")
        asyncio.run_coroutine_threadsafe(local.close(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _said(port: int, data: bytes, cuts: list[int]) -> tuple[bytes, bool]:
    """Return all that comes back until the server ends, and whether it ended with bytes unread.

    Then its last replies may be lost on the way.
    """
    said, cut_off = b"", False
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        places = sorted({cut % (len(data) or 1) for cut in cuts} | {0, len(data)})
        try:
            for start, stop in itertools.pairwise(places):
                sock.sendall(data[start:stop])
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # it closed already; its last reply can still be read
            cut_off = True
        try:
            while got := sock.recv(1 << 16):
                said += got
        except ConnectionError:
            cut_off = True
    said = re.sub(rb"\$2\r\nid\r\n:\d+", b"$2\r\nid\r\n:1", said)
    # Redis from 7.2 on keeps back the refusal of a login where other replies are on their way.
    said = re.sub(rb"-WRONGPASS [^\r]*\r\n", b"", said)
    said = re.sub(rb"(DB index is out of range|invalid DB index)", b"no such DB", said)
    return said, cut_off


def _state(source: DatabaseServer) -> dict[Key, tuple[bytes, bool]]:
    found: dict[Key, tuple[bytes, bool]] = {}
    with source.client() as client:
        for name in client.info("keyspace"):
            db = int(name[2:])
            with source.client(db=db) as there:
                for key in there.keys("*"):
                    found[db, key] = (there.dump(key) or b"", there.ttl(key) >= 0)
    return found


def _login(user: str) -> bytes:
    return b"" if user == "default" else encode("AUTH", user, "pw")


# A failing example with a key of 70 kB; the warning would hide what failed
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(
    max_examples=1_500 if FULL else EXAMPLES,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
    ],
)
@given(
    requests=st.lists(_requests(), min_size=1, max_size=16),
    cuts=st.lists(st.integers(0, 100_000), max_size=8),
    user=st.sampled_from(["default", "default", "limited", "nobody"]),
    hello=st.booleans(),
)
@example(
    requests=[encode("CLIENT", "REPLY", "SKIP"), encode("RESET"), b"GET a\r\n"],
    cuts=[],
    user="default",
    hello=False,
)
@example(
    requests=[encode("CLIENT", "REPLY", "OFF"), encode("RESET"), b"GET a\r\n"],
    cuts=[],
    user="default",
    hello=False,
)
@example(requests=[encode("EXPIRE", "b", 100)], cuts=[], user="default", hello=False)
@example(  # a line that ends oddly, in a request that the gateway rewrites
    requests=[encode("CLIENT", "REPLY", "SKIP").replace(b"*3\r\n", b"*3\r\0"), b"GET a\r\n"],
    cuts=[],
    user="default",
    hello=False,
)
def test_what_changed_is_marked_and_what_was_refused_is_not(
    recorded: Recorded, requests: list[bytes], cuts: list[int], user: str, hello: bool
) -> None:
    data = (encode("HELLO", 3) if hello else b"") + _login(user) + b"".join(requests)
    source, told, states, cut_off = recorded.source, [], [], False
    for port, places in ((source.port, []), (recorded.local.port, cuts)):
        with source.client() as client:
            client.flushall()
            client.script_flush()
            for key in ("a", "b", "c{x}"):
                client.set(key, "0")
        before = _state(source)
        recorded.keys, recorded.barriers, gaps = [], [], recorded.gaps
        said, cut = _said(port, data, places)
        told.append(said)
        cut_off = cut_off or cut
        wait_until(recorded.quiet, within_s=10, otherwise="the gateway still had a connection")
        states.append(_state(source))
    after = states[1]
    ended = b"Protocol error" in b"".join(told)
    if cut_off or ended or any(word in data.upper() for word in (b"QUIT", b"FLUSH", b"BLPOP")):
        # The server closed with bytes unread, or while the client was blocked (by a flush, too,
        # from Redis 8 on): what it said last may be lost on the way, on two connections sooner than
        # on one. That may be the protocol error itself.
        assert told[0].startswith(told[1]) or told[1].startswith(told[0])
    else:
        assert told[1] == told[0], f"directly {told[0]!r}, through the gateway {told[1]!r}"
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    covered = {db for barrier in recorded.barriers for db in barrier.databases or range(16)}
    unmarked = {key for key in changed if key not in recorded.keys and key[0] not in covered}
    assert not unmarked or recorded.gaps > gaps, f"{unmarked} changed and nobody was told"
    if user == "nobody" and told[1] == told[0] and b"+RESET" not in told[1]:
        assert not recorded.keys
        assert not recorded.barriers
        # Valkey 9.1 reads quotes that nobody else does; what it then answers to such a user, HELLO
        # for instance, is a gap.
        assert recorded.gaps == gaps or b'"' in data or b"'" in data
