"""Traps that other proxies fall into, one test each where it concerns a relay. The number in the
name is that of the list in facts on proxies, section 2.

Elsewhere: 19 and 23 concern the sync engine, 20 the target's preparation, 28 the comparer. 16 is in
test_workers.py, 25 and 26 in tests/unit/exodus/telemetry/test_counters.py.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Collection

import psutil
import pytest
import redis

from exodus.control import journal
from exodus.control.gap_reasons import NO_ANSWER, SCRIPTS, UNMATCHED, UNREADABLE
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode, encode_many
from exodus.stack.servers import ServerKind
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.process import GatewayProcess
from tests.support.talk import converse, pieces_of
from tests.support.wait import wait_until

pytestmark = pytest.mark.fault


def lines(*commands: str) -> bytes:
    return encode_many([command.split(" ") for command in commands])


async def same(
    local: LocalMigration,
    data: bytes,
    *,
    half_close: bool = False,
    mask: bytes | None = None,
    closes: bool = False,
    gaps: Collection[str] = (),
) -> bytes:
    """What the source says directly, and through the gateway at several cuts of the bytes; asserts
    that it is the same.

    Args:
        closes: the server closes before it has read everything. What is sent to it after that
            resets the connection, and whether its last word still arrives is a matter of time, so
            it is sent in one piece.
        gaps: what the gateway says of it; nothing else may be a gap.
    """
    source = local.servers[Side.SOURCE]
    if not local.gateways:
        await local.gateway()
        await local.change(journal="all")

    def shown(said: bytes) -> bytes:
        return re.sub(mask, b"?", said) if mask else said

    with source.client() as client:
        client.flushall()
        direct = await asyncio.to_thread(converse, source.port, [data], half_close=half_close)
        for size in (
            (len(data),) if closes else (len(data), 3, 1) if len(data) < 600 else (len(data), 1013)
        ):
            client.flushall()
            got = await asyncio.to_thread(
                converse, local.port, pieces_of(data, size), size=len(direct), half_close=half_close
            )
            assert shown(got) == shown(direct), f"in pieces of {size} bytes"
    gateway, _ = local.gateways["gw-1"]
    assert set(gateway.journaler.gaps) <= set(gaps)
    return direct


async def test_01_a_database_chosen_by_one_client_is_not_anothers(local: LocalMigration) -> None:
    await local.gateway()
    one, two = local.app(db=3), local.app()
    await one.set("a", 1)
    await two.set("b", 2)
    source = local.servers[Side.SOURCE]
    assert source.client(db=3).keys() == [b"a"]
    assert source.client().keys() == [b"b"]


async def test_02_hello_3_is_the_servers_own(local: LocalMigration) -> None:
    direct = await same(
        local, lines("HELLO 3", "SET k v", "HGETALL h", "HELLO 2", "HGETALL h"), mask=rb"id\r\n:\d+"
    )
    assert b"%7\r\n" in direct


async def test_03_what_changes_the_session_inside_multi_takes_effect_at_exec(
    local: LocalMigration,
) -> None:
    await same(
        local,
        lines("MULTI", "HELLO 3", "SELECT 4", "SET k v", "EXEC", "SET l v", "GET k"),
        mask=rb"id\r\n:\d+",
    )
    await local.flushed()
    changes = await journal.since(local.store, dict.fromkeys(range(local.plan.partitions), b"0-0"))
    assert {(4, b"k"), (4, b"l")} <= set(changes.keys)


async def test_04_pushes_are_not_taken_for_replies(local: LocalMigration) -> None:
    await local.gateway()
    await local.change(journal="all")
    source = local.servers[Side.SOURCE].client()
    source.set("k", 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", local.port)
    writer.write(lines("HELLO 3", "CLIENT TRACKING ON", "GET k"))
    said = b""
    while not said.endswith(b"$1\r\n1\r\n"):
        said += await asyncio.wait_for(reader.read(4096), 5)
    source.set("k", 2)
    push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"
    assert await asyncio.wait_for(reader.readexactly(len(push)), 5) == push
    writer.write(lines("SET mine 1", "GET k"))
    assert await asyncio.wait_for(reader.readexactly(12), 5) == b"+OK\r\n$1\r\n2\r\n"
    await local.flushed()
    changes = await journal.since(local.store, dict.fromkeys(range(local.plan.partitions), b"0-0"))
    assert (0, b"mine") in changes.keys
    gateway, _ = local.gateways["gw-1"]
    assert gateway.telemetry.commands["GET"].calls == 2, (
        "a push taken for a reply would shift every count after it"
    )
    writer.close()


async def test_05_subscribing_inside_multi_nests_pushes_in_the_array(local: LocalMigration) -> None:
    await same(
        local,
        lines("HELLO 3", "MULTI", "SUBSCRIBE a b", "EXEC", "PING"),
        mask=rb"id\r\n:\d+",
        gaps={UNMATCHED, UNREADABLE, NO_ANSWER},
    )


async def test_06_subscriptions_answer_once_a_channel(local: LocalMigration) -> None:
    await same(
        local,
        lines(
            "SUBSCRIBE a b c",
            "PING",
            "UNSUBSCRIBE",
            "UNSUBSCRIBE",
            "PSUBSCRIBE x*",
            "PUNSUBSCRIBE",
            "PING",
            "SET k v",
        ),
    )


async def test_06_sharded_subscriptions(make_server, local: LocalMigration, tmp_path) -> None:
    modern = LocalMigration(
        make_server(ServerKind.VALKEY_91),
        local.servers[Side.TARGET],
        local.control,
        tmp_path / "modern",
    )
    (tmp_path / "modern").mkdir()
    await modern.open()
    await same(
        modern,
        lines(
            "SSUBSCRIBE a b", "SPUBLISH z 1", "SUNSUBSCRIBE", "SPUBLISH a hello", "SET k v", "GET k"
        ),
    )
    await same(
        modern,
        lines("HELLO 3", "SSUBSCRIBE a", "SPUBLISH a hello", "SUNSUBSCRIBE a", "GET k"),
        mask=rb"id\r\n:\d+",
    )
    await modern.close()


async def test_07_replies_that_are_off_are_not_waited_for(local: LocalMigration) -> None:
    await same(
        local,
        lines(
            "CLIENT REPLY OFF",
            "SET k 1",
            "NOSUCH",
            "CLIENT REPLY ON",
            "CLIENT REPLY SKIP",
            "NOSUCH",
            "GET k",
        ),
    )


async def test_08_what_has_no_answer_is_not_waited_for(local: LocalMigration) -> None:
    await same(local, b"*0\r\n*-1\r\n\r\n" + lines("SET k v") + b"*0\r\n" + lines("GET k"))


async def test_09_inline_requests(local: LocalMigration) -> None:
    await same(
        local, b"SET k \"a b\\x41\\n\"\r\nGET k\n  GET   'k'\r\n" + lines("GET k") + b"\r\nPING\r\n"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"*1\r\n$4\r\nPING\r\n*1\r\n+x\r\n*1\r\n$4\r\nPING\r\n",
        b"*a\r\n",
        b"*1\r\n$-5\r\n",
        b"*2147483648\r\nPING\r\n",
        b'SET "a\r\nPING\r\n',
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: scanner\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        lines("PING", "QUIT", "PING"),
        bytes.fromhex("160301020001000001fc0303") + bytes(range(256)) + b"\r\n",
        b"\x00\xff\xfe\r\n",
        b"\x80" * 40 + b"\n",
    ],
    ids=[
        "type",
        "count",
        "length",
        "count too large",
        "quotes",
        "http",
        "post",
        "quit",
        "tls",
        "binary",
        "high",
    ],
)
async def test_10_what_no_server_accepts_ends_as_it_would_directly(
    local: LocalMigration, data: bytes
) -> None:
    await same(local, data, closes=True)


async def test_11_a_half_closed_connection_gets_all_its_replies(local: LocalMigration) -> None:
    await same(
        local,
        lines(*[f"SET k{number} {number}" for number in range(200)], "MGET k0 k199"),
        half_close=True,
    )


async def test_12_errors_in_a_transaction_and_blocking_in_one(local: LocalMigration) -> None:
    await same(
        local,
        lines(
            "MULTI",
            "NOSUCH",
            "EXEC",
            "MULTI",
            "BLPOP nothing 0",
            "SET k a",
            "INCR k",
            "EXEC",
            "EXEC",
            "DISCARD",
        ),
    )


async def test_13_nothing_is_answered_by_the_gateway_itself(local: LocalMigration) -> None:
    await same(local, lines("MULTI", "PING", "ECHO x", "EXEC", "PING", "PING x", "COMMAND COUNT"))


async def test_14_a_large_reply_streams_in_bounded_memory(local: LocalMigration) -> None:
    """The client reads slowly. Without back pressure a gateway would buffer the whole reply."""
    size = (512 if FULL else 96) * 1024 * 1024
    source = local.servers[Side.SOURCE].client()
    source.setrange("big", size - 1, "x")
    gateway = GatewayProcess(local)
    try:
        gateway.wait_said("listens on")
        process = psutil.Process(gateway.started.process.pid)
        before = process.memory_info().rss
        with socket.create_connection(("127.0.0.1", local.port)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            sock.sendall(lines("GET big", "PING"))
            left, most = size + len(b"$%d\r\n" % size) + 2 + 7, 0
            tail = b""
            while left > 0:
                data = sock.recv(1 << 18)
                assert data
                left -= len(data)
                tail = (tail + data)[-9:]
                most = max(most, process.memory_info().rss)
        assert tail == b"\r\n+PONG\r\n"
        assert most - before < 24 * 1024 * 1024
        # And the other way: a request of that size is forwarded while it arrives.
        part = b"y" * (1 << 20)
        with socket.create_connection(("127.0.0.1", local.port)) as sock:
            sock.sendall(b"*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$%d\r\n" % size)
            for _ in range(size >> 20):
                sock.sendall(part)
                most = max(most, process.memory_info().rss)
            sock.sendall(b"\r\n")
            assert sock.recv(16) == b"+OK\r\n"
        assert most - before < 24 * 1024 * 1024
        assert source.strlen("big") == size
    finally:
        gateway.end()
        source.delete("big")


async def test_15_the_clients_id_is_the_servers(local: LocalMigration) -> None:
    await local.gateway()
    app = local.app(single_connection_client=True)
    number = await app.client_id()
    assert number in {int(row["id"]) for row in local.servers[Side.SOURCE].client().client_list()}
    await app.client_setname("shown")
    assert "shown" in {row["name"] for row in local.servers[Side.SOURCE].client().client_list()}


async def test_17_a_client_that_leaves_a_blocking_command_leaves_the_source_too(
    local: LocalMigration,
) -> None:
    await local.gateway()
    source = local.servers[Side.SOURCE].client()
    _, writer = await asyncio.open_connection("127.0.0.1", local.port)
    writer.write(lines("BLPOP nothing 0"))

    def blocked() -> int:
        return source.info("clients")["blocked_clients"]

    await asyncio.to_thread(
        wait_until, lambda: blocked() == 1, within_s=5, otherwise="it never blocked"
    )
    writer.close()
    await asyncio.to_thread(
        wait_until,
        lambda: blocked() == 0,
        within_s=5,
        otherwise="the source still waits for a client that left",
    )
    source.rpush("nothing", "kept")
    assert source.llen("nothing") == 1


async def test_18_a_write_is_never_sent_twice(make_server, local: LocalMigration, tmp_path) -> None:
    """The source dies with a write in flight and comes back. The client's connection ends, and the
    write is not sent again.
    """
    source = make_server(ServerKind.REDIS_62, appendonly="yes", appendfsync="always")
    other = LocalMigration(source, local.servers[Side.TARGET], local.control, tmp_path / "other")
    (tmp_path / "other").mkdir()
    await other.open()
    await other.gateway()
    await other.change(journal="all")
    reader, writer = await asyncio.open_connection("127.0.0.1", other.port)
    writer.write(lines("INCR n"))
    assert await asyncio.wait_for(reader.readexactly(4), 5) == b":1\r\n"
    source.pause()
    writer.write(lines("INCR n"))
    await asyncio.sleep(0.2)
    source.kill()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    source.start()
    assert source.client().get("n") in (b"1", b"2")
    again = other.app()
    assert await again.incr("n") in (2, 3)
    await other.flushed()
    changes = await journal.since(other.store, dict.fromkeys(range(8), b"0-0"))
    assert changes.keys.count((0, b"n")) >= 2, (
        "the unanswered one is marked too: it may have been applied"
    )
    writer.close()
    await other.close()


async def test_21_addresses_and_roles_pass_as_they_are(local: LocalMigration) -> None:
    # A source that ever had a replica advances its offset by itself.
    await same(
        local,
        lines("ROLE", "CLUSTER INFO", "READONLY", "ASKING", "WAIT 0 1"),
        mask=rb"(?<=master\r\n:)\d+",
    )


async def test_22_a_script_that_declares_no_keys_is_told_as_a_risk(local: LocalMigration) -> None:
    await same(
        local,
        encode("EVAL", "return redis.call('SET', 'hidden', '1')", 0) + lines("GET hidden"),
        gaps={SCRIPTS},
    )
    gateway, _ = local.gateways["gw-1"]
    assert gateway.groups.main.orders.risks["script without declared keys"] > 0


async def test_24_a_message_is_published_once(local: LocalMigration) -> None:
    await local.gateway()
    source, target = (local.servers[side].client(decode_responses=True).pubsub() for side in Side)
    for subscriber in (source, target):
        subscriber.subscribe("news")
        assert subscriber.get_message(timeout=5)["type"] == "subscribe"
    assert await local.app().publish("news", "once") == 1
    assert source.get_message(timeout=5)["data"] == "once"
    assert source.get_message(timeout=0.2) is None
    assert target.get_message(timeout=0.2) is None
    source.close()
    target.close()


async def test_27_errors_keep_the_servers_words(local: LocalMigration) -> None:
    await same(
        local,
        lines(
            "GET",
            "NOSUCH a b",
            "SET k v XX EX",
            "LPUSH s",
            "OBJECT HELP",
            "HGET k",
            "DEBUG NOSUCH",
            "XADD x 0-0 a b",
            "EVALSHA x 0",
        ),
    )


async def test_slow_readers_hold_up_only_themselves(local: LocalMigration) -> None:
    """A client asks and does not read. Its own leg stops, others continue, and the gateway buffers
    little.
    """
    gateway = await local.gateway()
    source = local.servers[Side.SOURCE].client()
    source.setrange("big", 4 * 1024 * 1024, "x")
    slow = socket.create_connection(("127.0.0.1", local.port))
    slow.sendall(lines(*["GET big"] * 20))
    app: redis.asyncio.Redis = local.app()
    for number in range(200):
        await app.set("k", number)
    connection = max(gateway.connections, key=lambda each: each.client.get_write_buffer_size())
    assert connection.client.get_write_buffer_size() < 4 * 1024 * 1024, (
        "it keeps what asyncio's high-water mark lets in, not 80 MB"
    )
    slow.close()
