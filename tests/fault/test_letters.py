"""Keys that cannot be carried: a person accepts them by name, or they are repaired. Nothing else
lets a migration continue.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from exodus.control import letters
from exodus.plan.vocabulary import Side
from exodus.verify.reconcile import dead_letters, keys_of, reconcile, repair
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


@pytest_asyncio.fixture
async def downgrade(
    redis82: DatabaseServer, redis62: DatabaseServer, control_server: DatabaseServer, tmp_path: Path
) -> AsyncIterator[LocalMigration]:
    """A migration to a server without expiry of hash fields."""
    local = LocalMigration(redis82, redis62, control_server, tmp_path)
    await local.open()
    client = redis82.client()
    client.set("fine", 1)
    for name in (b"one", b"two\n\xff"):
        client.hset(name, mapping={"a": 1, "b": 2})
        client.execute_command("HPEXPIRE", name, 3_600_000, "FIELDS", 1, "a")
    await local.start_live_sync()
    await local.backfill()
    yield local
    await local.close()


async def test_each_is_accepted_by_its_name_or_repaired(downgrade: LocalMigration) -> None:
    store = downgrade.store
    found = await reconcile(await downgrade.engine(), "test", settle_s=0.05)
    assert {letters.name_of(letter) for letter in found["dead_letters"]} == {
        "0:one",
        r"0:two\n\xff",
    }
    assert found["divergences_total"] == 0
    assert found["keys_not_carried"] == 2
    assert found["keys_verified"] == found["keys_authority"] - 2 == 1
    assert "2 dead letter(s)" in (await letters.why_not_accepted(store, "") or "")
    assert r"0:two\n\xff" in (await letters.why_not_accepted(store, "0:one\n") or "")
    assert "'0:three' is no dead letter" in (
        await letters.why_not_accepted(store, "0:one\n0:three") or ""
    )
    assert await letters.why_not_accepted(store, "0:one\n0:two\\n\\xff\n") is None
    assert await letters.accept(store, "0:one", "Ada") == ["0:one"]
    assert await dead_letters(store) == [(0, b"two\n\xff")]
    found = await reconcile(await downgrade.engine(), "test", settle_s=0.05)
    assert [letter["accepted_by"] for letter in found["accepted_letters"]] == ["Ada"]
    assert found["divergences_total"] == 0
    downgrade.servers[Side.SOURCE].client().execute_command(
        "HPERSIST", b"two\n\xff", "FIELDS", 1, "a"
    )
    await downgrade.change(sync=False)
    assert await repair(await downgrade.engine(), [(0, b"one"), (0, b"two\n\xff")]) == {}
    assert (await letters.accepted_letters(store)).keys() == {(0, b"one")}, (
        "it failed for the reason that was accepted"
    )
    assert (await reconcile(await downgrade.engine(), "test", settle_s=0.05))[
        "keys_not_carried"
    ] == 1


async def test_another_reason_is_to_be_accepted_anew(downgrade: LocalMigration) -> None:
    store = downgrade.store
    await letters.accept(store, "0:one\n0:two\\n\\xff", "Ada")
    assert await dead_letters(store) == []
    await letters.keep(store, 0, b"one", "something else")
    assert await dead_letters(store) == [(0, b"one")]
    assert (await letters.accepted_letters(store)).keys() == {(0, b"two\n\xff")}
    await letters.forget(store, [(0, b"one"), (0, b"two\n\xff")])
    assert await letters.accepted_letters(store) == await letters.open_letters(store) == {}


async def test_a_difference_that_is_no_dead_letter_still_counts(downgrade: LocalMigration) -> None:
    downgrade.servers[Side.TARGET].client().set("fine", 2)
    found = await reconcile(await downgrade.engine(), "test", settle_s=0.05)
    assert keys_of(found) == [(0, b"fine")]
    assert found["divergences_total"] == 1
