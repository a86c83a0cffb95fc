"""Pre-test's proofs on real servers, each with the defect that it is for."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import orjson
import pytest
import redis.asyncio

from exodus.acceptance.observed import observed_workload
from exodus.errors import OperatorError
from exodus.observe.segments import Unread, segment_of
from exodus.plan.address import Address, Credentials
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from tasks import probe, trials, watching
from tasks.context import Json, Opened
from tasks.proofs import judge_candidates, judge_copy, judge_mix
from tests.support.local_migration import LocalMigration, between
from tests.support.packets import Recorder, pcap
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


def red(checks: list[Json]) -> dict[str, Json]:
    return {row["check"]: row for row in checks if not row["ok"]}


def opened(local: LocalMigration, **changes: object) -> Opened:
    plan = local.plan.model_copy(update=changes)
    return Opened(plan, local.store, plan)


async def watched(it: Opened, seconds: float = 1.5) -> Json:
    """Watch as the flow does."""
    by_packets = it.plan.capture_folder is not None
    watch = watching.watch_by_packets if by_packets else watching.watch_by_monitor
    found: Json = await inspect.unwrap(watch.fn)(it, seconds)
    return found


@contextlib.asynccontextmanager
async def shopping(server: DatabaseServer, *more: tuple[object, ...]):
    """An application that uses the source directly."""
    stop = asyncio.Event()

    async def work() -> None:
        login = server.address()
        async with redis.asyncio.Redis(
            port=server.port,
            username=login.username,
            password=login.secret("test"),
            client_name="shop",
        ) as client:
            number = 0
            while not stop.is_set():
                number += 1
                await client.set(f"order:{number % 50}", "x" * 100, ex=60)
                await client.get(f"order:{number % 60}")
                await client.hset(f"cart:{number % 20}", "item", number)
                for words in more:
                    await client.execute_command(*words)
                await asyncio.sleep(0.005)

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        stop.set()
        await task


async def test_monitor_shows_all_that_the_source_executed(local: LocalMigration) -> None:
    """Exactly: both count the requests between two marks."""
    script = "return redis.call('INCR', KEYS[1])"
    async with shopping(local.servers[Side.SOURCE], ("EVAL", script, 1, "n")):
        report = await watched(opened(local))
    assert red(judge_copy(report)) == {}
    # What MONITOR does not show, and what it cost
    assert "no latency" in report["remarks"][0]
    assert "of a core" in report["remarks"][1]
    assert report["seen_share"] == 1.0
    assert report["probes_seen"] == report["probes_sent"] > 1
    rows = {row["command"]: row for row in report["reconciled"]}
    assert rows["SET"]["seen"] == rows["SET"]["executed"] > 20
    assert rows["INCR"]["seen"] == rows["EVAL"]["seen"]
    model = await observed_workload(local.store)
    assert model is not None
    assert {"order:*", "cart:*"} <= {each.pattern for each in model.patterns}
    assert model.keyspace is not None
    groups = {each.pattern: each for each in model.keyspace.groups}
    assert groups["order:*"].keys_low <= 50 <= groups["order:*"].keys_high
    assert (groups["order:*"].kind, groups["order:*"].expiring_share) == ("string", 1.0)
    assert 50_000 < groups["order:*"].ttl_ms_p50 <= 60_000
    assert [row["pattern"] for row in report["keyspace"]] == list(groups)
    assert not any("exodus" in each.pattern for each in model.operations)


async def test_a_source_that_refuses_the_sample_is_told(local: LocalMigration) -> None:
    with local.servers[Side.SOURCE].client() as source:
        source.execute_command("ACL", "SETUSER", "exodus", "-scan")
    async with shopping(local.servers[Side.SOURCE]):
        report = await watched(opened(local))
    assert "no sample of the keys: NOPERM" in report["remarks"][-1]
    model = await observed_workload(local.store)
    assert model is not None
    assert model.keyspace is None


async def test_monitor_ends_at_the_limit_of_the_plan(local: LocalMigration) -> None:
    """It costs far less than a third of a core here, and more than the plan allows."""
    budget = local.plan.budget.model_copy(update={"cpu_share_max": 0.000_1})
    async with shopping(local.servers[Side.SOURCE]):
        report = await watched(opened(local, budget=budget), 6.0)
    assert report["seconds"] < 5
    assert "more than 0.0%" in report["remarks"][0]
    assert report["remarks"][0].startswith("ended after ")


async def test_without_applications_the_copy_is_not_enough(local: LocalMigration) -> None:
    report = await watched(opened(local), 0.5)
    (row,) = red(judge_copy(report)).values()
    assert (row["check"], row["level"]) == ("the copy has requests of applications", "must")
    assert await observed_workload(local.store) is None
    (row,) = red(judge_mix(await inspect.unwrap(trials.try_mix.fn)(opened(local)))).values()
    assert row["detail"] == "no workload was observed"


# Packets, as tcpdump would rotate them into a folder.


@contextlib.contextmanager
def recorded(
    port: int,
    folder: Path,
    without: bytes | Callable[[bytes], bool] | None = None,
    snap: int = 262_144,
) -> Iterator[None]:
    """Write the traffic of a port into a file meanwhile, except packets with certain bytes, or of
    a certain kind.
    """
    file = folder / "1.pcap"
    file.write_bytes(pcap([], snap_bytes=snap))
    stop = threading.Event()

    def write() -> None:
        done = 0
        while not stop.wait(0.05):
            packets = recorder.packets[done:]
            done += len(packets)
            kept = [
                (at, frame)
                for at, frame in packets
                if not (without(frame) if callable(without) else without and without in frame)
            ]
            with file.open("ab") as out:
                out.write(pcap(kept, snap_bytes=snap)[24:])

    with Recorder(port) as recorder:
        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize(
    ("defect", "check", "level"),
    [
        ("none", "", ""),
        ("probes are filtered", "the copy shows the reads that Exodus sent to the source", "must"),
        ("a client is not captured", "the copy shows what the source executed", "should"),
        ("packets are cut", "the packets can be read", "must"),
    ],
)
async def test_packets_are_a_copy_or_the_evidence_says_what_is_missing(
    local: LocalMigration, tmp_path: Path, defect: str, check: str, level: str
) -> None:
    source = local.servers[Side.SOURCE]
    old = tmp_path / "0.pcap"
    old.write_bytes(pcap([]))
    dropped = {"probes are filtered": b"exodus:{watched}", "a client is not captured": b"order:"}
    word = dropped.get(defect)
    snap = 90 if defect == "packets are cut" else 262_144
    with recorded(source.port, tmp_path, word, snap):
        async with shopping(source):
            report = await watched(opened(local, capture_folder=tmp_path), 3.0)
    found = red(judge_copy(report))
    assert found[check]["level"] == level if check else found == {}, found
    assert report["source"] == "packets"


async def test_a_client_that_bypasses_the_copy_is_named(
    local: LocalMigration, tmp_path: Path
) -> None:
    """Its packets take another way, and it sends too little to be missed in the counts."""
    source = local.servers[Side.SOURCE]
    login = source.address()
    billing = redis.asyncio.Redis(
        port=source.port,
        username=login.username,
        password=login.secret("test"),
        client_name="billing",
        single_connection_client=True,
    )
    await billing.ping()
    assert billing.connection is not None
    port = billing.connection._writer.get_extra_info("sockname")[1]
    stop = asyncio.Event()

    async def bill() -> None:
        while not stop.is_set():
            await billing.get("invoice:1")
            await asyncio.sleep(0.5)

    def of_billing(frame: bytes) -> bool:
        segment = segment_of(1, frame, Unread())
        return segment is not None and port.to_bytes(2, "big") in (
            segment[0][-4:-2],
            segment[0][-2:],
        )

    with recorded(source.port, tmp_path, of_billing):
        async with shopping(source):
            billed = asyncio.create_task(bill())
            report = await watched(opened(local, capture_folder=tmp_path), 4.0)
    stop.set()
    await billed
    await billing.aclose()
    assert report["seen_share"] > 0.99
    (row,) = red(judge_copy(report)).values()
    assert (row["check"], row["level"]) == (
        "the copy shows every active client of the source",
        "should",
    )
    assert row["detail"] == f"billing of {login.username}@127.0.0.1: 1 connection(s)"


async def test_a_capture_of_another_port_is_none(local: LocalMigration, tmp_path: Path) -> None:
    other = local.servers[Side.TARGET]
    with recorded(other.port, tmp_path):
        async with shopping(other):
            with pytest.raises(OperatorError, match="has payload for the watched port"):
                await watched(opened(local, capture_folder=tmp_path), 1.5)


def test_tls_hides_the_requests() -> None:
    """Here it becomes a red row with a remedy; `tests/fault/test_watching.py` has the packets."""
    coverage = {
        "parsed_share": 0.02,
        "lost_bytes": 0,
        "cut_bytes": 0,
        "tls_connections": 3,
        "unparsed_bytes": {},
    }
    report = {
        "on_keys": 1,
        "requests": 9,
        "probes_sent": 20,
        "nodes": [{"node": "s:1", "probes_sent": 20, "probes_seen": 20}],
        "uncounted": "the source does not tell its counts",
        "probes_seen": 20,
        "seen_share": None,
        "reconciled": [],
        "unreadable": 0,
        "unseen_clients": "the source does not tell its clients",
        "coverage": coverage,
    }
    found = red(judge_copy(report))
    assert "TLS termination" in found["the packets can be read"]["next_step"]
    assert "does not tell" in found["the copy shows what the source executed"]["detail"]


async def test_the_task_deletes_what_the_plan_s_hours_say(
    local: LocalMigration, tmp_path: Path
) -> None:
    folder = tmp_path / "captures"
    folder.mkdir()
    now = time.time()
    for name, hours in (("1.pcap", 1), ("3.pcap", 3)):
        (folder / name).write_bytes(pcap([]))
        os.utime(folder / name, (now - hours * 3_600, now - hours * 3_600))
    expire = inspect.unwrap(watching.expire_captures.fn)
    assert await expire(opened(local, capture_folder=folder)) == []
    assert await expire(opened(local, capture_folder=folder, capture_hours_max=2)) == ["3.pcap"]
    assert [path.name for path in folder.iterdir()] == ["1.pcap"]


def test_old_captures_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    for name, data in (("old.pcap", pcap([])), ("new.pcap", pcap([])), ("old.txt", b"notes")):
        (tmp_path / name).write_bytes(data)
    before = time.time() - 100
    for name in ("old.pcap", "old.txt"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (before - 1, before - 1))
    assert watching.delete_captures(tmp_path, before) == ["old.pcap"]
    assert {path.name for path in tmp_path.iterdir()} == {"new.pcap", "old.txt"}
    with pytest.raises(OperatorError, match="capture_folder"):
        watching.delete_captures(tmp_path / "nowhere", before)


# The trial on the target.


async def test_the_mix_runs_on_scratch_keys_which_are_removed(local: LocalMigration) -> None:
    async with shopping(local.servers[Side.SOURCE]):
        await watched(opened(local))
    with local.servers[Side.TARGET].client() as target:
        target.set("mine", 1)
        tried = await inspect.unwrap(trials.try_mix.fn)(opened(local))
        assert target.keys() == [b"mine"]
    assert red(judge_mix(tried)) == {}
    assert [step["errors"] for step in tried["steps"]] == [0, 0, 0]
    rates = [step["requests_per_s"] for step in tried["steps"]]
    assert rates == sorted(rates)


async def test_a_type_that_the_target_does_not_take_is_named(local: LocalMigration) -> None:
    exercise = inspect.unwrap(probe.exercise_target.fn)
    assert red(await exercise(opened(local))) == {}
    with local.servers[Side.TARGET].client() as target:
        target.execute_command("ACL", "SETUSER", "exodus", "-zadd")
        ((name, row),) = red(await exercise(opened(local))).items()
        assert target.keys() == []
    assert (name, row["level"]) == ("target takes: sorted set", "must")
    assert "NOPERM" in row["detail"]


async def test_what_the_target_lacks_and_who_may_not_run_it_is_found(
    redis62: DatabaseServer,
    redis82: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> None:
    """EXPIRE NX came with Redis 7.0. The target is 6.2; the candidate version has it."""
    async with between(redis82, redis62, control_server, tmp_path) as local:
        async with shopping(redis82, ("EXPIRE", "order:1", 60, "NX")):
            await watched(opened(local))
        try_mix = inspect.unwrap(trials.try_mix.fn)
        tried = await try_mix(opened(local))
        found = red(judge_mix(tried))
        assert list(found) == ["the target takes the observed mix"]
        assert found["the target takes the observed mix"]["level"] == "must"
        assert "EXPIRE NX /4: ERR" in found["the target takes the observed mix"]["detail"]

        rank = inspect.unwrap(trials.rank_candidates.fn)
        it = opened(local, candidates=(valkey91.address(),))
        rows = await rank(it, tried)
        assert [row["is_target"] for row in rows] == [False, True]
        (worse,) = red(judge_candidates(rows)).values()
        assert f":{valkey91.port}:" in worse["detail"]
        assert worse["level"] == "should"
        good = [{**rows[0], "is_target": True}]
        assert red(judge_candidates(good)) == {}

        with redis62.client() as target:
            target.execute_command(
                *("ACL", "SETUSER", "narrow", "on", ">p", "~*", "+@all", "-hset", "-expire")
            )
            secret = tmp_path / "narrow"
            secret.write_text("p")
            user = Credentials(username="narrow", password_file=secret)
            found = red(judge_mix(await try_mix(opened(local, compare_user=user))))
            row = found["the target lets its user run the observed mix"]
            assert "HSET" in row["detail"]
            assert row["level"] == "should"

            target.config_set("maxmemory", "8mb")
            (row,) = red(judge_mix(await try_mix(opened(local)))).values()
            assert "may run out of memory" in row["detail"]
            target.config_set("maxmemory", "0")
            target.execute_command("ACL", "SETUSER", "narrow", "+@all", "-unlink")
            (row,) = red(judge_mix(await try_mix(opened(local, compare_user=user)))).values()
            assert "remove its scratch keys" in row["detail"]


def test_the_source_is_no_candidate() -> None:
    source, target = (Address(host="127.0.0.1", port=port) for port in (6379, 6380))
    with pytest.raises(ValueError, match=r"candidates.0 is the source"):
        Plan(
            name="shop",
            source=source,
            target=target,
            candidates=[{"url": "redis://127.0.0.1:6379"}],  # type: ignore[arg-type]
        )


async def test_names_can_be_shown_as_hashes(local: LocalMigration) -> None:
    async with shopping(local.servers[Side.SOURCE]):
        report = await watched(opened(local, hash_names=True))
    assert red(judge_copy(report)) == {}  # Exodus's own key is found by its name
    kept = orjson.dumps(report) + orjson.dumps(await local.store.report(watching.WORKLOAD))
    assert b"order" not in kept
    assert b"cart" not in kept
    patterns = {row["pattern"] for row in report["patterns"]}
    assert f"{sha256(b'order').hexdigest()[:8]}:*" in patterns
    tried = await inspect.unwrap(trials.try_mix.fn)(opened(local))
    assert red(judge_mix(tried)) == {}
