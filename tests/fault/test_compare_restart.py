"""A comparer that is killed: the next one continues where it stopped."""

from __future__ import annotations

import pytest

from exodus.control.changes import pack
from exodus.control.heartbeats import ComparerHeartbeat
from exodus.control.registry import heartbeats
from exodus.net.client import answered
from exodus.plan.vocabulary import Side
from exodus.shadow.divergences import DivergenceState
from exodus.shadow.resume import ENDED
from tests.support.comparing import comparing_apart, counted, ledger, quiet, row_of
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

pytestmark = pytest.mark.fault
_KEYS = 40


async def _beat(local: LocalMigration) -> ComparerHeartbeat:
    (beat,) = await heartbeats(local.store, "comparer")
    return beat


def _copies(local: LocalMigration) -> int:
    """How many keys were written to the target, as payloads."""
    with local.servers[Side.TARGET].client() as client:
        return int(client.info("commandstats").get("cmdstat_restore", {"calls": 0})["calls"])


async def test_a_restarted_comparer_copies_nothing_again(local: LocalMigration) -> None:
    """Another copy would heal a key before it is judged."""
    source, target = (local.servers[side].client() for side in Side)
    source.mset({f"k{number}": number for number in range(_KEYS)})
    async with comparing_apart(local) as comparers:
        app = local.app()
        for number in range(_KEYS):
            await app.get(f"k{number}")
        await row_of(local, "GET", "equal", _KEYS)
        await quiet(local)
        before = _copies(local)
        assert before == _KEYS
        await comparers.kill()
        target.set("k7", "stale")
        await app.set("k8", "written meanwhile")
        await comparers.begin()
        for number in range(_KEYS):
            await app.get(f"k{number}")
        await row_of(local, "GET", "divergences")
        assert _copies(local) == before + 1  # the one that was written
        assert {row["key"] for row in await ledger(local)} == {"k7"}
        assert target.get("k8") == b"written meanwhile"
        assert target.get("k7") == b"stale"


async def test_what_was_counted_and_known_is_taken_up(local: LocalMigration) -> None:
    source = local.servers[Side.SOURCE].client()
    source.mset({f"k{number}": number for number in range(_KEYS)})
    async with comparing_apart(local) as comparers:
        app = local.app()
        for number in range(_KEYS):
            await app.get(f"k{number}")
        await row_of(local, "GET", "equal", _KEYS)
        await quiet(local)
        counted_before, facts = await counted(local, "GET"), (await _beat(local)).facts
        await comparers.kill()
        await comparers.begin()
        assert (await counted(local, "GET"))["equal"] >= counted_before["equal"]
        again = (await _beat(local)).facts
        assert again.keys == facts.keys == _KEYS
        assert again.keys_judged >= _KEYS * 0.95
        assert again.away_ms > 0


async def test_a_key_that_differed_when_the_comparer_was_killed_is_found(
    local: LocalMigration,
) -> None:
    """What was not judged to the end is inconclusive. The next comparer finds the difference."""
    target = local.servers[Side.TARGET].client()
    async with comparing_apart(local) as comparers:
        app = local.app()
        await app.set("k", "right")
        await app.get("k")
        await row_of(local, "GET", "equal")
        await quiet(local)
        target.set("k", "stale")
        await app.get("k")
        await row_of(local, "GET", "compared", 2)  # it waits for its second look

        async def kept() -> bool:
            raw = await answered(local.store.client.get(local.store.keys.sampling))
            return b'"waiting":{"GET":1}' in raw

        await until(kept, within_s=4, otherwise="nothing of it was written down")
        await comparers.kill()
        await comparers.begin()
        facts = (await _beat(local)).facts
        assert facts.inconclusive.get(ENDED) == 1

        async def found() -> bool:
            await app.get("k")
            return any(
                row["state"] == DivergenceState.CONFIRMED and row["command"] == "state"
                for row in await ledger(local)
            )

        await until(found, within_s=25, otherwise="the difference was not found")
        assert target.get("k") == b"stale"


async def test_a_key_whose_first_copy_was_under_way_is_copied_again(
    local: LocalMigration,
) -> None:
    """The store was told of the key before the target had it."""
    source, target = (local.servers[side].client() for side in Side)
    source.mset({"whole": 1, "half": 2})
    async with comparing_apart(local) as comparers:
        app = local.app()
        await app.get("whole")
        await row_of(local, "GET", "equal")
        await quiet(local)
        await comparers.kill()
        packed = pack([(0, b"half")])
        await answered(local.store.client.sadd(local.store.keys.seeding, packed))
        await answered(local.store.client.sadd(local.store.keys.seeded, packed))
        await comparers.begin()
        before = (await counted(local, "GET"))["equal"]
        await app.get("half")
        await row_of(local, "GET", "equal", before + 1)
        assert target.get("half") == b"2"
        assert not await answered(local.store.client.exists(local.store.keys.seeding))
        assert await ledger(local) == []
