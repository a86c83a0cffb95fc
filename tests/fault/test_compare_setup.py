"""Compare finds what the target lacks beside its keys, and asks for it by name. It ends with a
question however much it found.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from exodus.plan.gate_checks import CheckLevel, GateChecks
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.shadow import divergences, findings
from exodus.shadow.causes import Cause
from exodus.stack.servers import ServerKind
from flows import compare
from tasks import capacity
from tasks.context import Opened
from tests.support.compare_flow import save_block, traffic
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.shelf_module import shelf_module

pytestmark = pytest.mark.fault
_APP = "shop"
_MEMORY = "maxmemory of the target"


async def _findings(local: LocalMigration, plan: Plan | None = None) -> dict[str, str]:
    """Return the findings' names and causes, as Compare's task and its form have them."""
    plan = plan or local.plan
    rows = await inspect.unwrap(capacity.check_setup.fn)(Opened(plan, local.store, plan))
    return {row["name"]: row["cause"] for row in findings.of_checks(rows)}


def _smaller(source: redis.Redis, target: redis.Redis) -> None:
    source.config_set("maxmemory", 200_000_000)
    target.config_set("maxmemory", 100_000_000)


def _other_policy(source: redis.Redis, target: redis.Redis) -> None:
    source.config_set("maxmemory-policy", "noeviction")
    target.config_set("maxmemory-policy", "allkeys-random")


def _no_user(_: redis.Redis, target: redis.Redis) -> None:
    target.acl_deluser(_APP)


def _smaller_values(_: redis.Redis, target: redis.Redis) -> None:
    target.config_set("proto-max-bulk-len", 2_000_000)


@pytest.mark.parametrize(
    ("plant", "name", "cause"),
    [
        (_smaller, _MEMORY, Cause.CONFIGURATION),
        (_other_policy, "setting maxmemory-policy", Cause.CONFIGURATION),
        (_smaller_values, "setting proto-max-bulk-len", Cause.CONFIGURATION),
        (_no_user, f"login of user {_APP}", Cause.PERMISSION),
    ],
)
async def test_a_planted_defect_of_the_setup_is_found_with_its_cause(
    local: LocalMigration,
    plant: Callable[[redis.Redis, redis.Redis], None],
    name: str,
    cause: Cause,
) -> None:
    source, target = (local.servers[side].client() for side in Side)
    for client in (source, target):
        client.execute_command("ACL", "SETUSER", _APP, "on", ">secret", "~*", "&*", "+@all")
    assert await _findings(local) == {}
    plant(source, target)
    assert await _findings(local) == {name: cause}
    off = GateChecks(settings=CheckLevel.OFF, logins=CheckLevel.OFF, delivery=CheckLevel.OFF)
    assert await _findings(local, local.plan.model_copy(update={"test_checks": off})) == {}


@pytest.mark.parametrize(
    ("version", "name"),
    [(20_600, "version of module shelf"), (20_810, "")],
)
async def test_an_older_module_is_found(
    local: LocalMigration,
    make_server: Callable[..., DatabaseServer],
    tmp_path: Path,
    version: int,
    name: str,
) -> None:
    sides = [make_server(ServerKind.REDIS_82, **{"enable-module-command": "yes"}) for _ in Side]
    file = str(shelf_module(tmp_path))
    for server, loaded in zip(sides, (20_810, version), strict=True):
        server.client().execute_command("MODULE", "LOAD", file, loaded)
    plan = local.plan.model_copy(
        update={"source": sides[0].address(), "target": sides[1].address()}
    )
    assert await _findings(local, plan) == ({name: Cause.VERSION} if name else {})


async def test_a_module_that_is_used_and_missing_is_found(modern: LocalMigration) -> None:
    assert await _findings(modern) == {}
    modern.servers[Side.SOURCE].client().execute_command("VADD", "v", "VALUES", 1, 1, "e")
    assert await _findings(modern) == {"module vectorset": Cause.VERSION}


async def test_a_library_that_the_target_does_not_take_is_found(modern: LocalMigration) -> None:
    source = modern.servers[Side.SOURCE].client()
    source.function_load(
        "#!lua name=good\nredis.register_function('good', function() return 1 end)"
    )
    assert await _findings(modern) == {}  # the cutover carries it
    source.function_load(
        "#!lua name=newer\nif redis.REDIS_VERSION_NUM < 524288 then redis.older() end\n"
        "redis.register_function('newer', function() return 1 end)"
    )
    assert await _findings(modern) == {"function libraries": Cause.CONFIGURATION}


async def _ask(
    local: LocalMigration,
    monkeypatch: pytest.MonkeyPatch,
    answers: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    """Run Compare. `answers` gets what the form shows, and returns the answer that counts."""

    def ask(form: object, **shown: Any) -> dict[str, Any]:
        # In place of the suspension, which needs a worker (tests/e2e has it).
        del form
        facts = answers(shown)
        return {
            "verdict": facts["decision"],
            "decided_by": "the test",
            "why": "it is tested",
            "facts": facts,
        }

    monkeypatch.setattr(compare, "ask", ask)
    monkeypatch.setattr(compare, "go_on", lambda _: None)
    async with traffic(local):
        await asyncio.to_thread(compare.compare, local.plan.name)


# Great Expectations, which flows import in processes of their own
@pytest.mark.filterwarnings("default")
async def test_a_smaller_maxmemory_is_accepted_by_name_or_corrected(
    local: LocalMigration, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    await save_block(local)
    source, target = (local.servers[side].client() for side in Side)
    _smaller(source, target)
    shown: list[str] = []

    def answers(form: dict[str, Any]) -> dict[str, Any]:
        shown.extend(form["summary"])
        refuse, named = form["refuse"], {"decision": "approve", "accept_findings": _MEMORY}
        plain = {"decision": "approve", "accept_findings": ""}
        assert "1 finding(s) are neither resolved nor accepted" in refuse(plain, 1)
        assert refuse({"decision": "reject"}, 2) is None
        assert refuse(named, 3) is None
        target.config_set("maxmemory", 0)
        assert refuse(plain, 4) is None
        target.config_set("maxmemory", 100_000_000)
        return named

    await _ask(local, monkeypatch, answers)
    assert shown[0].startswith("1 FINDING(S)")
    assert f"{_MEMORY} (configuration)" in shown[0]
    report = await local.store.report("evidence.compare")
    assert report is not None
    (row,) = [row for row in report["frames"]["advice"] if not row["ok"]]
    assert (row["check"], row["level"], row["cause"]) == (_MEMORY, "should", Cause.CONFIGURATION)
    assert [row["name"] for row in report["lists"]["findings"]] == [_MEMORY]


@pytest.mark.filterwarnings("default")
async def test_more_findings_than_a_person_reviews_are_asked_with_and_not_accepted(
    local: LocalMigration, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the run failed, and nobody was asked. Now the form says so, and an approval waits
    until repairs have left few enough.
    """
    await save_block(local)
    monkeypatch.setattr(findings, "FINDINGS_MAX", 3)
    names = [f"0:left-{number} GET" for number in range(5)]
    for number in range(5):
        await divergences.note(
            local.store, (0, f"left-{number}".encode()), "GET", kind="differ", cause=Cause.STALE
        )
    shown: list[str] = []

    def heal() -> None:
        async def work() -> None:
            for key in (b"left-0", b"left-1"):
                await divergences.heal(local.store, (0, key), "GET")

        asyncio.run_coroutine_threadsafe(work(), loop).result(10)

    def answers(form: dict[str, Any]) -> dict[str, Any]:
        shown.extend(form["summary"])
        refuse = form["refuse"]
        all_of_them = {"decision": "approve", "accept_findings": "\n".join(names)}
        why = refuse(all_of_them, 1)
        assert "5 findings are open, and one answer accepts at most 3 by name" in why
        assert "exodus repair" in why
        assert refuse({"decision": "reject"}, 2) is None
        heal()
        left = {"decision": "approve", "accept_findings": "\n".join(names[2:])}
        assert "finding(s) are neither" in refuse({**left, "accept_findings": ""}, 3)
        assert refuse(left, 4) is None
        return left

    loop = asyncio.get_running_loop()
    await _ask(local, monkeypatch, answers)
    assert shown[0].startswith("5 FINDING(S)")
    assert "one answer accepts at most 3 findings by name" in shown[1]
    report = await local.store.report("evidence.compare")
    assert report is not None
    assert report["summary"]["findings"] == 5
    assert [len(report["lists"][name]) for name in ("findings", "divergences")] == [3, 3]
    states = {row["key"]: row["state"] for row in await divergences.rows(local.store)}
    assert states == {
        f"left-{number}": "healed" if number < 2 else "accepted" for number in range(5)
    }
