"""What a stranger can cost others: no delayed cutover, no starved client, no memory, no gap."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from exodus.control import journal
from exodus.cutover import switch
from exodus.gateway import relay
from exodus.gateway.hub import Gateway
from exodus.gateway.reporting import in_flight
from exodus.plan.bounds import (
    ACCEPTS_A_PASS,
    PIPELINE_MAX,
    STRANGER_TURN_LINES,
    STRANGERS_WAITING_MAX,
)
from exodus.plan.vocabulary import Hold, Side
from exodus.resp.encode import encode, encode_many
from exodus.stack.servers import ServerKind
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
FLOOD = 900_000 if FULL else 150_000
HALF_A_SET = b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$1000000\r\n" + b"x" * 200_000
# Refused without a login. Each once opened a gap, or raised.
STRANGE = [
    b"SET a b\0\r\n",
    b"*2\r\n$4\r\nINCR\0\0",
    b'ECHO "a"b\r\n',
    b"*1\r\n$5\r\nRESETxx",
    b"*1\r\n$4\r\nQUITxx",
    b"POST / HTTP/1.1\r\nx: y\r\nSET a b\r\n",
    encode("SELECT", "9" * 5_000),
    encode("SELECT", 2**63),
    encode("MOVE", "k", "9" * 5_000),
    encode("SWAPDB", "9" * 5_000, 1),
    encode("EVAL", "return 1", "9" * 5_000, "k"),
    encode("LMPOP", "9" * 5_000, "k", "LEFT"),
    encode("BLPOP", "k", "9" * 5_000),
    encode("SET", b"k" * 70_000, "v"),
    # From Redis 7 on a client without a login is closed at 16 kB. A script could answer that, too.
    encode("EVAL", "return 1", 1, b"k" * 20_000),
    encode("FCALL", "f", 1, b"k" * 20_000),
    encode("NOSUCH", "k"),
    encode("FLUSHALL"),
    encode_many([("MULTI",), ("SELECT", 70_000), ("EXEC",)]),
    encode_many([("CLIENT", "REPLY", "OFF"), ("SET", "k", "v")]),
    encode("SUBSCRIBE", "a"),
    encode("AUTH", "nobody", "x"),
    encode("DEBUG", "RELOAD"),
    # The server answers and closes. What follows then resets the connection before the answer is
    # read.
    b'ECHO "a"b\r\n' + b"x" * 300_000,
    encode("AUTH", "nobody", "x") + b"*1\r\nx\r\n" + b"x" * 300_000,
]


async def _send(port: int, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await asyncio.sleep(0.1)
    return reader, writer


async def test_requests_that_never_end_do_not_keep_a_cutover_from_being_made(
    local: LocalMigration,
) -> None:
    """C1: before, each attempt held everybody's writes until its limit, and failed."""
    gateway = await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    await local.backfill()
    strangers = [
        await _send(local.port, data)
        for data in (b"SET a b\0\r\n", HALF_A_SET, b"*3\r\n$3\r\nSET\r\n", b"*2\r\n$4\r\nINCR\0\0")
    ]
    done = await switch.apply(local.store, local.plan, Side.TARGET)
    assert done.switched
    assert gateway.sessions_closed["held: a request that does not end"] == 2
    for _, writer in strangers:
        writer.close()
    with local.servers[Side.TARGET].client() as target:
        assert not target.exists("half", "a")


async def test_one_client_s_flood_leaves_the_others_their_turn(local: LocalMigration) -> None:
    """C2: before, their PING took 38 s."""
    gateway = await local.gateway()
    await local.change(journal="all")
    reader, writer = await asyncio.open_connection("127.0.0.1", local.port)
    pongs, most = 0, 0

    async def flood() -> None:
        nonlocal pongs, most
        sent = 0
        while pongs < FLOOD:
            if sent < FLOOD and writer.transport.get_write_buffer_size() < 1 << 20:
                writer.write(b"PING\r\n" * 50_000)
                sent += 50_000
            pongs += (await reader.read(1 << 20)).count(b"\n")
            most = max(most, in_flight(gateway))

    flooding = asyncio.create_task(flood())
    app, answers = local.app(), 0
    while not flooding.done():
        await app.ping()
        answers += 1
    await flooding
    writer.close()
    assert answers > FLOOD // 30_000, "the others waited for the flood"
    assert most <= 2 * PIPELINE_MAX


async def test_a_client_has_so_many_unanswered_requests_and_no_more(local: LocalMigration) -> None:
    """The source does not answer for a moment. What else the client sends stays with it."""
    gateway, source, count = await local.gateway(), local.servers[Side.SOURCE], 100_000
    reader, writer = await asyncio.open_connection("127.0.0.1", local.port)
    writer.write(b"PING\r\n")
    await reader.readline()
    source.pause()
    try:
        writer.write(b"PING\r\n" * count)

        async def full() -> bool:
            return in_flight(gateway) > PIPELINE_MAX

        await until(full, within_s=10, otherwise="its requests were not read")
        await asyncio.sleep(0.5)
        most = in_flight(gateway)
    finally:
        source.resume()
    assert most <= 2 * PIPELINE_MAX
    async with asyncio.timeout(30):
        await reader.readexactly(count * len(b"+PONG\r\n"))  # it goes on where it was
    writer.close()


async def test_new_connections_leave_the_others_their_turn(local: LocalMigration) -> None:
    """Three hundred come at once. In each pass of its loop the gateway begins a few of them, and
    reads from the others in between.
    """
    gateway = await local.gateway()
    before = last = gateway.connections_ever
    several = [socket.create_connection(("127.0.0.1", local.port)) for _ in range(300)]
    most = 0
    while last < before + len(several):
        await asyncio.sleep(0)  # one pass
        most, last = max(most, gateway.connections_ever - last), gateway.connections_ever
    for each in several:
        each.close()
    assert most == ACCEPTS_A_PASS, f"{most} began in one pass"


async def test_little_is_read_from_a_client_that_has_no_leg_yet(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, all that it sent meanwhile went into memory."""
    gateway = await local.gateway()
    opens, open_leg = asyncio.Event(), relay.open_leg

    async def later(*args: object, **kwargs: object) -> object:
        await opens.wait()
        return await open_leg(*args, **kwargs)

    monkeypatch.setattr(relay, "open_leg", later)
    size = 64 * 1024 * 1024  # more than the kernel keeps
    reader, writer = await asyncio.open_connection("127.0.0.1", local.port)
    writer.write(encode("ECHO", b"x" * size))
    await asyncio.sleep(1)
    kept = writer.transport.get_write_buffer_size()
    opens.set()
    async with asyncio.timeout(30):
        assert await reader.readexactly(size + len(b"$%d\r\n\r\n" % size)) != b""
    writer.transport.abort()
    assert kept > size // 2, f"{size - kept} bytes were taken from it"
    assert gateway.connections_ever > 0


async def test_clients_that_end_at_once_leave_the_others_their_turn(local: LocalMigration) -> None:
    """Three hundred end at once. Each pass of the loop ends a part of their legs."""
    gateway = await local.gateway()
    several = [socket.create_connection(("127.0.0.1", local.port)) for _ in range(300)]
    async with asyncio.timeout(30):
        while sum(each.leg is not None for each in gateway.connections) < len(several):
            await asyncio.sleep(0.01)
        for each in several:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.close()  # by a reset
        waited = 0
        while gateway.connections:
            await asyncio.sleep(0)  # one pass
            waited = max(waited, len(gateway.leavers))
    assert waited > 10, "all ended in one pass"


async def _asks_for_a_login(gateway: Gateway) -> None:
    """Wait until the gateway knows it."""

    async def asked() -> bool:
        return gateway.groups.main.orders.login_needed

    await until(asked, within_s=10, otherwise="the gateway never asked whether a login is needed")


async def _answers_beside_floods(local: LocalMigration, login: bytes) -> float:
    """Return how many answers a client gets for a thousand answers of ten others' floods.

    `login` is what the others send first. Each of them sends as much as it may.
    """
    flood = b"PING\r\n" * 2_000
    answered, ends = 0, asyncio.Event()

    async def send() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", local.port)
        writer.write(login)
        while not ends.is_set():
            if writer.transport.get_write_buffer_size() < len(flood):
                writer.write(flood)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    answered += (await reader.read(1 << 16)).count(b"\n")
        writer.transport.abort()

    floods = [asyncio.create_task(send()) for _ in range(10)]
    app = local.app(password="application")
    await app.ping()
    await asyncio.sleep(0.5)
    before = answered
    for _ in range(300):
        await app.ping()
    share = 1_000 * 300 / max(1, answered - before)
    ends.set()
    await asyncio.gather(*floods)
    await app.aclose()
    return share


async def test_clients_without_a_login_share_a_small_part_of_the_time(
    local: LocalMigration,
) -> None:
    """Ten clients flood the gateway, with a login and then without one. Without one they get a
    twentieth of its time, so the application gets many more answers for each of theirs.
    """
    source = local.servers[Side.SOURCE].client()
    source.execute_command("ACL", "SETUSER", "app", "on", ">app", "+ping")
    source.execute_command("ACL", "SETUSER", "default", "resetpass", ">application")
    gateway = await local.gateway()
    await _asks_for_a_login(gateway)
    among_clients = await _answers_beside_floods(local, encode("AUTH", "app", "app"))
    among_strangers = await _answers_beside_floods(local, b"")
    assert among_strangers > 4 * among_clients


async def test_a_login_ends_the_wait_of_a_client_that_sent_much_behind_it(
    local: LocalMigration,
) -> None:
    """Also while many clients without a login wait; it gets each of its answers, in order."""
    source = local.servers[Side.SOURCE].client()
    source.execute_command("ACL", "SETUSER", "default", "resetpass", ">application")
    gateway = await local.gateway()
    await _asks_for_a_login(gateway)
    strangers = [await _send(local.port, b"PING\r\n" * 100_000) for _ in range(20)]
    assert len(gateway.strangers) >= 10
    reader, writer = await asyncio.open_connection("127.0.0.1", local.port)
    words = [b"%d" % number for number in range(50_000)]
    writer.write(encode("AUTH", "application") + encode_many([("ECHO", word) for word in words]))
    async with asyncio.timeout(30):
        assert await reader.readline() == b"+OK\r\n"
        for word in words:
            assert await reader.readexactly(len(word) + 5 + len(b"%d" % len(word))) == (
                b"$%d\r\n%s\r\n" % (len(word), word)
            )
    assert len(gateway.strangers) >= 10, "they were served as fast as the client with a login"
    for _, stranger in [*strangers, (reader, writer)]:
        stranger.transport.abort()


async def test_many_small_requests_are_no_login(local: LocalMigration) -> None:
    """A client may send a login before it takes its turns among strangers, and no more. Before, it
    might send 170 requests, on each new connection.
    """
    source = local.servers[Side.SOURCE].client()
    source.execute_command("ACL", "SETUSER", "default", "resetpass", ">application")
    gateway = await local.gateway()
    await _asks_for_a_login(gateway)
    gateway.strangers = relay.Turns(share=1e-6)  # after one turn there is none for minutes
    _, first = await _send(local.port, b"PING\r\n" * 9_000)
    assert len(gateway.strangers) == 1
    replies, second = await _send(local.port, b"PING\r\n" * 170)
    async with asyncio.timeout(10):
        for _ in range(STRANGER_TURN_LINES):
            assert (await replies.readline()).startswith(b"-NOAUTH")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await replies.readline()
    login = encode("HELLO", 3, "AUTH", "default", "application", "SETNAME", "app")
    reader, third = await _send(local.port, login)
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"%")
    for writer in (first, second, third):
        writer.transport.abort()


async def test_too_many_clients_without_a_login_are_closed(local: LocalMigration) -> None:
    """Their bytes wait in memory, so their number has a bound. The application is not closed."""
    source = local.servers[Side.SOURCE].client()
    source.execute_command("ACL", "SETUSER", "default", "resetpass", ">application")
    gateway = await local.gateway()
    await _asks_for_a_login(gateway)
    app = local.app(password="application")
    await app.ping()
    burst = b"PING\r\n" * 10_000
    strangers = []
    for _ in range(STRANGERS_WAITING_MAX + 50):
        _, writer = await asyncio.open_connection("127.0.0.1", local.port)
        writer.write(burst)
        strangers.append(writer)

    async def closed() -> bool:
        return gateway.sessions_closed["too many clients without a login"] > 0

    await until(closed, within_s=30, otherwise="nobody was closed")
    assert len(gateway.strangers) <= STRANGERS_WAITING_MAX
    await app.ping()
    for writer in strangers:
        writer.transport.abort()


async def test_invented_commands_are_one_row_and_refused_writes_are_nothing(
    local: LocalMigration,
) -> None:
    """C3, C4: before, 1,200 names made 7,007 series, and 2,000 refused writes took 32 MB of the
    control store.
    """
    gateway = await local.gateway()
    await local.change(journal="all")
    before = await journal.ends(local.store, local.plan.partitions)
    series = len(list(gateway.metrics()))
    refused = [
        encode("SET", b"key" * 1_000 + b"%d" % number, "v", "BAD") for number in range(2_000)
    ]
    _, writer = await _send(
        local.port,
        b"".join(encode(b"invented-%d" % number, "k") for number in range(1_200))
        + b"".join(refused),
    )
    await asyncio.sleep(0.5)
    await local.flushed()
    writer.close()
    assert {name for name in gateway.telemetry.commands if "INVENTED" in name} == set()
    assert gateway.telemetry.commands["(UNKNOWN)"].calls == 1_200
    assert len(list(gateway.metrics())) < series + 60
    assert await journal.ends(local.store, local.plan.partitions) == before
    assert not gateway.journaler.gaps


async def test_a_stranger_opens_no_gap(
    make_server: Callable[..., DatabaseServer],
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """C5: before, a client without a login could block a cutover at will."""
    for kind in ServerKind:
        target = valkey91 if kind is not ServerKind.VALKEY_91 else make_server(ServerKind.VALKEY_81)
        folder = tmp_path / str(kind)
        folder.mkdir()
        local = LocalMigration(make_server(kind, private=True), target, control_server, folder)
        await local.open()
        try:
            gateway = await local.gateway()
            await local.change(journal="all")
            before = await journal.ends(local.store, local.plan.partitions)

            await _asks_for_a_login(gateway)
            for data in STRANGE:
                for end in (b"", encode("PING"), encode("SET", "k", "v") * 3):
                    _, writer = await asyncio.open_connection("127.0.0.1", local.port)
                    writer.write(data + end)
                    writer.write_eof()
                    await asyncio.sleep(0.02)
                    writer.close()
            for _ in range(100):
                if not gateway.connections:
                    break
                await asyncio.sleep(0.1)
            await local.flushed()
            assert not gateway.journaler.gaps, kind
            assert await journal.ends(local.store, local.plan.partitions) == before, kind
            assert (await local.change(hold=Hold.WRITES)).hold is Hold.WRITES
        finally:
            await local.close()
