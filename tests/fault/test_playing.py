"""A workload is observed, played, and observed again: both models agree.

Also what a player owes a server: an open loop, scratch keys that are gone afterwards, and no use of
room that the server does not have.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from itertools import accumulate
from pathlib import Path

import pytest
import redis

from exodus.cli import app
from exodus.net.leg import Leg
from exodus.observe.capture_files import Packet
from exodus.observe.keyspace import sample_keys
from exodus.observe.known_commands import known_table
from exodus.observe.packets import PacketWatcher
from exodus.observe.profile import Profile
from exodus.observe.workload import Operation, Spread, Workload, workload_of
from exodus.plan.vocabulary import Side
from tests.support.packets import Recorder
from tests.support.servers import DatabaseServer
from tests.support.wait import wait_until

pytestmark = pytest.mark.fault

SECONDS = 6.0
PLAYED_S = 20  # as many as make the rate's own spread, 1.5 % (Poisson arrivals), small beside 6 %
KEYS, EXPONENT = 400, 0.9
MIX = {"GET": 0.55, "SET": 0.2, "HSET": 0.1, "HGET": 0.05, "INCRBY": 0.05, "LPUSH": 0.05}


def application(server: DatabaseServer, seed: int) -> None:
    """A workload with known parameters: mix, skew, sizes, expiries, pipelines, transactions."""
    draw = random.Random(seed)
    weights = list(accumulate(rank**-EXPONENT for rank in range(1, KEYS + 1)))

    def one(to: redis.Redis) -> None:
        (key,) = draw.choices(range(KEYS), cum_weights=weights)
        (command,) = draw.choices(list(MIX), weights=list(MIX.values()))
        value = "v" * draw.choice([20, 200, 1_000])
        if command == "GET":
            to.get(f"user:{key}")
        elif command == "SET":
            to.set(f"user:{key}", value, ex=draw.choice([30, 3_600]))
        elif command == "HSET":
            to.hset(f"cart:{key}", f"f{draw.randrange(10)}", value)
        elif command == "HGET":
            to.hget(f"cart:{key}", "f1")
        elif command == "INCRBY":
            to.incr(f"count:{key}")
        else:
            to.lpush(f"queue:{key}", value)

    ends = time.monotonic() + SECONDS
    with server.client() as client:
        for key in range(KEYS):
            client.set(f"user:{key}", "v" * 100)
        while time.monotonic() < ends:
            turn = draw.random()
            if turn < 0.8:
                one(client)
            else:
                with client.pipeline(transaction=turn > 0.9) as pipe:
                    for _ in range(draw.randint(2, 8)):
                        one(pipe)
                    pipe.execute()
            time.sleep(draw.random() * 0.004)  # the rate that the profile must find


def model_of(recorder: Recorder, port: int, since: float = 0.0) -> Workload:
    profile = Profile()
    watcher = PacketWatcher(known_table(), profile, [port])
    watcher.feed([Packet(at, 1, data, len(data)) for at, data in recorder.packets if at >= since])
    watcher.finish()
    assert recorder.dropped == 0
    assert watcher.coverage.parsed_share == 1
    return workload_of(profile, source="packets", parsed_share=watcher.coverage.parsed_share)


def url_of(server: DatabaseServer) -> str:
    address = server.address()
    return f"redis://{address.username}:{address.secret('test')}@127.0.0.1:{server.port}"


def loading(model: Path, url: str, *options: str) -> subprocess.Popen[bytes]:
    """Start `exodus load`."""
    named = ["--model", str(model), "--target", url, *options, "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", app.__name__, "load", *named],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen[bytes], *, within_s: float) -> tuple[bytes, bytes]:
    """Return what it printed. If it does not end, kill it: it would go on beside other tests."""
    try:
        return process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


def load(model: Path, url: str, *options: str) -> dict:
    """Run it."""
    process = loading(model, url, *options)
    output, errors = ended(process, within_s=120)
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


def refused(model: Path, url: str) -> str:
    """Return the message where it must refuse."""
    process = loading(model, url, "--seconds", "1")
    _, errors = ended(process, within_s=60)
    assert process.returncode == 2, errors.decode()
    return errors.decode()


@pytest.fixture(scope="module")
def observed(_redis82: DatabaseServer, tmp_path_factory: pytest.TempPathFactory):
    """The model of the application, and its file."""
    _redis82.restore()
    with Recorder(_redis82.port) as recorder:
        application(_redis82, 5)
    preparing = next(at for at, frame in recorder.packets if b"user:399\r\n" in frame)
    model = model_of(recorder, _redis82.port, since=preparing)
    file = tmp_path_factory.mktemp("model") / "workload.json"
    model.save(file)
    return model, file


def shares(model: Workload, of: str = "shape") -> dict[str, float]:
    found: dict[str, float] = {}
    ignored = ("CLIENT", "HELLO", "AUTH", "SCAN", "UNLINK", "INFO", "PING")
    operations = [each for each in model.operations if each.command not in ignored]
    total = sum(each.calls for each in operations)
    for each in operations:
        name = (
            " ".join([each.command, *each.options, each.arity]) if of == "shape" else each.pattern
        )
        found[name] = found.get(name, 0) + each.calls / total
    return found


def only(model: Workload, command: str) -> Operation:
    """Return the most frequent operation of a command."""
    return max(
        (each for each in model.operations if each.command == command), key=lambda op: op.calls
    )


def test_known_parameters_are_recovered(observed: tuple[Workload, Path]) -> None:
    model, file = observed
    assert Workload.load(file) == model
    assert file.stat().st_mode & 0o077 == 0
    by_command: dict[str, int] = {}
    for each in model.operations:
        by_command[each.command] = by_command.get(each.command, 0) + each.calls
    total = sum(by_command[command] for command in MIX)
    for command, share in MIX.items():
        assert by_command[command] / total == pytest.approx(share, abs=0.02), command
    (users,) = (each for each in model.patterns if each.pattern == "user:*")
    assert users.zipf_exponent == pytest.approx(EXPONENT, abs=0.12)
    assert KEYS * 0.8 < users.keys_distinct <= KEYS * 1.03
    writes = only(model, "SET")
    assert writes.options == ["EX"]
    expiries = dict(writes.expiry_ms.values)
    assert len(expiries) == 2
    assert min(expiries) == pytest.approx(30_000, rel=0.01)
    assert min(expiries.values()) / sum(expiries.values()) == pytest.approx(0.5, abs=0.08)
    assert model.transactions.distribution().mean == pytest.approx(5, abs=0.6)
    assert 2 <= model.depths.distribution().quantile(0.99) <= 8
    assert model.rates.peak_second >= model.rates.mean


def test_what_is_played_is_what_was_observed(
    observed: tuple[Workload, Path], redis82: DatabaseServer
) -> None:
    """Bounds: shares of shapes ±2 points, rate ±6 %, expiries and sizes ±10 %, skew ±0.15."""
    model, file = observed
    with redis82.client() as client:
        client.set("precious", 1)
    with Recorder(redis82.port) as recorder:
        report = load(file, url_of(redis82), "--seconds", str(PLAYED_S), "--seed", "3")
    assert report["errors"] == 0, report["errors_by_shape"]
    assert report["sent"] == report["answered"] == report["due"]
    assert report["keys_prepared"] > 200
    assert report["keys_removed"] >= report["keys_prepared"]
    with redis82.client() as client:
        assert client.keys("*") == [b"precious"]

    # Playing begins when the preparation is answered: the preparation has no MULTI
    first = [
        at for at, frame in recorder.packets if b"exodus:load:" in frame and b"GET\r\n" in frame
    ]
    again = model_of(recorder, redis82.port, since=first[0] - 0.000001)
    before, after = shares(model), shares(again)
    for shape in before.keys() | after.keys():
        assert after.get(shape, 0) == pytest.approx(before.get(shape, 0), abs=0.02), shape
    played = sum(each.calls for each in again.operations if each.pattern) / PLAYED_S
    seen = sum(each.calls for each in model.operations if each.pattern) / model.seconds
    assert played == pytest.approx(seen, rel=0.06)
    for command in ("SET", "HSET", "LPUSH"):
        one, other = only(model, command), only(again, command)
        for share in (0.25, 0.5, 0.9):
            assert other.request_bytes.distribution().quantile(share) == pytest.approx(
                one.request_bytes.distribution().quantile(share), rel=0.1
            ), (command, share)
    expiries = only(again, "SET").expiry_ms.distribution()
    assert expiries.total == only(again, "SET").calls
    assert expiries.mean == pytest.approx(only(model, "SET").expiry_ms.distribution().mean, rel=0.1)
    (users,) = (each for each in model.patterns if each.pattern == "user:*")
    (scratch,) = (each for each in again.patterns if each.pattern.endswith(":s:user:*"))
    assert scratch.zipf_exponent == pytest.approx(users.zipf_exponent, abs=0.15)
    assert scratch.top_shares[0] == pytest.approx(users.top_shares[0], rel=0.25)
    assert scratch.keys_distinct == pytest.approx(users.keys_distinct, rel=0.15)
    assert scratch.writes / scratch.reads == pytest.approx(users.writes / users.reads, rel=0.12)
    assert again.transactions.distribution().mean == pytest.approx(
        model.transactions.distribution().mean, rel=0.1
    )
    gets = only(again, "GET")
    assert gets.nils / gets.answered == pytest.approx(0, abs=0.05)


def test_a_stall_of_the_server_is_not_hidden(
    observed: tuple[Workload, Path], redis82: DatabaseServer
) -> None:
    """A closed loop would send nothing during the stall, and show a p90 of microseconds."""
    _, file = observed
    process = loading(file, url_of(redis82), "--seconds", "4")
    with redis82.client() as client:
        wait_until(
            lambda: len(client.keys("exodus:load:*")) > 200, within_s=20, otherwise="nothing played"
        )
        time.sleep(0.8)  # some requests are answered in time
        redis82.pause()
        time.sleep(1.5)  # the stall that the report must show
        redis82.resume()
    output, _ = ended(process, within_s=60)
    report = json.loads(output)
    assert report["due"] == report["answered"]
    # 1.5 of 4 s: about a third of all requests was due meanwhile
    assert report["latency_us"]["p90"] > 700_000
    assert report["latency_us"]["max"] == pytest.approx(1_500_000, rel=0.2)
    assert report["late_us"]["p99"] < 400_000


def test_speed_is_a_multiple_of_the_rate(
    observed: tuple[Workload, Path], valkey91: DatabaseServer
) -> None:
    _, file = observed
    slow, fast = (
        load(file, url_of(valkey91), "--seconds", "3", "--speed", speed) for speed in ("0.5", "4")
    )
    assert fast["sent"] / slow["sent"] == pytest.approx(8, rel=0.2)
    assert fast["errors"] == slow["errors"] == 0


def test_requests_that_wait_are_played_apart(
    observed: tuple[Workload, Path], redis82: DatabaseServer
) -> None:
    """Workers that wait for jobs delay no other request. Their waiting is no latency. Workers
    without a connection are counted.
    """
    model, file = observed
    pops = only(model, "LPUSH").model_copy(
        update={"command": "BRPOP", "blocking": True, "in_transactions": 0, "answered": 0}
    )
    jobs = [each for each in model.operations if not each.in_transactions] + [pops]
    file = file.with_name("jobs.json")
    model.model_copy(update={"operations": jobs, "transactions": Spread()}).save(file)
    report = load(file, url_of(redis82), "--seconds", "3", "--connections", "100")
    assert report["errors"] == 0, report["errors_by_shape"]
    assert report["not_waited"] == 0
    assert report["sent"] == report["answered"] == report["due"]
    assert "BRPOP" not in str(report["latency_us_by_shape"])
    with redis82.client() as client:
        calls = int(client.info("commandstats")["cmdstat_brpop"]["calls"])
        assert calls == report["sent"] - sum(
            row["calls"] for row in report["latency_us_by_shape"].values()
        )
    few = load(
        file,
        url_of(redis82),
        "--seconds",
        "3",
        "--speed",
        "30",
        "--connections",
        "1",
        "--seed",
        "2",
    )
    assert few["not_waited"] > 0
    assert few["due"] == few["sent"] + few["not_waited"] + few["not_sent"]
    assert "blocking requests were due" in str(few["remarks"])


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["while it prepares", "while it plays"])
def test_scratch_keys_are_removed_when_it_is_stopped(
    observed: tuple[Workload, Path], redis82: DatabaseServer, stop: signal.Signals, when: str
) -> None:
    model, file = observed
    if when == "while it prepares":  # 100,000 keys
        several = [
            each.model_copy(update={"keys_distinct": 100_000, "zipf_exponent": 0.1})
            for each in model.patterns
        ]
        file = file.with_name("many.json")
        model.model_copy(update={"patterns": several}).save(file)
    process = loading(file, url_of(redis82), "--seconds", "60")
    with redis82.client() as client:

        def begun() -> bool:
            if when == "while it prepares":
                return client.dbsize() > 0
            return int(client.info("commandstats").get("cmdstat_incrby", {"calls": 0})["calls"]) > 9

        client.config_resetstat()
        wait_until(begun, within_s=30, otherwise="nothing played")
        process.send_signal(stop)
        ended(process, within_s=30)
        assert process.returncode != 0
        assert client.keys("*") == []


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda client: client.config_set("maxmemory", "100mb"), "may run out of memory"),
        (lambda client: client.replicaof("127.0.0.1", 1), "is a slave"),
    ],
    ids=["little memory", "a replica"],
)
def test_a_server_without_room_is_refused(
    observed: tuple[Workload, Path], redis82: DatabaseServer, prepare, said: str
) -> None:
    with redis82.client() as client:
        prepare(client)
    assert said in refused(observed[1], url_of(redis82))


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read"), ("{}", "is no workload model"), ('{"version": 2}', "version 1")],
)
def test_a_wrong_model_is_said(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "model.json"
    if text is not None:
        file.write_text(text)
    shown = refused(file, "redis://127.0.0.1:1")
    assert said in shown
    assert "--model" in shown


# The keyspace sample.


async def _sample(server: DatabaseServer, keys: int, **more: float):
    budget = {"seconds_max": 30.0, "busy_share_max": 0.5, **more}
    async with await Leg.connect(server.address(), Side.SOURCE) as leg:
        return await sample_keys([leg], [0, 1], keys_max=keys, **budget)


async def test_a_sample_estimates_the_keyspace(redis82: DatabaseServer) -> None:
    with redis82.client() as client, client.pipeline(transaction=False) as pipe:
        for number in range(6_000):
            pipe.set(f"user:{number}", "v" * 100, ex=1_000 if number % 4 == 0 else None)
        for number in range(2_000):
            pipe.hset(f"cart:{number}", mapping={f"f{n}": "x" for n in range(5)})
        pipe.set("huge:1", "x" * 3_000_000)
        pipe.execute()
    whole = await _sample(redis82, 100_000)
    assert (whole.keys, whole.sampled, whole.complete) == (8_001, 8_001, True)
    groups = {(group.pattern, group.kind): group for group in whole.groups}
    assert groups["huge:*", "string"].large == 1
    users = groups["user:*", "string"]
    assert users.keys == users.keys_low == users.keys_high == 6_000
    assert users.expiring_share == 0.25
    assert users.ttl_ms_p50 == pytest.approx(1_000_000, rel=0.05)
    assert users.encodings == {"raw": 6_000}
    assert groups["cart:*", "hash"].encodings == {"listpack": 2_000}
    part = await _sample(redis82, 1_000)
    assert not part.complete
    assert 500 <= part.sampled <= 1_100
    users = next(group for group in part.groups if group.pattern == "user:*")
    width = users.keys_high - users.keys_low
    assert 0 < width < 700
    # One interval of 95 % in twenty does not have the truth; twice as wide, one in ten thousand
    assert abs(users.keys - 6_000) <= width
    assert users.memory_bytes_mean_low <= users.memory_bytes_mean <= users.memory_bytes_mean_high


def test_the_model_has_the_sample_of_the_server(redis82: DatabaseServer, tmp_path: Path) -> None:
    with redis82.client() as client, Recorder(redis82.port) as recorder:
        for number in range(300):
            client.set(f"user:{number}", "v", ex=100)
    file, model = tmp_path / "x.pcap", tmp_path / "model.json"
    recorder.write(file)
    arguments = ["--from", str(file), "--port", str(redis82.port), "--model", str(model)]
    command = [sys.executable, "-m", app.__name__, "capture", *arguments]
    without = subprocess.run([*command, "--sample", "9"], capture_output=True, check=False)
    assert without.returncode == 2
    assert b"--sample 9 needs --model and --server" in without.stderr
    sampled = ["--server", url_of(redis82), "--sample", "1000"]
    subprocess.run([*command, *sampled], capture_output=True, check=True)
    found = Workload.load(model)
    assert found.keyspace is not None
    (group,) = found.keyspace.groups
    assert (group.pattern, group.kind, group.keys) == ("user:*", "string", 300)
    assert group.expiring_share == 1
    assert only(found, "SET").calls == 300


async def test_a_sample_keeps_to_its_time_and_its_share(redis82: DatabaseServer) -> None:
    with redis82.client() as client, client.pipeline(transaction=False) as pipe:
        for number in range(20_000):
            pipe.set(f"user:{number}", "v")
        pipe.execute()
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = await _sample(redis82, 1_000_000, seconds_max=1.0, busy_share_max=0.02)
    assert 0.9 < loop.time() - began < 3
    assert 0 < found.sampled < 20_000
    assert not found.complete
