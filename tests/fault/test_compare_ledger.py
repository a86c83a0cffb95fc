"""The ledger of divergences: kept for the migration, healed by exodus repair, accepted by name."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from exodus.closing import ends
from exodus.net.client import answered
from exodus.plan.address import Credentials
from exodus.plan.compare_rules import CompareRule, ReplyRule
from exodus.plan.vocabulary import JournalMode, Side
from exodus.shadow import divergences, rules
from exodus.shadow.causes import Cause
from exodus.shadow.divergences import STATE, DivergenceState
from tests.support.comparing import comparing, ledger, quiet, row_of
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def _note(local: LocalMigration, key: bytes = b"k", **more: object) -> bool:
    row = {"kind": "replies differ", "cause": Cause.STALE, **more}
    return await divergences.note(local.store, (0, key), "GET", **row)  # type: ignore[arg-type]


async def _one(local: LocalMigration) -> dict[str, object]:
    (row,) = await ledger(local)
    return row


async def test_a_row_tells_since_when_and_how_often(local: LocalMigration) -> None:
    await _note(local)
    first = await _one(local)
    await asyncio.sleep(0.01)
    await _note(local)
    again = await _one(local)
    assert again["first_seen_ms"] == first["first_seen_ms"] < again["at_ms"]
    assert (first["times"], again["times"], again["state"]) == (1, 2, "confirmed")


async def test_an_accepted_row_is_open_again_for_another_cause(local: LocalMigration) -> None:
    await _note(local)
    assert await divergences.accept(local.store, "0:k GET\n0:other GET", "Ada") == ["0:k GET"]
    await _note(local)
    assert (await _one(local))["state"] == "accepted"
    assert (await _one(local))["accepted_by"] == "Ada"
    await _note(local, cause=Cause.EVICTED)
    assert (await _one(local))["state"] == "confirmed"


async def test_what_is_pending_replaces_nothing_and_is_withdrawn(local: LocalMigration) -> None:
    await _note(local, state=DivergenceState.PENDING)
    assert divergences.is_open(await _one(local))
    await divergences.withdraw(local.store, (0, b"k"), "GET")
    assert await ledger(local) == []
    await _note(local)
    await _note(local, state=DivergenceState.PENDING, cause="")
    await divergences.withdraw(local.store, (0, b"k"), "GET")
    assert (await _one(local))["state"] == "confirmed"
    await _note(local, b"other", state=DivergenceState.PENDING)
    await divergences.begin(local.store)  # another sampling
    assert [row["key"] for row in await ledger(local)] == ["k"]


async def test_values_are_bounded_masked_and_expire(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = b"secret" * 1_000
    assert len(divergences.shown(long, masked=False)) == 201
    masked = divergences.shown(long, masked=True)
    assert "secret" not in masked
    assert masked != divergences.shown(b"secret" * 999 + b"secrex", masked=True)
    await _note(local, values={"authority_value": "a", "follower_value": "b"})
    names = local.store.keys
    assert int(await answered(local.store.client.pttl(names.divergence_values))) > 0
    (row,) = await divergences.rows(local.store)
    assert (row["authority_value"], row["follower_value"]) == ("a", "b")
    assert "authority_value" not in await _one(local)
    await local.store.client.xadd(names.shadow, {"q": "value"})
    await divergences.forget_values(local.store)
    assert not await answered(local.store.client.exists(names.divergence_values, names.shadow))
    assert len(await ledger(local)) == 1
    monkeypatch.setattr(divergences, "DIVERGENCES_MAX", 1)
    assert await _note(local)
    assert not await _note(local, b"another")


async def test_nothing_of_a_value_is_left_when_the_migration_is_finalised(
    local: LocalMigration,
) -> None:
    """The rows stay: the evidence names them."""
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    await _note(local, values={"authority_value": "secret"})
    await local.store.client.xadd(local.store.keys.shadow, {"q": "secret"})
    await ends.finalise(local.store, local.plan)
    names = local.store.keys
    assert not await answered(local.store.client.exists(names.divergence_values, names.shadow))
    assert len(await ledger(local)) == 1


async def test_nothing_of_a_value_is_left_when_the_migration_ends(local: LocalMigration) -> None:
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    await _note(local, values={"authority_value": "secret"})
    await local.store.client.xadd(local.store.keys.shadow, {"q": "secret"})
    await ends.abandon(local.store, local.plan, clean_target=False)
    left = [
        name
        async for name in local.store.client.scan_iter(match="*")
        if name.endswith((b":shadow", b":divergence", b":divergence:values"))
    ]
    assert left == []


async def test_a_masked_ledger_has_no_value_of_a_key(local: LocalMigration) -> None:
    local.plan = local.plan.model_copy(update={"compare_masked": True})
    target = local.servers[Side.TARGET].client()
    async with comparing(local):
        app = local.app()
        await app.set("k", "a-secret")
        await app.get("k")
        await row_of(local, "GET", "equal")
        target.set("k", "other-secret")
        await app.get("k")
        await row_of(local, "GET", "divergences")
        (row,) = [row for row in await divergences.rows(local.store) if row["command"] == "GET"]
        assert "secret" not in str(row)
        assert row["authority_value"].startswith("masked: ")


async def test_what_is_seen_to_be_equal_again_is_healed(local: LocalMigration) -> None:
    """Meanwhile a right was granted, or a key was written again."""
    target = local.servers[Side.TARGET].client()
    async with comparing(local):
        app = local.app()
        await app.set("k", "right")
        await app.get("k")
        await row_of(local, "GET", "equal")
        target.set("k", "stale")
        await app.get("k")
        await row_of(local, "GET", "divergences")
        await app.set("k", "written again")

        async def healed() -> bool:
            await app.get("k")
            return {row["state"] for row in await ledger(local)} == {"healed"}

        await until(healed, within_s=15, otherwise="the rows stayed open")


async def test_only_the_request_that_differed_heals_its_row(local: LocalMigration) -> None:
    """Before, a read of another field healed the row of the field that is missing."""
    target = local.servers[Side.TARGET].client()

    async def state() -> str:
        (row,) = [row for row in await ledger(local) if row["command"] == "HGET"]
        return str(row["state"])

    async with comparing(local):
        app = local.app()
        await app.hset("k", mapping={"f": 1, "g": 2, "h": 3})
        await app.hget("k", "f")
        await row_of(local, "HGET", "equal")
        await quiet(local)
        target.hdel("k", "g", "h")
        await app.hget("k", "g")
        await app.hget("k", "h")
        await row_of(local, "HGET", "divergences", 2)
        await app.hget("k", "f")
        await row_of(local, "HGET", "equal", 2)
        assert await state() == "confirmed"
        target.hset("k", "g", 2)
        await app.hget("k", "g")
        await row_of(local, "HGET", "equal", 3)
        assert await state() == "confirmed"
        target.hset("k", "h", 3)
        await app.hget("k", "h")
        await row_of(local, "HGET", "equal", 4)

        async def healed() -> bool:
            return await state() == "healed"

        await until(healed, within_s=5, otherwise="the row stayed open")


async def test_more_requests_than_are_known_are_healed_by_nobody_but_a_repair(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergences, "DIVERGENCE_REQUESTS_MAX", 2)
    for request in ("a", "b", "b", "c", "d"):
        await _note(local, request=request)
    assert (await _one(local))["requests"] == ["a", "b", "more"]
    left = [await divergences.equal_now(local.store, (0, b"k"), "GET", each) for each in "abcd"]
    assert left == [["b", "more"], ["more"], ["more"], ["more"]]
    assert "requests" not in (await divergences.rows(local.store))[0]
    await divergences.heal(local.store, (0, b"k"), "GET")
    await _note(local, request="e")
    assert (await _one(local))["requests"] == ["e"]


@pytest.mark.parametrize("masked", [False, True])
async def test_no_row_has_the_arguments_of_a_request_that_the_target_does_not_know(
    modern: LocalMigration, tmp_path: Path, masked: bool
) -> None:
    """The server repeats them in its error, and rows are kept for the whole migration."""
    secret = tmp_path / "app"
    secret.write_text("app-secret")
    target = modern.servers[Side.TARGET].client()
    target.execute_command("ACL", "SETUSER", "shop", "reset", "on", ">app-secret", "~*", "+@all")
    user = Credentials(username="shop", password_file=secret)
    rule = CompareRule(commands=("GET",), rule=ReplyRule.PYTHON, function="theirs")
    modern.plan = modern.plan.model_copy(
        update={"compare_user": user, "compare_masked": masked, "compare_rules": (rule,)}
    )

    def raises(*_: object) -> bool:
        raise ValueError("not a number: private")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "_function", lambda _: raises)
        async with comparing(modern):
            app = modern.app()
            await app.xadd("k", {"f": 1}, id="1-1")
            await app.execute_command("XACKDEL", "k", "private", "IDS", 1, "1-1")
            await app.execute_command("XTRIM", "k", "MAXLEN", 5, "ACKED")
            await app.set("number", "private")
            await row_of(modern, "XACKDEL", "divergences")
            await row_of(modern, "XTRIM", "divergences")
            await row_of(modern, "SET", "compared")
            await quiet(modern)
            await app.get("number")
            await row_of(modern, "GET", "divergences")
    rows = {row["command"]: row for row in await ledger(modern)}
    assert {rows[name]["cause"] for name in ("XACKDEL", "XTRIM")} == {Cause.VERSION}
    assert all("private" not in rows[name]["detail"] for name in ("XACKDEL", "XTRIM"))
    assert "raised ValueError" in rows["GET"]["detail"]
    assert ("private" in rows["GET"]["detail"]) is not masked
    assert rows["XTRIM"]["detail"] == ("ERR (masked)" if masked else "ERR syntax error")


async def test_an_option_that_the_target_lacks_is_not_healed_by_another_request(
    modern: LocalMigration,
) -> None:
    """A syntax error depends on no state. Before, it was inconclusive."""
    async with comparing(modern):
        app = modern.app()
        await app.xadd("k", {"f": 1}, id="1-1")
        await app.execute_command("XTRIM", "k", "MAXLEN", 5, "ACKED")
        await row_of(modern, "XTRIM", "divergences")
        await app.xtrim("k", maxlen=4)
        await row_of(modern, "XTRIM", "equal")
        (row,) = await ledger(modern)
        assert (row["command"], row["kind"]) == ("XTRIM", "the target refuses it")
        assert (row["cause"], row["state"]) == (Cause.VERSION, "confirmed")


@pytest.mark.parametrize("while_it_runs", [True, False])
async def test_exodus_repair_heals_what_copying_can(
    local: LocalMigration, tmp_path: Path, while_it_runs: bool
) -> None:
    """When Compare is over, the target holds no sample. So repair copies the key, compares it, and
    removes it again.
    """
    source, target = (local.servers[side].client() for side in Side)
    source.mset({"k": "right", "refused": 1})
    await local.start_live_sync()
    await local.change(
        journal=JournalMode.SAMPLE, sync=False, shadow_rate=1.0 if while_it_runs else 0.0
    )
    await _note(local)
    await divergences.note(local.store, (0, b"k"), STATE, kind="value", cause=Cause.UNKNOWN)
    await divergences.note(
        local.store, (0, b"refused"), "LPUSH", kind="refused", cause=Cause.PERMISSION
    )
    command = [
        sys.executable,
        "-m",
        "exodus.cli.app",
        "repair",
        "--file",
        str(local.file(tmp_path)),
    ]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, timeout=60
    )
    assert "2 of 3 divergences healed" in done.stdout, done.stdout + done.stderr
    assert "0:refused LPUSH: a copy does not heal it" in done.stdout
    assert done.returncode == 1
    assert target.get("k") == (b"right" if while_it_runs else None)
    assert not await answered(local.store.client.scard(local.store.keys.seeded))
    states = {(row["key"], row["command"]): row["state"] for row in await ledger(local)}
    assert states == {
        ("k", "GET"): "healed",
        ("k", STATE): "healed",
        ("refused", "LPUSH"): "confirmed",
    }
