"""The load check of Test on real servers: a target that keeps up passes, and each planted defect is
red.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from exodus.acceptance import load
from exodus.acceptance.load import LoadStep, _speeds, check_load, judge_load, required_us
from exodus.acceptance.rows import Checked
from exodus.gateway.tables import load_table
from exodus.observe.monitor import capture
from exodus.observe.player import Played
from exodus.observe.workload import Workload, workload_of
from exodus.plan.address import Credentials
from exodus.plan.gate_checks import GateChecks
from exodus.plan.plan import Plan
from exodus.plan.settings import Budget
from exodus.plan.vocabulary import Side
from tasks import acceptance
from tasks.capacity import measure_capacity
from tasks.checks import why_not_accepted
from tasks.context import Opened
from tests.support.local_migration import LocalMigration

pytestmark = pytest.mark.fault
_PER_S = 200
_ONE = "load: 1 times the observed rate"


@pytest.fixture
def never_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge each step: other tests on this machine make its player late."""
    monkeypatch.setattr(load, "LOAD_LATE_US_MAX", 10_000_000)


def _red(rows: Sequence[Checked]) -> dict[str, str]:
    return {row.check: row.detail for row in rows if row.judged and not row.ok}


def _plan(local: LocalMigration, **checks: object) -> Plan:
    checks = {"load_seconds": 1.0, "load_speed_max": 2.0, **checks}
    return local.plan.model_copy(update={"test_checks": GateChecks(**checks)})


async def _observed(local: LocalMigration, latency_us: int = 2_000) -> Workload:
    """Watch an application for a second, as Pre-test and Analyze would."""
    table = (await load_table(local.plan)).commands
    watching = asyncio.create_task(capture(local.plan.source, table, seconds=1.5))
    source = local.servers[Side.SOURCE].client()
    began, number = time.monotonic(), 0
    while not watching.done():
        source.set(f"order:{number % 50}", "v" * 40)
        source.get(f"order:{number % 50}")
        number += 1
        await asyncio.sleep(max(0.0, began + number * 2 / _PER_S - time.monotonic()))
    workload = workload_of((await watching).profile, source="monitor")
    await local.store.save_report("workload.pre-test", workload.model_dump(mode="json"))
    rows = [
        {
            "command": name,
            "calls": 500,
            "waits": False,
            "latency_us_p50": latency_us // 2,
            "latency_us_p99": latency_us,
        }
        for name in ("GET", "SET")
    ]
    await local.store.save_report("profile.analyze", {"commands": rows})
    return workload


@contextmanager
def _stalling(local: LocalMigration) -> Iterator[None]:
    """Stop the target for 100 ms, repeatedly."""
    target, stop = local.servers[Side.TARGET], threading.Event()

    def pulse() -> None:
        while not stop.wait(0.1):
            target.pause()
            stop.wait(0.1)
            target.resume()

    pulsing = threading.Thread(target=pulse)
    pulsing.start()
    yield
    stop.set()
    pulsing.join()
    target.resume()


def _user_without_get(local: LocalMigration) -> Credentials:
    secret = local.folder / "secret"
    secret.write_text("secret\n")
    target = local.servers[Side.TARGET].client()
    target.execute_command("ACL", "SETUSER", "shop", "on", ">secret", "~*", "&*", "+@all", "-get")
    return Credentials(username="shop", password_file=secret)


@pytest.mark.usefixtures("never_late")
async def test_a_target_that_keeps_up_passes_and_nothing_is_left(local: LocalMigration) -> None:
    await _observed(local, latency_us=200_000)
    plan = _plan(local, load_speed_max=8.0, load_seconds=0.6)
    rows = await check_load(plan, local.store)
    assert _red(rows) == {}
    assert "headroom" in rows[-1].line
    assert local.servers[Side.TARGET].client().keys("*") == []
    report = await local.store.report("test.load")
    assert report is not None
    assert [step["speed"] for step in report["steps"]][:2] == [1.0, 2.0]
    assert all(step["errors"] == 0 for step in report["steps"])


async def test_a_slow_target_is_found_with_the_command(local: LocalMigration) -> None:
    await _observed(local)
    with _stalling(local):
        rows = await check_load(_plan(local, load_seconds=2.0), local.store)
    red = _red(rows)
    assert "GET p99" in red[_ONE], rows
    assert "at most " in red[_ONE]
    assert local.servers[Side.TARGET].client().keys("*") == []


@pytest.mark.usefixtures("never_late")
async def test_analyze_measures_the_capacity_before_test_requires_it(local: LocalMigration) -> None:
    await _observed(local, latency_us=200_000)
    measure = inspect.unwrap(measure_capacity.fn)
    plan = _plan(local, load_seconds=60.0)  # Analyze plays each speed for a second
    found = await measure(Opened(plan, local.store, plan))
    assert [row["speed"] for row in found["steps"]] == [1.0, 2.0]
    assert {row["check"]: (row["ok"], row["level"]) for row in found["checks"]} == {
        _ONE: (True, "should"),
        "load: 2 times the observed rate": (True, "should"),
        "load: headroom": (True, "info"),
    }
    assert await local.store.report("test.load") is None  # Test's own figures are another thing
    refused = plan.model_copy(update={"compare_user": _user_without_get(local)})
    worse = await measure(Opened(refused, local.store, refused))
    red = {row["check"]: row for row in worse["checks"] if not row["ok"]}
    assert red[_ONE]["level"] == "should"
    assert "errors: GET" in red[_ONE]["detail"]
    assert red[_ONE]["next_step"]
    off = _plan(local, load="off")
    assert await measure(Opened(off, local.store, off)) == {"checks": [], "steps": []}


async def test_a_target_that_refuses_or_evicts_is_found(local: LocalMigration) -> None:
    await _observed(local, latency_us=200_000)
    target = local.servers[Side.TARGET].client()
    plan = _plan(local).model_copy(update={"compare_user": _user_without_get(local)})
    red = _red(await check_load(plan, local.store))
    assert "errors: GET" in red[_ONE]
    assert "NOPERM" in red[_ONE]
    used = target.info("memory")["used_memory"]
    target.config_set("maxmemory", used + 1_000_000)
    with pytest.raises(Exception, match="may run out of memory"):
        await check_load(_plan(local), local.store)


async def test_the_budget_ends_it(local: LocalMigration) -> None:
    """A source that has reached its budget is asked no more."""
    await _observed(local, latency_us=200_000)
    plan = _plan(local, load_seconds=2.5)
    plan = plan.model_copy(update={"budget": Budget(probe_ms_added_max=1.0)})
    source, stop = local.servers[Side.SOURCE], threading.Event()

    def press() -> None:
        client = source.client()
        while not stop.wait(0.01):
            client.execute_command("DEBUG", "SLEEP", "0.05")

    pressing = threading.Thread(target=press)
    checking = asyncio.create_task(check_load(plan, local.store))
    await asyncio.sleep(0.5)
    pressing.start()
    try:
        rows = await checking
    finally:
        stop.set()
        pressing.join()
    (ended,) = [row for row in rows if "the impact budget ended it" in row.why]
    assert (ended.ok, ended.by_name) == (False, True)


async def test_without_a_model_a_person_must_know(local: LocalMigration) -> None:
    """Test must not pass its required check by not doing it."""
    (row,) = await check_load(local.plan, local.store)
    assert (row.check, row.ok, row.by_name) == ("load", False, True)
    assert "no workload was observed" in row.why


def _played(**figures: int) -> Played:
    played = Played(seconds=1.0, due=1_000, sent=1_000, answered=figures.get("answered", 1_000))
    for _ in range(200):
        played.late_us.record(figures.get("late", 100))
        played.latency_us.record(1_000)
    return played


async def test_the_knee_and_a_late_player_are_told(local: LocalMigration) -> None:
    workload = await _observed(local)

    def line(*steps: LoadStep) -> str:
        return judge_load(workload, list(steps), {"GET": {"p99": 1}}, "")[-1].line

    good, better = LoadStep(1.0, _played(), 0.2, 0), LoadStep(2.0, _played(), 0.4, 0)
    worse = LoadStep(4.0, _played(answered=700), 0.9, 0)
    late = LoadStep(4.0, _played(late=50_000), 0.9, 0)
    assert "headroom 2 times the observed rate; the knee is below 4 times" in line(
        good, better, worse
    )
    assert "2 times the observed rate at least; this machine plays no faster" in line(
        good, better, late
    )
    assert "2 times the observed rate at least, 40 %" in line(good, better)
    slow_player = LoadStep(1.0, _played(late=50_000), 0.1, 0)
    assert "headroom not known; this machine is too slow" in line(slow_player)
    slow = LoadStep(1.0, _played(answered=1), 0.1, 0)
    assert "headroom none; the knee is below 1 times" in line(slow)
    assert "headroom not known" in line()
    assert _red(judge_load(workload, [LoadStep(1.0, _played(answered=1), 0.1, 0)], {}, "")) != {}
    partly = [LoadStep(1.0, _played(), 0.1, 0), LoadStep(2.0, _played(late=50_000), 0.1, 0)]
    assert _red(judge_load(workload, partly, {}, "")) == {}
    assert _red(judge_load(workload, [LoadStep(1.0, _played(), 0.1, 7)], {}, "")) != {}


async def test_a_load_that_a_late_player_could_not_judge_is_accepted_by_name(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the required check passed although nothing was known of the target."""
    await _observed(local, latency_us=200_000)
    played: list[float] = []

    async def late(*_: object, speed: float, **__: object) -> tuple[Played, None]:
        played.append(speed)
        return _played(late=50_000), None

    monkeypatch.setattr(load, "play_on_each", late)
    plan = _plan(local, load_speed_max=8.0)
    rows = await inspect.unwrap(acceptance.check_load.fn)(Opened(plan, local.store, plan))
    assert played == [1.0] * 3 + [2.0] * 3
    (found,) = [row for row in rows if not row["ok"]]
    assert (found["check"], found["level"]) == (load.NOT_JUDGED, "should")
    assert "sent requests 50 ms late (p99) at each speed, 3 times each" in found["why"]
    approval = {"decision": "approve", "accept_findings": ""}
    assert load.NOT_JUDGED in str(why_not_accepted(rows, approval))
    assert why_not_accepted(rows, {**approval, "accept_findings": load.NOT_JUDGED}) is None
    # A player that was late once is asked again, and what it then found counts.
    played.clear()

    async def late_once(*_: object, speed: float, **__: object) -> tuple[Played, None]:
        played.append(speed)
        return _played(late=50_000 if len(played) == 1 else 100), None

    monkeypatch.setattr(load, "play_on_each", late_once)
    assert _red(await check_load(plan, local.store)) == {}
    assert played == [1.0, 1.0, 2.0, 4.0, 8.0]


async def test_the_search_for_the_knee_ends(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The required speeds are played however long they take; no other is begun after the bound."""
    await _observed(local, latency_us=200_000)

    async def good(*_: object, **__: object) -> tuple[Played, None]:
        return _played(), None

    monkeypatch.setattr(load, "play_on_each", good)
    monkeypatch.setattr(load, "LOAD_KNEE_S_MAX", 0.0)
    rows = await check_load(_plan(local, load_speed_max=32.0), local.store)
    assert _red(rows) == {}
    assert "2 times the observed rate at least; not tried at 4x" in rows[-1].line
    assert GateChecks().load_speed_max == 32.0


def test_what_is_required_follows_from_what_applications_have() -> None:
    rows = [
        {"command": "GET", "calls": 900, "latency_us_p50": 100, "latency_us_p99": 1_000},
        {"command": "BLPOP", "calls": 900, "waits": True, "latency_us_p50": 1, "latency_us_p99": 1},
        {"command": "DEL", "calls": 3, "latency_us_p50": 1, "latency_us_p99": 1},
    ]
    assert required_us(rows, 2.0) == {"GET": {"p50": 5_200, "p99": 7_000}}
    assert _speeds(2) == [1, 2]
    assert _speeds(9) == [1, 2, 4, 8]
