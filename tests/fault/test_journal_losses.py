"""The journal's promise: a batch is unflushed until it is in the journal, the spool or a gap, and
what the store lost is noticed.
"""

from __future__ import annotations

import asyncio
import random
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
from tests.support.plant import Plant
from tests.support.servers import Box
from tests.support.wait import until

pytestmark = pytest.mark.fault

NO_SERVER_HAS_IT = 2**40  # a database that cannot be packed


async def journalled(plant: Plant) -> set[Key]:
    found = await journal.since(plant.store, dict.fromkeys(range(plant.plan.partitions), b"0-0"))
    return set(found.keys)


async def gaps(plant: Plant) -> set[str]:
    return {
        name.decode().partition(": ")[2]
        for name in await plant.store.client.hkeys(plant.store.keys.gap)
    }


async def opened(plant: Plant, part: str) -> None:
    async def there() -> bool:
        return any(part in gap for gap in await gaps(plant))

    await until(there, within_s=15, otherwise=f"no gap was opened for {part!r}")


async def test_a_batch_that_cannot_be_journalled_is_a_gap_before_the_gateway_says_flushed(
    plant: Plant,
) -> None:
    gateway = await plant.gateway()
    await plant.change(journal=JournalMode.ALL)
    gateway.mark([(0, b"acknowledged"), (NO_SERVER_HAS_IT, b"k")], Barrier("flushdb", (3,)))
    await plant.flushed()
    assert any("could not be spooled" in gap for gap in await gaps(plant))
    gateway.mark([(0, b"later")], None)
    await plant.flushed()
    assert (0, b"later") in await journalled(plant)


async def test_a_spooled_batch_that_cannot_be_journalled_is_a_gap_and_the_next_one_follows(
    plant: Plant, tmp_path: Path
) -> None:
    spool = Spool(tmp_path / "gw-1")
    # No store takes such an entry
    assert spool.append([(0, b"first")], [Barrier("x" * (600 * 1024 * 1024 // 4))]) is True
    assert spool.append([(0, b"second")], [])
    plant.control.client().config_set("proto-max-bulk-len", 1024 * 1024)
    try:
        gateway = await plant.gateway()
        await asyncio.sleep(1)
        assert gateway.journaler.unflushed, (
            "it is not said to be flushed while the store refuses it"
        )
    finally:
        plant.control.client().config_set("proto-max-bulk-len", 512 * 1024 * 1024)
    await plant.flushed()
    assert (0, b"second") in await journalled(plant)


@pytest.mark.parametrize("torn", ["spool", "intents"])
async def test_a_damaged_file_is_a_gap_that_keeps_the_cutover_from_being_made(
    plant: Plant, tmp_path: Path, torn: str
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
    await plant.gateway()
    await plant.syncer()
    await plant.start_live_sync()
    await opened(plant, "is damaged")
    with pytest.raises(DecisionRefused, match="open gap"):
        await switch.apply(plant.store, plant.plan, Side.TARGET)
    await plant.flushed()
    assert not (folder / "spool.log").exists()


async def test_a_gap_survives_the_process_until_the_store_has_it(
    plant: Plant, tmp_path: Path
) -> None:
    log = IntentLog(tmp_path / "gw-1", pytest.fail)
    assert log.append_gap("a gap of a killed process")
    log.close()
    await plant.gateway()
    await opened(plant, "a gap of a killed process")


# ---- the control store loses what it acknowledged


def aof(box: Box) -> Path:
    (path,) = Path(str(box._arguments["folder"])).rglob("*.incr.aof")
    return path


async def cut(plant: Plant, size: int) -> None:
    """The control store dies, and of its file only so many bytes were on the disk."""
    plant.control.kill()
    with aof(plant.control).open("r+b") as file:
        file.truncate(size)
    plant.control.start()
    await plant.store.client.connection_pool.disconnect()


async def lossy(redis62: Box, valkey91: Box, make_server, folder: Path) -> Plant:  # type: ignore[no-untyped-def]
    """A plant whose control store can be cut."""
    control = make_server(ServerKind.VALKEY_91, appendonly="yes", appendfsync="everysec")
    plant = Plant(redis62, valkey91, control, folder)
    await plant.open()
    await plant.gateway()
    await plant.syncer()
    await plant.start_live_sync()
    return plant


async def write(plant: Plant, name: str, count: int) -> set[Key]:
    app = plant.app()
    for number in range(count):
        await app.set(f"{name}:{number}", number)
    await plant.flushed()
    return {(0, f"{name}:{number}".encode()) for number in range(count)}


@pytest.mark.parametrize("seed", range(3))
async def test_entries_that_the_store_lost_are_journalled_again(
    redis62: Box, valkey91: Box, make_server, tmp_path: Path, seed: int
) -> None:
    plant = await lossy(redis62, valkey91, make_server, tmp_path)
    await write(plant, "early", 20)
    before = aof(plant.control).stat().st_size
    late = await write(plant, "late", 20)
    assert late <= await journalled(plant)
    await cut(plant, random.Random(seed).randrange(before, aof(plant.control).stat().st_size))
    noticed = plant.gateways["gw-1"][0].journaler._tails_lost  # by a heartbeat, before we looked
    assert noticed or not late <= await journalled(plant), (
        "the store has lost nothing: the test tests nothing"
    )

    async def again() -> bool:
        return late <= await journalled(plant)

    await until(again, within_s=15, otherwise="what the store had lost was not journalled again")
    await plant.drained()
    assert (await plant.verify()).divergences == []
    await plant.close()


async def test_entries_that_the_store_lost_after_it_had_fsynced_them_are_a_gap(
    redis62: Box, valkey91: Box, make_server, tmp_path: Path
) -> None:
    """An older copy of the store, or a replica far behind: the intents are gone, so nobody can name
    the keys.
    """
    plant = await lossy(redis62, valkey91, make_server, tmp_path)
    gateway, _ = plant.gateways["gw-1"]
    await write(plant, "early", 20)
    before = aof(plant.control).stat().st_size
    await write(plant, "late", 20)
    journaler = gateway.journaler
    journaler._begin_segment()
    journaler._wake.set()

    async def retired() -> bool:
        return journaler.segments == 1 and journaler._old_segment is None

    await until(retired, within_s=15, otherwise="the intents were never retired")
    await cut(plant, before)
    await opened(plant, "the control store lost entries")
    await plant.close()


async def test_no_heartbeat_says_flushed_while_the_store_lacks_a_batch(
    redis62: Box, valkey91: Box, make_server, tmp_path: Path
) -> None:
    plant = await lossy(redis62, valkey91, make_server, tmp_path)
    gateway, _ = plant.gateways["gw-1"]
    await write(plant, "k", 20)
    name = plant.store.keys.acknowledged
    await plant.store.client.hset(name, "gw-1", "0")  # as it stood in an older copy
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
    await plant.close()


# ---- two processes under one id


async def test_a_second_gateway_of_one_id_refuses_to_start_while_the_first_is_alive(
    plant: Plant, tmp_path: Path
) -> None:
    await plant.gateway()
    await plant.change(why="the first has beaten")
    second = Gateway(
        plant.store,
        plant.plan,
        await load_table(plant.plan),
        GatewayOptions("gw-1", tmp_path / "second", "127.0.0.1", 0),
    )
    with pytest.raises(OperatorError, match="a gateway runs under the id gw-1"):
        await claim_id(second)


async def test_two_gateways_of_one_id_are_two_registrations(plant: Plant, tmp_path: Path) -> None:
    """The control store was away when the second began, so nothing told it."""
    await plant.gateway()
    await plant.change(why="the first has beaten")
    options = GatewayOptions("gw-1", tmp_path / "second", "127.0.0.1", 0, drain_s=0.1)
    second = Gateway(plant.store, plant.plan, await load_table(plant.plan), options)
    plant.gateways["second"] = (
        second,
        asyncio.create_task(second.run(await plant.change(why="both"))),
    )

    async def both() -> bool:
        return len(await plant.store.registrations("gateway")) == 2

    await until(both, within_s=10, otherwise="one registration stands for two processes")
    assert set(await plant.store.registrations("gateway")) == {"gw-1", second.heartbeats.registered}


async def test_a_gateway_in_place_of_one_whose_folder_is_gone_is_a_gap(
    plant: Plant, tmp_path: Path
) -> None:
    await plant.gateway()
    await plant.change(why="it has beaten")
    gateway, task = plant.gateways.pop("gw-1")
    beat = (await plant.store.registrations("gateway"))["gw-1"]
    owner = await plant.store.client.hget(plant.store.keys.owner("gateway"), "gw-1")
    gateway.stop()
    await asyncio.wait([task])
    # As if it had been killed a minute ago.
    await plant.store.register("gateway", "gw-1", {**beat, "at_ms": beat["at_ms"] - 60_000})
    await plant.store.client.hset(plant.store.keys.owner("gateway"), "gw-1", owner)
    (tmp_path / "gw-1").rename(tmp_path / "away")
    await plant.gateway()
    await opened(plant, "its state folder is not this one")
