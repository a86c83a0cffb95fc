"""What Analyze finds on real servers, each finding with its defect."""

from __future__ import annotations

import asyncio
import inspect
from datetime import date
from pathlib import Path

import pytest
from redis.crc import key_slot

from exodus.copy.guard import set_writer_epoch
from exodus.plan.address import Address, Credentials
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode
from exodus.shadow.shape_specs import OPTIONS, SPECS, Spec, spec_of
from exodus.topology.endpoint import Endpoint
from exodus.topology.providers import providers, recognise
from tasks import advice, predictions, renewal, shapes, sizing
from tasks.advice import judge_provider, recommend
from tasks.checks import check
from tasks.context import Json, Opened
from tasks.shapes import judge_scripts, judge_shapes
from tasks.sizing import judge_size
from tests.support.local_migration import LocalMigration, between
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault

SLOT = key_slot(b"{a}1")
HOT = [
    {"key": "{a}1", "slot": SLOT, "requests_per_s": 400.0},
    {"key": "{a}2", "slot": SLOT, "requests_per_s": 100.0},
]


def red(checks: list[Json]) -> dict[str, Json]:
    return {row["check"]: row for row in checks if not row["ok"]}


def opened(local: LocalMigration, **changes: object) -> Opened:
    plan = local.plan.model_copy(update=changes)
    return Opened(plan, local.store, plan)


def seen(*commands: str) -> list[Json]:
    """Commands as the gateways count them."""
    return [
        {"command": name, "calls": 10, "waits": False, "latency_us_p99": 9} for name in commands
    ]


async def proved(it: Opened, *commands: str) -> list[Json]:
    return await inspect.unwrap(shapes.prove_shapes.fn)(it, seen(*commands))


async def sized(it: Opened) -> Json:
    workload = {"hot_keys": HOT, "requests_per_s": 1_000.0}
    return await inspect.unwrap(sizing.measure_size.fn)(it, workload)


# Compatibility.


async def test_every_trial_runs_where_its_command_exists(
    redis82: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """A trial with a mistake in it would make a good target look bad."""
    async with between(redis82, valkey91, control_server, tmp_path) as local:
        rows = await proved(opened(local, prove_on_source=True), *SPECS)
    by = {row["shape"].replace(" ", "|"): row for row in rows}
    bad = {name: row["how"] for name, row in by.items() if row["verdict"] == "not provable"}
    assert bad == {}
    missing = {name for name, row in by.items() if row["verdict"] == "missing"}
    with valkey91.client() as target:
        known = {name.upper() for name in target.command()}
        assert {name.partition("|")[0] for name in missing}.isdisjoint(known)
        assert target.dbsize() == 0
    with redis82.client() as source:
        assert source.dbsize() == 0
    same = [name for name, row in by.items() if row["verdict"] == "same"]
    assert len(same) > 170, {n: r["how"] for n, r in by.items() if r["verdict"] == "differs"}


def test_every_option_that_shapes_name_is_written() -> None:
    for name, options in OPTIONS.items():
        for option in options:
            spec = spec_of(name, (option,))
            assert isinstance(spec, Spec), (name, option)
            assert option in spec.request
    assert spec_of("FT.SEARCH", ()) == "Exodus has no trial for this command"
    assert spec_of("SET", ("NEW",)) == "Exodus has no trial with NEW"


async def test_what_the_target_lacks_or_answers_otherwise_is_named(
    redis82: DatabaseServer,
    redis62: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    async with between(redis82, redis62, control_server, tmp_path) as local:
        it = opened(local, prove_on_source=True)
        rows = await proved(it, "GET", "LMPOP", "OBJECT|ENCODING")
        found = red(judge_shapes(rows))
        name, option = "EXPIRE", "NX"
        assert "LMPOP" in found["the target takes every observed kind of request"]["detail"]
        assert "OBJECT ENCODING" in found["the target answers as the source does"]["detail"]
        assert len(found) == 2
        model = {
            "version": 1,
            "taken_at": "2026-01-01T00:00:00Z",
            "source": "MONITOR",
            "seconds": 1,
            "requests": 5,
            "rates": {"mean": 5, "peak_second": 5, "peak_minute": 5, "peak_hour": 5},
            "operations": [
                {
                    "command": name,
                    "subcommand": "",
                    "options": [option],
                    "arity": "4",
                    "pattern": "a:*",
                    "write": True,
                    "blocking": False,
                    "calls": 5,
                    "in_transactions": 0,
                    "answered": 0,
                    "nils": 0,
                    "keys": 5,
                    "errors": {},
                    **{
                        field: {}
                        for field in ("request_bytes", "reply_bytes", "latency_us", "expiry_ms")
                    },
                }
            ],
            "operations_left_out": 0,
            "patterns": [],
            "depths": {},
            "transactions": {},
            "scripts": 0,
            "blocking": 0,
            "pubsub": 0,
            "connections": 1,
            "clients": 1,
            "databases": {"0": 5},
        }
        await local.store.save_report("workload.pre-test", model)
        (row,) = red(judge_shapes(await proved(opened(local)))).values()
        assert "EXPIRE NX (ERR" in row["detail"]


async def test_a_kind_that_cannot_be_tried_is_a_finding_and_so_is_a_missing_right(
    local: LocalMigration, tmp_path: Path
) -> None:
    rows = await proved(opened(local), "GET", "FLUSHALL", "JSON.SET")
    (row,) = red(judge_shapes(rows)).values()
    assert row["check"] == "most observed requests could be tried"
    assert "33.3% of 30 requests" in row["detail"]
    secret = tmp_path / "narrow"
    secret.write_text("p")
    with local.servers[Side.TARGET].client() as target:
        target.execute_command("ACL", "SETUSER", "narrow", "on", ">p", "~*", "+@all", "-get")
    user = Credentials(username="narrow", password_file=secret)
    (row,) = red(judge_shapes(await proved(opened(local, compare_user=user), "GET"))).values()
    assert "user on the target may not run GET" in row["detail"]


async def test_a_script_that_the_target_does_not_compile_is_named(local: LocalMigration) -> None:
    tried = inspect.unwrap(shapes.try_scripts.fn)
    await local.store.client.hset(local.store.keys.scripts, b"a" * 40, b"return 1")
    assert red(judge_scripts(await tried(opened(local)))) == {}
    await local.store.client.hset(local.store.keys.scripts, b"b" * 40, b"return +")
    (row,) = red(judge_scripts(await tried(opened(local)))).values()
    assert "bbbbbbbbbbbb" in row["detail"]
    await local.gateway()
    with local.servers[Side.SOURCE].client() as source:
        sha = source.script_load("return 7")
    assert await local.app().evalsha(sha, 0) == 7

    async def called() -> bool:
        return (await tried(opened(local)))["unseen"] == 1

    await until(called, within_s=10, otherwise="the call of an unseen script was not noticed")
    found = red(judge_scripts(await tried(opened(local))))
    assert "the text of every called script was seen" in found


# Size.


async def test_the_size_is_what_the_target_takes(local: LocalMigration) -> None:
    """The estimate from a sample is compared with the same keys, really copied."""
    with local.servers[Side.SOURCE].client() as source:
        for number in range(4_000):
            source.set(f"s:{number}", "x" * (number % 400))
            source.sadd(f"t:{number}", *(f"m{each}" for each in range(number % 30 + 1)))
    size = await sized(opened(local))
    assert red(judge_size(size)) == {}
    assert size["sampled"] == 2_000
    with local.servers[Side.TARGET].client() as target:
        assert target.dbsize() == 0
    await set_writer_epoch(Endpoint(Side.TARGET, local.plan.target), local.plan.name, 0)
    await local.backfill()
    with local.servers[Side.TARGET].client() as target:  # not by INFO: buffers come and go
        took = sum(target.memory_usage(key, samples=0) for key in target.scan_iter(count=1_000))
    assert size["needed_bytes"] == pytest.approx(took, rel=0.3)
    types = {row["type"]: row for row in size["rows"]}
    assert types["set"]["ratio"] < types["string"]["ratio"]

    with local.servers[Side.TARGET].client() as target:
        target.config_set("maxmemory", size["wanted_bytes"] // 2)
    found = red(judge_size(await sized(opened(local))))
    assert "the target has room for the copy and a reserve" in found


async def test_payloads_that_the_target_refuses_are_counted_by_encoding(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    async with between(valkey91, redis62, control_server, tmp_path) as local:
        with valkey91.client() as source:
            source.hset("h", "f", "v")
        size = await sized(opened(local))
        (row,) = red(judge_size(size)).values()
        assert "0 of 1 keys" in row["detail"]
        assert "hash listpack: ERR 1" in row["detail"]


def _size(**more: object) -> Json:
    return {
        "target_maxmemory": 1_000_000,
        "wanted_bytes": 900_000,
        "target_own_bytes": 0,
        "buffer_bytes": 0,
        "copied_bytes": 0,
        "target_machine_bytes": 2_000_000,
        "target_nodes": 1,
        "source_clients": 1,
        "target_maxclients": 100,
        "growth_bytes_a_day": 1_000,
        "growth_explained": 0.9,
        "looks": 5,
        "arithmetic": "",
        "why_not": "",
        "refused": {},
        "restored": 1,
        "sampled": 1,
        "keys": 1_000,
        "keys_per_s": 1_000.0,
        "shards": [{"shards": 3, "fullest_share": 0.4, "busiest_requests_per_s": 9.0}],
        **more,
    }


def test_the_room_that_is_wanted_has_buffers_and_the_server_itself() -> None:
    """900,000 with the reserve, 60,000 of the server, 50,000 of buffers: 1,010,000."""
    more = {"growth_bytes_a_day": None, "target_own_bytes": 60_000}
    assert red(judge_size(_size(**more))) == {}
    (row,) = red(judge_size(_size(**more, buffer_bytes=50_000))).values()
    assert row["check"] == "the target has room for the copy and a reserve"
    assert "60,000 of the server itself and 50,000 of buffers" in row["detail"]
    assert row["next_step"].endswith("to 1,010,000 or more")
    assert "1,010,000 bytes" in _advice([], **more, buffer_bytes=50_000)["size"]["advice"]


async def test_buffers_are_those_of_the_source(local: LocalMigration) -> None:
    quiet = (await sized(opened(local)))["buffer_bytes"]
    source = local.servers[Side.SOURCE]
    with source.client(single_connection_client=True) as slow, source.client() as client:
        client.set("large", "x" * 4_000_000)
        slow.connection.send_packed_command([encode("GET", "large") * 8])
        await asyncio.sleep(0.5)  # its answers wait for it
        assert (await sized(opened(local)))["buffer_bytes"] > quiet + 10_000_000


def test_a_background_save_needs_memory_beside_maxmemory() -> None:
    name = "the target's machine has memory for a background save"
    guessed = _size(target_machine_bytes=1_120_000)  # 900,000 and a quarter: 1,125,000
    assert "225,000 bytes (25% of the data" in red(judge_size(guessed))[name]["detail"]
    measured = _size(target_machine_bytes=1_120_000, copied_bytes=200_000)
    assert red(judge_size(measured)) == {}
    more = _size(target_machine_bytes=1_120_000, copied_bytes=250_000)
    assert "as the last saves of the source did" in red(judge_size(more))[name]["detail"]
    assert red(judge_size(_size(target_machine_bytes=0))) == {}
    assert red(judge_size(_size(target_machine_bytes=400_000, target_nodes=3))) == {}
    small = red(judge_size(_size(target_machine_bytes=370_000, target_nodes=3)))
    assert "375,000 a node of 3" in small[name]["detail"]


async def test_what_a_save_of_the_source_copied_is_read(local: LocalMigration) -> None:
    with local.servers[Side.SOURCE].client() as source:
        source.mset({f"k{number}": "x" * 1_000 for number in range(5_000)})
        source.execute_command("BGSAVE")
        await asyncio.sleep(1)
        told = max(source.info("persistence")[f"{kind}_last_cow_size"] for kind in ("rdb", "aof"))
    size = await sized(opened(local))
    assert size["copied_bytes"] == told > 0
    assert size["target_machine_bytes"] > 2**30


def test_growth_that_fills_the_target_is_a_finding() -> None:
    assert red(judge_size(_size())) == {}
    found = red(judge_size(_size(growth_bytes_a_day=10_000)))
    assert "the target takes the connections" in red(judge_size(_size(source_clients=90)))
    assert "full in 10 days" in found["the target has room for a month of growth"]["detail"]


async def test_the_fullest_and_the_busiest_shard_are_told(local: LocalMigration) -> None:
    """All keys of one hash tag are in one shard."""
    with local.servers[Side.SOURCE].client() as source:
        source.mset({f"{{b}}{number}": "x" * 500 for number in range(300)})
        source.mset({f"other:{number}": "x" * 500 for number in range(300)})
    three, six, _ = (await sized(opened(local)))["shards"]
    assert three["fullest_share"] > 0.6
    assert 0.4 < six["fullest_share"] < 0.7
    assert three["hottest_key"] == "{a}1"
    assert three["busiest_requests_per_s"] == pytest.approx(500 + 500 / 3, abs=0.1)
    assert six["busiest_share"] == pytest.approx(0.5 + 0.5 / 6, abs=0.001)


async def test_a_large_key_is_counted_and_not_restored(local: LocalMigration) -> None:
    with local.servers[Side.SOURCE].client() as source:
        source.set("large", "y" * 2_000_000)
    size = await sized(opened(local))
    assert red(judge_size(size)) == {}
    (row,) = size["rows"]
    assert (row["large"], row["restored"]) == (1, 0)
    assert size["needed_bytes"] > 2_000_000


async def test_looks_at_the_size_are_kept_for_the_next_run(local: LocalMigration) -> None:
    assert (await sized(opened(local)))["looks"] == 1
    assert (await sized(opened(local)))["looks"] == 2


async def test_scheduled_looks_at_the_size_show_the_growth(local: LocalMigration) -> None:
    """A megabyte an hour, which the first two looks found before."""
    look = inspect.unwrap(sizing.remember_size.fn)
    with local.servers[Side.SOURCE].client() as source:
        source.set("large", "x" * 2_000_000)
    now = await local.store.now_ms()
    assert await look(opened(local)) == {"looks": 1, "growth_bytes_a_day": None}
    kept = await local.store.report(sizing.HISTORY)
    (last,) = kept["looks"]
    assert last["keys"] == 1
    before = [
        {
            "at_ms": now - hours * 3_600_000,
            "used_memory": last["used_memory"] - hours * 1_000_000,
            "keys": 1,
        }
        for hours in (2, 1)
    ]
    await local.store.save_report(sizing.HISTORY, {"looks": before})
    grown = await look(opened(local))
    assert grown["looks"] == 3
    assert grown["growth_bytes_a_day"] == pytest.approx(24_000_000, rel=0.02)
    changes = [{"what": "requests a second"}, {"what": "INCR: calls"}]
    found = {"requests_per_s": 9.0, "commands": [1, 2], "changes": changes}
    said = renewal.renewed_line(found, grown)
    assert said.startswith("9.0 requests/s, 2 commands, changes since the last look: 1; the source")


# Providers, advice, predictions.


@pytest.mark.parametrize(
    ("host", "provider", "command"),
    [
        ("x.0001.use1.cache.amazonaws.com", "AWS ElastiCache", "CONFIG|SET"),
        ("clustercfg.x.memorydb.us-east-1.amazonaws.com", "AWS MemoryDB", "DEBUG"),
        ("shop.redis.cache.windows.net", "Azure Cache for Redis", "MIGRATE"),
        ("shop.westeurope.redis.azure.net", "Azure Managed Redis", "SWAPDB"),
        ("redis-1.c1.us-east-1-2.ec2.redns.redis-cloud.com", "Redis Cloud", "MOVE"),
        ("eu1-shop.upstash.io", "Upstash", "CONFIG|SET"),
        ("shop-x.aivencloud.com", "Aiven", "MONITOR"),
        ("db-valkey-x.db.ondigitalocean.com", "DigitalOcean", "CONFIG|SET"),
    ],
)
async def test_a_providers_rule_that_concerns_the_workload_is_a_finding(
    local: LocalMigration,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    provider: str,
    command: str,
) -> None:
    it = opened(local, target=local.plan.target.model_copy(update={"host": host}))

    async def nothing_else(*_: object) -> tuple[list[str], str]:
        return [], ""

    monkeypatch.setattr(advice, "_asked", nothing_else)
    find = inspect.unwrap(advice.find_provider_risks.fn)
    rows = await find(it, seen("GET", command))
    assert rows[0]["provider"] == provider
    assert rows[0]["concerns"] == command
    assert rows[0]["source"].startswith("https://")
    assert list(red(judge_provider(rows))) == [
        "no rule of the target's provider concerns the workload"
    ]
    assert red(judge_provider(await find(it, seen("GET")))) == {}


@pytest.mark.parametrize(
    ("refused", "info_os", "provider"),
    [
        ([], "Amazon ElastiCache", "AWS ElastiCache"),
        ([], "Amazon MemoryDB", "AWS MemoryDB"),
        (["COMMAND"], "Linux 5.10", "Google Memorystore for Redis"),
        ([], "Linux 5.10", None),
    ],
)
def test_a_provider_behind_an_address_is_recognised_by_what_the_server_says(
    refused: list[str], info_os: str, provider: str | None
) -> None:
    found = recognise("10.0.0.5", refused, info_os)
    assert (None if found is None else found.name) == provider


def test_every_rule_has_its_page_and_day() -> None:
    for each in providers():
        assert each.source.startswith("https://"), each.name
        assert date(2026, 1, 1) < date.fromisoformat(each.read), each.name
        assert bool(each.info_os) == each.info_source.startswith("https://"), each.name
        assert each.rules, each.name


async def test_what_a_server_says_of_itself_is_asked(local: LocalMigration) -> None:
    refused, info_os = await advice._asked(opened(local), Side.TARGET)
    assert refused == []
    assert info_os.startswith("Linux")
    with local.servers[Side.TARGET].client() as target:
        target.execute_command("ACL", "SETUSER", "exodus", "-command|info", "-info")
    assert await advice._asked(opened(local), Side.TARGET) == (["COMMAND"], "")


async def test_a_server_of_ones_own_has_no_provider(local: LocalMigration) -> None:
    find = inspect.unwrap(advice.find_provider_risks.fn)
    assert await find(opened(local), seen("CONFIG|SET")) == []


def _advice(checks: list[Json], **size: object) -> dict[str, Json]:
    facts = {"source": {"payload_version": 9}, "target": {"payload_version": 80}}
    foreseen = predictions.backfill_seconds(_size(**size), 8)
    rows = [{}, {"low": foreseen[0], "high": foreseen[1], "because": ""}]
    plan = Plan(
        name="shop",
        source=Address(host="a", port=1),
        target=Address(host="b", port=1),
        strategy=size.pop("strategy", "keys"),  # type: ignore[arg-type]
        feed=size.pop("feed", "auto"),  # type: ignore[arg-type]
        budget=size.pop("budget", {}),  # type: ignore[arg-type]
    ).model_dump(mode="json")
    steps: list[Json] = size.pop("steps", [])  # type: ignore[assignment]
    found = recommend(plan, facts, _size(**size), checks, rows, steps)
    return {row["topic"]: row for row in found}


def test_the_advice_may_be_not_to_migrate_yet() -> None:
    good = check("memory", True)
    assert _advice([good])["recommendation"]["finding"] == "migrate"
    found = _advice([good, check("commands", False, "LMPOP")])["recommendation"]
    assert (found["finding"], found["advice"]) == ("do not migrate yet", "because commands: LMPOP")
    finding = check("room", False, "small", level="should")
    assert "resolved or accepted" in _advice([finding])["recommendation"]["finding"]
    assert (
        "strategy: keys"
        in _advice([], refused={"hash": 1}, strategy="migrate")["strategy"]["advice"]
    )
    assert "native" in _advice([], keys=10**9)["strategy"]["advice"]


def test_the_advice_says_what_would_change_it() -> None:
    topic = "what would change this advice"
    good = {"slower": "", "errors": 0, "evicted_keys": 0}
    steps = [{"speed": 1.0, **good}, {"speed": 2.0, **good}, {"speed": 4.0, **good, "errors": 3}]
    found = _advice([], steps=steps, target_maxmemory=1_800_000)[topic]["finding"]
    assert "grows to 2.0 times its size" in found
    assert "more than 2 times the observed rate" in found
    assert "more than 80 connections" in found
    unknown = _advice([], target_maxmemory=0)[topic]["finding"]
    assert "beyond the machine" in unknown
    assert "was not tried" in unknown
    assert "no more room" in _advice([], target_maxmemory=800_000)[topic]["finding"]


def test_the_advice_has_the_feed_the_topology_and_the_impact() -> None:
    quiet = _advice([check("room", True)])
    assert "keep feed: auto" in quiet["change feed"]["advice"]
    assert quiet["topology"]["finding"].startswith("one server to one server; of 3 shards")
    assert quiet["topology"]["advice"] == "keep it: the target has room"
    assert "up to 8,000 keys a second" in quiet["impact"]["finding"]
    assert "nothing limits it" in quiet["impact"]["advice"]
    reds = [
        check("every client uses a gateway", False, level="should"),
        check("the target has room for the copy and a reserve", False, level="should"),
    ]
    found = _advice(reds, feed="gateway", budget={"cpu_share_max": 0.2})
    assert "set feed: auto" in found["change feed"]["advice"]
    assert "more shards" in found["topology"]["advice"]
    assert found["impact"]["advice"] == "the budget limits it: cpu_share_max: 0.2"


async def test_the_latency_is_scored_by_what_gateways_count(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "TASKS_PREDICTED_WATCH_S", 2.0)
    await local.gateway()
    app = local.app()
    score = inspect.unwrap(predictions.score_predictions.fn)
    verdicts = []
    for p99_us in (10_000_000, 1):
        commands = [{**row, "latency_us_p99": p99_us} for row in seen("GET")]
        size = _size(needed_bytes=1, arithmetic="")
        await inspect.unwrap(predictions.keep_predictions.fn)(
            opened(local), size, {"commands": commands}
        )
        scoring = asyncio.create_task(score(opened(local)))
        while not scoring.done():
            await app.get("k")
            await asyncio.sleep(0.001)
        *_, row = await scoring
        assert row["came"] > 10
        verdicts.append(row["verdict"])
    assert verdicts == ["as predicted", "NOT as predicted"]


async def test_predictions_are_scored_against_what_came(local: LocalMigration) -> None:
    keep = inspect.unwrap(predictions.keep_predictions.fn)
    workload = {"commands": seen("GET")}
    with local.servers[Side.SOURCE].client() as source:
        source.mset({f"k:{number}": "x" * 2_000 for number in range(20_000)})
    rows = await keep(opened(local), await sized(opened(local)), workload)
    assert all(row["low"] < row["high"] for row in rows)
    await set_writer_epoch(Endpoint(Side.TARGET, local.plan.target), local.plan.name, 0)
    await local.backfill()
    await local.store.save_report("evidence.migrate", {"summary": {"seconds": 10_000.0}})
    score = inspect.unwrap(predictions.score_predictions.fn)
    scored = await score(opened(local))
    found = {row["what"]: row["verdict"] for row in scored}
    assert found == {
        "bytes that the keys take on the target": "as predicted",
        "seconds of the backfill": "NOT as predicted",
        "p99 of the slowest common command in µs": "not measured",
    }, scored
