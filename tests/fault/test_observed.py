"""Pre-test and Analyze on real servers: Exodus's own traffic is no evidence, and a client that
bypasses the gateways is found.
"""

from __future__ import annotations

import asyncio
import inspect
import threading

import pytest
import redis.asyncio as redis

from exodus.acceptance.observed import observed_workload
from exodus.control import windows
from exodus.gateway import reporting
from exodus.gateway.tables import load_table
from exodus.observe import weighing as observe_weighing
from exodus.observe.monitor import capture
from exodus.observe.workload import Workload, workload_of
from exodus.plan.vocabulary import Side
from exodus.stack.home import free_port
from exodus.telemetry import windows as telemetry_windows
from exodus.topology.endpoint import Endpoint
from tasks import clients, probe, profile, weighing
from tasks.context import Json, Opened
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

pytestmark = pytest.mark.fault


async def _watch(local: LocalMigration, seconds: float) -> dict:
    table = (await load_table(local.plan)).commands
    return (await capture(local.plan.source, table, seconds=seconds)).profile.report()


async def test_exodus_s_own_requests_are_no_traffic_copy(local: LocalMigration) -> None:
    """Before, PING, INFO, and probes of Exodus sufficed as proof that the copy works."""
    watching = asyncio.create_task(_watch(local, 2.0))
    await asyncio.sleep(1.0)
    await Endpoint(Side.SOURCE, local.plan.source).facts()
    alone = await watching
    assert alone["requests"] > 0
    assert alone["on_keys"] == 0
    watching = asyncio.create_task(_watch(local, 2.0))
    await asyncio.sleep(1.0)
    with local.servers[Side.SOURCE].client() as client:
        client.set("order:1", "x")
    assert (await watching)["on_keys"] == 1


async def test_a_client_that_bypasses_the_gateways_is_found_by_name(local: LocalMigration) -> None:
    await local.gateway()
    through = local.app(client_name="shop")
    await through.set("k", "v")
    it = Opened(local.plan, local.store, local.plan)

    async def found() -> dict[str, int]:
        rows = await clients._look(it)
        return {name: row["connections"] - row["through_gateways"] for name, row in rows.items()}

    async def nobody() -> bool:
        return await found() == {}

    await until(nobody, within_s=10, otherwise="a client behind the gateway counts as direct")
    source = local.servers[Side.SOURCE]
    login = source.address()
    direct = redis.Redis(
        port=source.port,
        username=login.username,
        password=login.secret("test"),
        client_name="billing",
    )
    await direct.ping()

    async def seen() -> bool:
        return await found() == {"billing": 1}

    await until(seen, within_s=10, otherwise="the direct client was not found")
    await direct.aclose()


@pytest.mark.parametrize(
    ("change", "red"),
    [
        (("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"), "the source's settings"),
        (("ACL", "SETUSER", "stranger", "on", ">p", "~*", "+get"), "the source's users"),
        (("REPLICAOF", "127.0.0.1", "1"), "the source's role"),
        (None, ""),
    ],
)
async def test_a_change_of_the_source_is_found_and_named(
    local: LocalMigration, change: tuple[str, ...] | None, red: str
) -> None:
    """A single digest would tell that something changed, but not what."""
    it = Opened(local.plan, local.store, local.plan)
    before = await inspect.unwrap(probe.fingerprint_source.fn)(it)
    assert "password" not in str(before)
    with local.servers[Side.SOURCE].client() as client:
        if change is not None:
            client.execute_command(*change)
    rows = await inspect.unwrap(probe.unchanged.fn)(it, before, {})
    failed = {
        row["check"]: row["detail"] for row in rows if not row["ok"] and row["level"] == "must"
    }
    assert any(name.startswith(red) for name in failed) if red else failed == {}
    if red == "the source's settings":
        assert failed == {"the source's settings are unchanged": "maxmemory-policy"}
    assert rows[-1]["detail"].startswith("PING p50 ")


async def test_who_came_a_changed_route_and_a_slower_source_are_told(local: LocalMigration) -> None:
    it = Opened(local.plan, local.store, local.plan)
    before = await inspect.unwrap(probe.fingerprint_source.fn)(it)
    cost = {
        "cpu_share_before": 0.01,
        "cpu_share_during": 0.2,
        "requests_per_s_before": 100.0,
        "requests_per_s_during": 90.0,
        "buffer_bytes_added": 4_096,
        "stopped": "",
    }

    async def rows(before: dict, cost: dict) -> dict[str, dict]:
        found = await inspect.unwrap(probe.unchanged.fn)(it, before, cost)
        return {row["check"]: row for row in found}

    speed, came = "the source answers as fast as before", "only Exodus's own connections were added"
    found = await rows(before, cost)
    assert all(row["ok"] for row in found.values()), found
    assert "1.0% of a core before and 20.0% while MONITOR ran" in found[speed]["detail"]
    assert "exodus-probe" in found[f"{came} to the source"]["detail"]
    assert not (await rows(before, {**cost, "stopped": "it takes too much"}))[speed]["ok"]
    assert not (await rows({**before, "ping_ms_p50": -5.0}, {}))[speed]["ok"]

    with local.servers[Side.SOURCE].client(client_name="newcomer") as client:
        client.ping()
        row = (await rows(before, {}))[f"{came} to the source"]
    assert (row["ok"], row["level"]) == (False, "info")
    assert row["detail"].startswith("new: newcomer; of Exodus: exodus-probe")

    await local.change(authority=Side.TARGET)
    row = (await rows(before, {}))["the route is unchanged"]
    assert (row["ok"], row["level"]) == (False, "must")


async def test_what_the_source_does_not_tell_is_not_called_unchanged(
    modern: LocalMigration,
) -> None:
    """As managed services refuse CONFIG and ACL LIST."""
    with modern.servers[Side.SOURCE].client() as client:
        client.execute_command("ACL", "SETUSER", "exodus", "-config", "-acl|list", "-role")
    it = Opened(modern.plan, modern.store, modern.plan)
    before = await inspect.unwrap(probe.fingerprint_source.fn)(it)
    async with redis.Redis(port=modern.servers[Side.SOURCE].port) as other:
        await other.execute_command("CONFIG", "SET", "timeout", 100)
        await other.execute_command("ACL", "SETUSER", "stranger", "on", ">p", "~*", "+get")
        rows = await inspect.unwrap(probe.unchanged.fn)(it, before, {})
        await other.execute_command("ACL", "SETUSER", "exodus", "+@all")
    found = {row["check"]: row for row in rows}
    for what in ("users", "settings"):
        row = found[f"the source's {what} are unchanged"]
        assert (row["ok"], row["level"]) == (False, "should")
        assert "NOPERM" in row["detail"]
    assert found["the source's role is unchanged"]["detail"] == "master"


async def test_clients_are_told_with_their_library(local: LocalMigration) -> None:
    """The source (Redis 6.2) has no CLIENT SETINFO. The target answers it after the switch."""
    gateway = await local.gateway()
    await local.change(authority=Side.TARGET)
    client = local.app(client_name="shop", single_connection_client=True)
    await client.client_setinfo("LIB-NAME", "shoplib")
    await client.client_setinfo("LIB-VER", "1.2")
    rows = {
        row["name"]: row["library"]
        for row in reporting._clients(gateway.connections, gateway.nodes.clients)
    }
    assert rows == {"shop": "shoplib 1.2"}


@pytest.mark.parametrize("hidden", [False, True])
async def test_metrics_hide_key_prefixes_where_the_plan_says_so(
    local: LocalMigration, hidden: bool
) -> None:
    local.plan = local.plan.model_copy(update={"hash_names": hidden})
    gateway = await local.gateway()
    await local.app().set("customer:1", "x")
    assert ("customer" in str(list(reporting.metrics(gateway)))) is not hidden


async def test_windows_of_the_gateways_are_kept_for_analyze(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry_windows, "TELEMETRY_WINDOW_S", 1.0)
    await local.gateway("gw-1")
    await local.gateway("gw-2", port=free_port())
    client = local.app(client_name="shop")
    for number in range(300):
        await client.set(f"order:{number}", "x")

    async def seen() -> int:
        found = await windows.read(local.store, 0)
        assert {window["process"] for window in found} <= {"gw-1", "gw-2"}
        return sum(window["commands"].get("SET", {}).get("calls", 0) for window in found)

    async def kept() -> bool:
        return await seen() > 0

    await until(kept, within_s=10, otherwise="no window was kept")
    for number in range(100):
        await client.set(f"order:{number}", "x")
    it = Opened(local.plan, local.store, local.plan)
    learn = inspect.unwrap(profile.learn_workload.fn)
    report = await learn(it, 1.5)
    assert report["changes"] == []
    (sets,) = (row for row in report["commands"] if row["command"] == "SET")
    assert 30 < sets["request_bytes_largest"] < 60
    assert sets["reply_bytes_largest"] == 5
    assert sum(row["requests_per_s"] for row in report["rates"]) > 0
    assert max(row["connections"] for row in report["rates"]) == 1
    assert [(row["name"], row["connections_max"]) for row in report["clients_day"]] == [("shop", 1)]
    (orders,) = (row for row in report["prefixes"] if row["prefix"] == "order:")
    assert 0 < orders["latency_us_p50"] <= orders["latency_us_p99"]
    await client.set("order:1", "x")
    for row in (await learn(it, 1.5))["commands"]:
        assert (row["latency_us_p99_day"] or 0) > 0 or row["command"] != "SET"
    await client.get("order:1")
    with local.servers[Side.SOURCE].client() as source:
        source.set("order:7", "x" * 100_000)
    hidden = Opened(local.plan.model_copy(update={"hash_names": True}), local.store, local.plan)
    for _ in range(300):
        await client.strlen("order:7")

    async def found() -> bool:
        for _ in range(100):
            await client.strlen("order:7")
        report = await learn(hidden, 1.2)
        assert "order" not in str(report)
        return [row["bytes"] > 90_000 for row in report["large_hot_keys"]] == [True]

    await until(found, within_s=30, otherwise="the large hot key was not found")
    again = await learn(it, 0.5)
    assert "requests a second" in {row["what"] for row in again["changes"]}


async def test_windows_are_bounded_in_age_and_number(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, day = await local.store.now_ms(), 24 * 3_600_000
    window: Json = {"at_ms": 1, "commands": {}, "prefixes": {}}
    packed = telemetry_windows.pack(window)
    for age_days in (8, 6):
        await local.store.client.xadd(
            local.store.keys.windows,
            {"process": "gw-1", "window": packed},
            id=f"{now - age_days * day}-0",
        )
    for _ in range(200):
        await windows.keep(local.store, "gw-1", window, now)
    old, *_ = await local.store.client.xrange(local.store.keys.windows, count=1)
    assert int(old[0].split(b"-")[0]) > now - 7 * day - 1
    assert 0 < await local.store.client.ttl(local.store.keys.windows) <= 7 * 24 * 3_600
    monkeypatch.setattr(windows, "TELEMETRY_WINDOWS_MAX", 10)
    await windows.keep(local.store, "gw-1", window, now)
    assert await local.store.client.xlen(local.store.keys.windows) <= 110


async def test_sessions_do_not_wait_for_the_packing_of_a_window(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 1,000 commands it takes a tenth of a second and more."""
    threads = []

    def pack(window: Json) -> bytes:
        threads.append(threading.current_thread())
        return telemetry_windows.pack(window)

    monkeypatch.setattr(windows, "pack", pack)
    await windows.keep(local.store, "gw-1", {"at_ms": 1, "commands": {}, "prefixes": {}}, 1)
    assert threading.current_thread() not in threads
    assert len(threads) == 1


async def test_the_workload_model_has_the_gateways_rates(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is watched while an application mostly reads. Later it writes, and pushes to a list
    that the copy never showed.
    """
    for module in (telemetry_windows, observe_weighing):
        monkeypatch.setattr(module, "TELEMETRY_WINDOW_S", 1.0)
    await local.gateway()
    app = local.app()
    table = (await load_table(local.plan)).commands
    watching = asyncio.create_task(capture(local.plan.source, table, seconds=1.5))
    while not watching.done():
        for number in range(9):
            await app.get(f"order:{number}")
        await app.set("order:1", "x" * 100)
    model = workload_of((await watching).profile, source="monitor")
    await local.store.save_report("workload.pre-test", model.model_dump(mode="json"))
    it = Opened(local.plan, local.store, local.plan)
    weigh = inspect.unwrap(weighing.weigh_workload.fn)

    await local.store.drop_report("workload.pre-test")
    (unknown,) = (await weigh(it))["checks"]
    assert (unknown["ok"], unknown["level"]) == (False, "info")
    assert unknown["detail"] == "not known: Pre-test has kept no model"
    await local.store.save_report("workload.pre-test", model.model_dump(mode="json"))

    async def row(*, writes: int) -> dict[str, object]:
        """Write so often, until the windows have it, and return the check."""
        for number in range(writes):
            await app.set(f"order:{number % 9}", "x")
            await app.lpush("late", "x")

        async def counted() -> bool:
            found = await windows.read(local.store, 0)
            calls = (window["commands"].get("LPUSH", {}).get("calls", 0) for window in found)
            return sum(calls) >= writes

        await until(counted, within_s=10, otherwise="the windows do not have the writes")
        (found,) = (await weigh(it))["checks"]
        return found

    before = await row(writes=0)
    assert before["ok"]
    after = await row(writes=2_000)
    assert (after["ok"], after["level"]) == (False, "info")
    assert "LPUSH 2,000" in str(after["detail"])
    weighed = await observed_workload(local.store)
    assert weighed is not None
    assert "weighed by" in weighed.source

    def writes_a_read(model: Workload) -> float:
        calls = {each.command: each.calls for each in model.operations}
        return calls["SET"] / calls["GET"]

    assert writes_a_read(model) == pytest.approx(1 / 9, rel=0.1)
    assert writes_a_read(weighed) > 0.2


def test_what_changed_since_the_last_look_is_named() -> None:
    def look(**p99: int) -> dict:
        rows = [
            {"command": name, "calls": 5, "latency_us_p99": value} for name, value in p99.items()
        ]
        return {"requests_per_s": 10.0, "commands": rows}

    found = profile.changes(look(GET=100, SET=100, DEL=5), look(GET=110, SET=900, INCR=5))
    assert [(row["what"], row["was"], row["is"]) for row in found[1:]] == [
        ("INCR: calls", 0, 5),
        ("DEL: calls", 5, 0),
        ("SET: p99 in µs", 100, 900),
    ]
