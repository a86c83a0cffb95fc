"""Requests that once hid a write from the journal: each is marked, or is a gap, before a hold says
"flushed".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio as redis

from exodus.control import journal, registry
from exodus.control.changes import Barrier, Changes, Key
from exodus.control.gap_reasons import NO_ANSWER, SCRIPTS, UNREADABLE
from exodus.cutover import switch
from exodus.errors import DecisionRefused
from exodus.gateway import handover
from exodus.gateway.hub import Gateway
from exodus.gateway.reporting import in_flight
from exodus.plan.bounds import CURSOR_BITS
from exodus.plan.vocabulary import Hold, Side
from exodus.resp.encode import encode, encode_many
from exodus.stack.servers import ServerKind
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def _talk(port: int, *parts: bytes, quiet_s: float = 0.15) -> bytes:
    """Send the parts one after the other. Return what came back, and whether the connection
    ended.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = b""
    try:
        for part in parts:
            writer.write(part)
            while True:
                try:
                    got = await asyncio.wait_for(reader.read(1 << 16), quiet_s)
                except TimeoutError:
                    break
                if not got:
                    return said + b"<closed>"
                said += got
    finally:
        writer.close()
    return said


async def _changes(local: LocalMigration, work: Callable[[], Awaitable[object]]) -> Changes:
    """Return the journal entries that some work caused."""
    before = await journal.ends(local.store, local.plan.partitions)
    await work()
    await local.flushed()
    return await journal.since(local.store, before)


def _gaps(local: LocalMigration) -> set[str]:
    gateway, _ = local.gateways["gw-1"]
    return set(gateway.journaler.gaps)


@pytest_asyncio.fixture
async def journalled(local: LocalMigration) -> LocalMigration:
    await local.gateway()
    await local.change(journal="all")
    return local


@pytest_asyncio.fixture
async def renaming(
    request: pytest.FixtureRequest,
    make_server: Callable[..., DatabaseServer],
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> AsyncIterator[LocalMigration]:
    """A source that calls FLUSHALL and HSET by other names, and what the test names."""
    more = "".join(f"\nrename-command {name}" for name in getattr(request, "param", []))
    source = make_server(
        ServerKind.REDIS_62, rename_command=f"FLUSHALL xflush\nrename-command HSET xhset{more}"
    )
    local = LocalMigration(source, valkey91, control_server, tmp_path)
    await local.open()
    await local.gateway()
    await local.change(journal="all")
    yield local
    await local.close()


@pytest.mark.parametrize(
    "request_",
    [
        ("MOVE", "k", 70000),
        ("COPY", "k", "l", "DB", 70000),
        ("SELECT", 70000),
        ("SWAPDB", 0, 70000),
        ("SELECT", "9" * 5000),
    ],
    ids=str,
)
async def test_a_database_that_is_not_there_drops_no_batch(
    journalled: LocalMigration, request_: tuple[object, ...]
) -> None:
    """A2: packing such a key raised. The batch with the write behind it was gone, and nothing
    counted as unflushed.
    """
    changes = await _changes(
        journalled, lambda: _talk(journalled.port, encode(*request_) + encode("SET", "behind", "v"))
    )
    assert (0, b"behind") in changes.keys
    assert {db for db, _ in changes.keys} <= {0}
    assert not changes.barriers
    assert not _gaps(journalled)
    route = await journalled.change(hold=Hold.WRITES)
    assert route.hold is Hold.WRITES


async def test_renamed_commands_are_read_as_what_they_are(renaming: LocalMigration) -> None:
    """A4: before, a renamed HSET was not copied, and a renamed FLUSHALL left no barrier."""
    changes = await _changes(renaming, lambda: _talk(renaming.port, encode("XHSET", "h", "f", "v")))
    assert changes.keys == [(0, b"h")]
    changes = await _changes(renaming, lambda: _talk(renaming.port, encode("xhset", "i", "f", "v")))
    assert changes.keys == [(0, b"i")]
    changes = await _changes(renaming, lambda: _talk(renaming.port, encode("xflush")))
    assert Barrier("flushall") in changes.barriers
    assert not _gaps(renaming)
    gateway, _ = renaming.gateways["gw-1"]
    assert gateway.heartbeat(0).facts.renamed_commands == {"XHSET": "HSET", "XFLUSH": "FLUSHALL"}


@pytest.mark.parametrize("renaming", [["SELECT xselect"]], indirect=True)
async def test_a_renamed_select_that_was_not_known_yet_is_a_gap_and_then_a_select(
    renaming: LocalMigration,
) -> None:
    """Its first use changed the session before the gateway knew its name."""
    await _changes(renaming, lambda: _talk(renaming.port, encode("xselect", 2)))
    assert _gaps(renaming)
    changes = await _changes(
        renaming, lambda: _talk(renaming.port, encode("xselect", 2) + encode("SET", "k", "v"))
    )
    assert changes.keys == [(2, b"k")]


@pytest.mark.parametrize("renaming", [["EVAL xeval"]], indirect=True)
async def test_a_renamed_script_that_was_not_known_yet_is_a_gap(renaming: LocalMigration) -> None:
    """A3: its first call counted as a write of the declared keys only."""
    script = "redis.call('SET',KEYS[1],'1') redis.call('SET','computed','1')"
    changes = await _changes(
        renaming, lambda: _talk(renaming.port, encode("XEVAL", script, 1, "declared"))
    )
    assert changes.keys == [(0, b"declared")]
    assert _gaps(renaming) == {SCRIPTS}


async def test_a_renamed_command_writes_the_database_that_its_transaction_selected(
    renaming: LocalMigration,
) -> None:
    """A4: before, its keys were marked in the database in which the transaction began."""
    said = [("MULTI",), ("SELECT", 3), ("XHSET", "h", "f", "v"), ("SELECT", 5), ("EXEC",)]
    changes = await _changes(renaming, lambda: _talk(renaming.port, encode_many(said)))
    assert changes.keys == [(3, b"h")]
    assert not _gaps(renaming)


@pytest.mark.parametrize("said", [[("XHSET",)], [("MULTI",), ("XHSET",), ("EXEC",)]], ids=str)
async def test_a_kill_before_a_command_is_described_is_a_gap(
    renaming: LocalMigration, said: list[tuple[str, ...]]
) -> None:
    """A4: its write was acknowledged, and only the memory of the process knew of it."""
    gateway, _ = renaming.gateways["gw-1"]
    source = renaming.servers[Side.SOURCE]
    _, writer = await asyncio.open_connection("127.0.0.1", renaming.port)
    source.pause()
    try:
        writer.write(
            encode_many((*words, "h", "f", "v") if words == ("XHSET",) else words for words in said)
        )

        async def forwarded() -> bool:
            return in_flight(gateway) == len(said)

        await until(forwarded, within_s=5, otherwise="the request was never forwarded")
        logged = gateway.journaler._intents.recover()
    finally:
        source.resume()
        writer.close()
    assert NO_ANSWER in logged.gaps


async def test_a_command_that_the_server_refuses_is_neither_marked_nor_a_gap(
    journalled: LocalMigration,
) -> None:
    """Principle 4; also where it is invented."""
    data = encode_many(
        [
            ("NOSUCH", "k", "v"),
            ("SET", "k"),
            ("LPUSH", "k"),
            ("FLUSHALL", "BAD"),
            ("EVAL", "return (", 1, "k"),
        ]
    )
    changes = await _changes(
        journalled,
        lambda: _talk(journalled.port, encode("SET", "s", "v"), data + encode("LPUSH", "s", "x")),
    )
    assert (changes.keys, changes.barriers) == ([(0, b"s")], [])
    assert not _gaps(journalled)


@pytest.mark.parametrize(
    "silence",
    [("CLIENT", "REPLY", "OFF"), ("CLIENT", "REPLY", "SKIP")],
    ids=lambda words: words[-1],
)
@pytest.mark.parametrize(
    "work",
    [(("FLUSHALL",),), (("FLUSHDB",),), (("SWAPDB", 0, 1),), (("MULTI",), ("FLUSHDB",), ("EXEC",))],
    ids=str,
)
async def test_a_flush_with_replies_off_is_a_barrier(
    journalled: LocalMigration, silence: tuple[str, ...], work: tuple[tuple[str, ...], ...]
) -> None:
    """A5: before, flushed keys came back at the cutover."""
    changes = await _changes(
        journalled, lambda: _talk(journalled.port, encode(*silence) + encode_many(work))
    )
    assert [barrier.what for barrier in changes.barriers] == [
        work[-2 if len(work) > 1 else 0][0].lower()
    ]


async def test_a_flush_in_a_transaction_survives_the_death_of_the_gateway(
    journalled: LocalMigration,
) -> None:
    """A5: EXEC was in flight, and its barrier was in no intent log."""
    gateway, _ = journalled.gateways["gw-1"]
    source = journalled.servers[Side.SOURCE]
    _, writer = await asyncio.open_connection("127.0.0.1", journalled.port)
    source.pause()
    try:
        writer.write(encode_many([("MULTI",), ("FLUSHALL",), ("EXEC",)]))

        async def forwarded() -> bool:
            return in_flight(gateway) == 3

        await until(forwarded, within_s=5, otherwise="the transaction was never forwarded")
        logged = gateway.journaler._intents.recover()
    finally:
        source.resume()
        writer.close()
    assert Barrier("flushall") in logged.barriers


async def test_a_request_that_only_the_server_can_read_is_a_gap_from_its_first_byte(
    make_server: Callable[..., DatabaseServer],
    redis82: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """A6: Valkey 9.1 takes `"a"b` as one word, Redis as a protocol error."""
    local = LocalMigration(make_server(ServerKind.VALKEY_91), redis82, control_server, tmp_path)
    await local.open()
    try:
        await local.gateway()
        await local.change(journal="all")
        said = await _talk(local.port, b'ECHO "a"b\r\n' + encode("SET", "hidden", "v"))
        assert said == b"$2\r\nab\r\n+OK\r\n"
        await local.flushed()
        assert UNREADABLE in _gaps(local)
        assert await local.store.client.hlen(local.store.keys.gap)
    finally:
        await local.close()


async def test_a_request_that_nobody_can_read_is_no_gap(journalled: LocalMigration) -> None:
    """Otherwise every stranger could block a cutover."""
    for data in (
        b'ECHO "a"b\r\n',
        b"*1\r\n+oops\r\n",
        b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$2000000000\r\n",
        b"*" + b"9" * 70_000,
    ):
        assert b"Protocol error" in await _talk(journalled.port, data)
    await journalled.flushed()
    assert not _gaps(journalled)


async def test_a_value_that_is_announced_too_long_is_refused_at_once(
    journalled: LocalMigration,
) -> None:
    """A20: before, the gateway waited for the rest of it."""
    data = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870913\r\n"
    direct = await _talk(journalled.servers[Side.SOURCE].port, data)
    assert direct.startswith(b"-ERR Protocol error: invalid bulk length")
    assert await _talk(journalled.port, data, quiet_s=2) == direct


async def test_scripts_open_a_gap_where_the_journal_is_the_feed(journalled: LocalMigration) -> None:
    """A3: a script that declared one key and wrote two counted as a write of one."""
    script = encode(
        "EVAL", "redis.call('SET',KEYS[1],'1') redis.call('SET','computed','1')", 1, "declared"
    )
    changes = await _changes(journalled, lambda: _talk(journalled.port, script))
    assert changes.keys == [(0, b"declared")]
    assert _gaps(journalled) == {SCRIPTS}
    assert [
        name.decode() for name in await journalled.store.client.hkeys(journalled.store.keys.gap)
    ] == [f"gw-1: {SCRIPTS}"]


@pytest_asyncio.fixture
async def migrating(local: LocalMigration) -> LocalMigration:
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    return local


@pytest.mark.parametrize("command", ["SCAN", "HSCAN", "SSCAN", "ZSCAN"])
async def test_an_iteration_goes_on_over_any_connection_of_the_pool_and_skips_nothing(
    migrating: LocalMigration, command: str
) -> None:
    """A11: a cursor of the old side, sent on another connection after the switch, skipped a fifth
    of the elements.
    """
    app = migrating.app()
    names = [f"element:{number}" for number in range(5_000)]
    for start in range(0, len(names), 500):
        part = names[start : start + 500]
        if command == "SCAN":
            await app.mset(dict.fromkeys(part, "v"))
        elif command == "HSCAN":
            await app.hset("big", mapping=dict.fromkeys(part, "v"))
        elif command == "SSCAN":
            await app.sadd("big", *part)
        else:
            await app.zadd("big", {name: number for number, name in enumerate(part)})
    await migrating.backfill()
    await migrating.drained()
    words = [] if command == "SCAN" else ["big"]

    async def page(cursor: bytes) -> tuple[bytes, list[bytes]]:
        client = redis.Redis(port=migrating.port)  # a connection of its own for each call
        client.response_callbacks.clear()
        try:
            following, found = await client.execute_command(command, *words, cursor, "COUNT", 100)
        finally:
            await client.aclose()
        return following, list(found)

    seen: set[bytes] = set()
    cursor, pages = b"0", 0
    while pages == 0 or cursor != b"0":
        cursor, found = await page(cursor)
        assert int(cursor) < 2**53
        seen.update(found)
        pages += 1
        if pages in (10, 30):
            done = await switch.apply(
                migrating.store, migrating.plan, Side.TARGET if pages == 10 else Side.SOURCE
            )
            assert done.switched
            generation = done.route.generation
            assert generation == (1 if pages == 10 else 2)
        assert pages < 1_000
    assert cursor == b"0"
    assert {name.encode() for name in names} <= seen
    assert pages > 60, "it did not begin anew after each switch"
    following, _ = await page(b"0")
    assert int(following) >> CURSOR_BITS == 2


async def test_scripts_are_there_in_the_middle_of_a_transaction_after_the_switch(
    migrating: LocalMigration,
) -> None:
    """A13: the client's connection never broke, so the client relies on its loaded script."""
    app = migrating.app(single_connection_client=True)
    loaded = await app.script_load("return redis.call('INCR', KEYS[1])")
    await app.eval("return redis.call('INCRBY', KEYS[1], 10)", 1, "run")
    await migrating.flushed()
    gateway: Gateway = migrating.gateways["gw-1"][0]

    async def kept() -> bool:
        return await migrating.store.client.hlen(migrating.store.keys.scripts) == 2

    await until(kept, within_s=5, otherwise="the texts were never kept")
    # Of the scripts, which the drained journal covers here
    await migrating.store.client.delete(migrating.store.keys.gap)
    gateway.journaler.gaps.clear()
    raw = migrating.app(single_connection_client=True)
    await raw.execute_command("MULTI")
    await raw.execute_command("INCR", "plain")
    await raw.execute_command("EVALSHA", loaded, 1, "run")
    done = await switch.apply(migrating.store, migrating.plan, Side.TARGET)
    assert done.switched
    assert done.facts["scripts_loaded"] == 2
    assert done.facts["scripts_unseen"] == 0
    assert await raw.execute_command("EXEC") == [1, 11]


async def test_a_script_that_is_loaded_during_the_switch_is_there_after_it(
    migrating: LocalMigration,
) -> None:
    """A13: what was loaded between the last look and the move was not on the new side."""
    loaded: list[str] = []
    over = asyncio.Event()

    async def load() -> None:
        app = migrating.app(single_connection_client=True)
        while not over.is_set():
            loaded.append(await app.script_load(f"return {len(loaded)}"))

    loading = asyncio.create_task(load())
    await asyncio.sleep(0.3)
    done = await switch.apply(migrating.store, migrating.plan, Side.TARGET)
    over.set()
    await loading
    assert done.switched
    there = await migrating.app().script_exists(*loaded)
    assert there.count(False) == 0, f"{there.count(False)} of {len(loaded)} are lost"


async def test_a_script_whose_text_was_never_seen_is_counted(migrating: LocalMigration) -> None:
    with migrating.servers[Side.SOURCE].client() as source:
        sha = source.script_load("return 7")
    assert await migrating.app().evalsha(sha, 0) == 7
    gateway: Gateway = migrating.gateways["gw-1"][0]
    assert gateway.heartbeat(0).facts.scripts_unseen == 1


async def test_a_login_that_hello_brought_is_the_sessions_on_the_new_side(
    migrating: LocalMigration,
) -> None:
    """Before, a later HELLO without a login replaced it, and the session was `default` on the
    target.
    """
    for box in migrating.servers.values():
        with box.client() as client:
            client.acl_setuser(
                "shop",
                reset=True,
                enabled=True,
                passwords=["+pw"],
                keys=["shop:*"],
                commands=["+@all"],
            )
    try:
        app = redis.Redis(port=migrating.port, single_connection_client=True, protocol=2)
        await app.execute_command("HELLO", 2, "AUTH", "shop", "pw")
        await app.execute_command("HELLO", 2)
        done = await switch.apply(migrating.store, migrating.plan, Side.TARGET)
        assert done.switched
        assert await app.execute_command("ACL", "WHOAMI") == b"shop"
        await app.aclose()
    finally:
        for box in migrating.servers.values():
            with box.client() as client:
                client.acl_deluser("shop")


async def test_a_session_that_the_new_side_takes_for_another_user_is_closed(
    migrating: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it goes on there. A server in front of the target may take any login for its own
    user; here the question is answered so.
    """
    monkeypatch.setattr(handover, "_WHOAMI", encode("ECHO", "default"))
    for box in migrating.servers.values():
        with box.client() as client:
            client.acl_setuser("shop", reset=True, enabled=True, nopass=True, commands=["+@all"])
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", migrating.port)
        writer.write(encode("AUTH", "shop", "pw"))
        assert await reader.readline() == b"+OK\r\n"
        done = await switch.apply(migrating.store, migrating.plan, Side.TARGET)
        assert done.switched
        writer.write(encode("SET", "k", "v"))
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
        closed = migrating.gateways["gw-1"][0].sessions_closed
        assert [why for why in closed if "takes the session for another user" in why]
    finally:
        for box in migrating.servers.values():
            with box.client() as client:
                client.acl_deluser("shop")


async def test_a_long_key_is_marked_like_any_other(journalled: LocalMigration) -> None:
    """A14: before, each write of a key of 70 kB opened a gap."""
    long: Key = (0, b"k" * 70_000)
    changes = await _changes(
        journalled,
        lambda: _talk(
            journalled.port, encode("SET", long[1], "v") + encode("MSET", "a", "1", long[1], "2")
        ),
    )
    assert set(changes.keys) == {long, (0, b"a")}
    assert not _gaps(journalled)


async def test_a_transaction_that_the_new_side_refuses_to_begin_runs_nothing_there(
    migrating: LocalMigration,
) -> None:
    """Principle 6: behind a refused MULTI, its requests would run one by one before any EXEC."""
    target = migrating.servers[Side.TARGET]
    for box in migrating.servers.values():
        with box.client() as client:
            commands = ["+@all", "-multi"] if box is target else ["+@all"]
            client.acl_setuser(
                "shop", reset=True, enabled=True, passwords=["+pw"], keys=["*"], commands=commands
            )
    try:
        app = redis.Redis(
            port=migrating.port, single_connection_client=True, username="shop", password="pw"
        )
        await app.execute_command("MULTI")
        await app.execute_command("INCR", "ahead")
        done = await switch.apply(migrating.store, migrating.plan, Side.TARGET)
        assert done.switched
        with target.client() as client:
            assert client.get("ahead") is None
        with pytest.raises(redis.RedisError):
            await app.execute_command("EXEC")
        await app.aclose()
        with target.client() as client:
            assert client.get("ahead") is None
    finally:
        for box in migrating.servers.values():
            with box.client() as client:
                client.acl_deluser("shop")


async def test_a_name_that_the_target_does_not_know_blocks_the_cutover(
    renaming: LocalMigration,
) -> None:
    """After the cutover, applications would get an error for it."""
    await renaming.syncer()
    await renaming.start_live_sync()
    await _talk(renaming.port, encode("XHSET", "h", "f", "v"))
    await renaming.drained()

    async def told() -> bool:
        beats = await registry.heartbeats(renaming.store, "gateway")
        return all(beat.facts.renamed_commands for beat in beats)

    await until(told, within_s=5, otherwise="the gateway never told the name")
    with pytest.raises(DecisionRefused, match="XHSET"):
        await switch.apply(renaming.store, renaming.plan, Side.TARGET)
