"""The journal's promise: a batch counts as unflushed until it is in the journal, the spool or a
gap. What the store lost is noticed.
"""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path

import pytest

from exodus.control import journal
from exodus.control.changes import Barrier, Key
from exodus.cutover import switch
from exodus.errors import DecisionRefused, OperatorError
from exodus.gateway.hub import Gateway
from exodus.gateway.intents import IntentLog
from exodus.gateway.options import GatewayOptions
from exodus.gateway.process import claim_id
from exodus.gateway.spool import Spool
from exodus.gateway.tables import load_table
from exodus.plan.vocabulary import JournalMode, Side
from exodus.stack.servers import ServerKind
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault

NO_SERVER_HAS_IT = 2**40  # a database that cannot be packed


async def journalled(local: LocalMigration) -> set[Key]:
    found = await journal.since(local.store, dict.fromkeys(range(local.plan.partitions), b"0-0"))
    return set(found.keys)


async def gaps(local: LocalMigration) -> set[str]:
    return {
        name.decode().partition(": ")[2]
        for name in await local.store.client.hkeys(local.store.keys.gap)
    }


async def opened(local: LocalMigration, part: str) -> None:
    async def there() -> bool:
        return any(part in gap for gap in await gaps(local))

    await until(there, within_s=15, otherwise=f"no gap was opened for {part!r}")


async def test_a_batch_that_cannot_be_journalled_is_a_gap_before_the_gateway_says_flushed(
    local: LocalMigration,
) -> None:
    gateway = await local.gateway()
    await local.change(journal=JournalMode.ALL)
    gateway.mark([(0, b"acknowledged"), (NO_SERVER_HAS_IT, b"k")], Barrier("flushdb", (3,)))
    await local.flushed()
    assert any("could not be spooled" in gap for gap in await gaps(local))
    gateway.mark([(0, b"later")], None)
    await local.flushed()
    assert (0, b"later") in await journalled(local)


async def test_a_spooled_batch_that_cannot_be_journalled_is_a_gap_and_the_next_one_follows(
    local: LocalMigration, tmp_path: Path
) -> None:
    spool = Spool(tmp_path / "gw-1")
    # No store takes such an entry
    assert spool.append([(0, b"first")], [Barrier("x" * (600 * 1024 * 1024 // 4))]) is True
    assert spool.append([(0, b"second")], [])
    local.control.client().config_set("proto-max-bulk-len", 1024 * 1024)
    try:
        gateway = await local.gateway()
        await asyncio.sleep(1)
        assert gateway.journaler.unflushed, (
            "it is not said to be flushed while the store refuses it"
        )
    finally:
        local.control.client().config_set("proto-max-bulk-len", 512 * 1024 * 1024)
    await local.flushed()
    assert (0, b"second") in await journalled(local)


@pytest.mark.parametrize("torn", ["spool", "intents"])
async def test_a_damaged_file_is_a_gap_that_keeps_the_cutover_from_being_made(
    local: LocalMigration, tmp_path: Path, torn: str
) -> None:
    folder = tmp_path / "gw-1"
    if torn == "spool":
        assert Spool(folder).append([(0, b"lost")], [])
        path, at = folder / "spool.log", 20
    else:
        log = IntentLog(folder, pytest.fail)
        log.append([(0, b"lost")], None)
        log.close()
        path, at = folder / "intent-1.log", 12
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0xFF
    path.write_bytes(bytes(raw))
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    await opened(local, "is damaged")
    with pytest.raises(DecisionRefused, match="open gap"):
        await switch.apply(local.store, local.plan, Side.TARGET)
    await local.flushed()
    assert not (folder / "spool.log").exists()


async def test_a_gap_survives_the_process_until_the_store_has_it(
    local: LocalMigration, tmp_path: Path
) -> None:
    log = IntentLog(tmp_path / "gw-1", pytest.fail)
    assert log.append_gap("a gap of a killed process")
    log.close()
    await local.gateway()
    await opened(local, "a gap of a killed process")


# ---- the control store loses what it acknowledged


def aof(box: DatabaseServer) -> Path:
    (path,) = Path(str(box._arguments["folder"])).rglob("*.incr.aof")
    return path


async def cut(local: LocalMigration, size: int) -> None:
    """The control store dies, and its file keeps only so many bytes."""
    local.control.kill()
    with aof(local.control).open("r+b") as file:
        file.truncate(size)
    local.control.start()
    await local.store.client.connection_pool.disconnect()


async def lossy(
    redis62: DatabaseServer, valkey91: DatabaseServer, make_server, folder: Path
) -> LocalMigration:  # type: ignore[no-untyped-def]
    """A local migration with a control store that can be cut."""
    control = make_server(ServerKind.VALKEY_91, appendonly="yes", appendfsync="everysec")
    local = LocalMigration(redis62, valkey91, control, folder)
    await local.open()
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    return local


async def write(local: LocalMigration, name: str, count: int) -> set[Key]:
    app = local.app()
    for number in range(count):
        await app.set(f"{name}:{number}", number)
    await local.flushed()
    return {(0, f"{name}:{number}".encode()) for number in range(count)}


@pytest.mark.parametrize("seed", range(3))
async def test_entries_that_the_store_lost_are_journalled_again(
    redis62: DatabaseServer, valkey91: DatabaseServer, make_server, tmp_path: Path, seed: int
) -> None:
    local = await lossy(redis62, valkey91, make_server, tmp_path)
    await write(local, "early", 20)
    before = aof(local.control).stat().st_size
    late = await write(local, "late", 20)
    assert late <= await journalled(local)
    # Somewhere before the end of the last of these entries
    data, name = aof(local.control).read_bytes(), local.store.keys.journal(0)[:-1].encode()
    entries = [found.start() for found in re.finditer(re.escape(name), data)]
    last = max(at for at in entries if b"late:" in data[at : at + 200])
    await cut(local, random.Random(seed).randrange(before, last))
    noticed = local.gateways["gw-1"][0].journaler._tails_lost  # by a heartbeat, before we looked
    assert noticed or not late <= await journalled(local), (
        "the store has lost nothing: the test tests nothing"
    )

    async def again() -> bool:
        return late <= await journalled(local)

    await until(again, within_s=15, otherwise="what the store had lost was not journalled again")
    await local.drained()
    assert (await local.verify()).divergences == []
    await local.close()


async def test_entries_that_the_store_lost_after_it_had_fsynced_them_are_a_gap(
    redis62: DatabaseServer, valkey91: DatabaseServer, make_server, tmp_path: Path
) -> None:
    """An older copy of the store, or a replica far behind. The intents are gone, so nobody can name
    the keys.
    """
    local = await lossy(redis62, valkey91, make_server, tmp_path)
    gateway, _ = local.gateways["gw-1"]
    await write(local, "early", 20)
    before = aof(local.control).stat().st_size
    await write(local, "late", 20)
    journaler = gateway.journaler
    journaler._begin_segment()
    journaler._wake.set()

    async def retired() -> bool:
        return journaler.segments == 1 and journaler._old_segment is None

    await until(retired, within_s=15, otherwise="the intents were never retired")
    await cut(local, before)
    await opened(local, "the control store lost entries")
    await local.close()


async def test_no_heartbeat_says_flushed_while_the_store_lacks_a_batch(
    redis62: DatabaseServer, valkey91: DatabaseServer, make_server, tmp_path: Path
) -> None:
    local = await lossy(redis62, valkey91, make_server, tmp_path)
    gateway, _ = local.gateways["gw-1"]
    await write(local, "k", 20)
    name = local.store.keys.acknowledged
    await local.store.client.hset(name, "gw-1", "0")  # as it stood in an older copy
    journaler, told = gateway.journaler, []
    tell = gateway.heartbeats.describe

    def seen(at_ms: int):  # type: ignore[no-untyped-def]
        told.append(journaler._tails_lost)
        return tell(at_ms)

    gateway.heartbeats.describe = seen
    gateway.heartbeats.now.set()

    async def noticed() -> bool:
        return bool(told) and journaler._tails_lost == 1

    await until(noticed, within_s=10, otherwise="the loss was not noticed by the heartbeat")
    await local.close()


# ---- two processes under one id


async def test_a_second_gateway_of_one_id_refuses_to_start_while_the_first_is_alive(
    local: LocalMigration, tmp_path: Path
) -> None:
    await local.gateway()
    await local.change(why="the first has beaten")
    second = Gateway(
        local.store,
        local.plan,
        await load_table(local.plan),
        GatewayOptions("gw-1", tmp_path / "second", "127.0.0.1", 0),
    )
    with pytest.raises(OperatorError, match="a gateway runs under the id gw-1"):
        await claim_id(second)


async def test_two_gateways_of_one_id_are_two_registrations(
    local: LocalMigration, tmp_path: Path
) -> None:
    """The control store was away when the second one began, so nothing warned it."""
    await local.gateway()
    await local.change(why="the first has beaten")
    options = GatewayOptions("gw-1", tmp_path / "second", "127.0.0.1", 0, drain_s=0.1)
    second = Gateway(local.store, local.plan, await load_table(local.plan), options)
    local.gateways["second"] = (
        second,
        asyncio.create_task(second.run(await local.change(why="both"))),
    )

    async def both() -> bool:
        return len(await local.store.registrations("gateway")) == 2

    await until(both, within_s=10, otherwise="one registration stands for two processes")
    assert set(await local.store.registrations("gateway")) == {"gw-1", second.heartbeats.registered}


async def test_a_gateway_in_place_of_one_whose_folder_is_gone_is_a_gap(
    local: LocalMigration, tmp_path: Path
) -> None:
    await local.gateway()
    await local.change(why="it has beaten")
    gateway, task = local.gateways.pop("gw-1")
    beat = (await local.store.registrations("gateway"))["gw-1"]
    owner = await local.store.client.hget(local.store.keys.owner("gateway"), "gw-1")
    gateway.stop()
    await asyncio.wait([task])
    # As if it had been killed a minute ago.
    await local.store.register("gateway", "gw-1", {**beat, "at_ms": beat["at_ms"] - 60_000})
    await local.store.client.hset(local.store.keys.owner("gateway"), "gw-1", owner)
    (tmp_path / "gw-1").rename(tmp_path / "away")
    await local.gateway()
    await opened(local, "its state folder is not this one")
