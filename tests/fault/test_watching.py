"""Real packets of real clients: what is seen of them equals what the server counted.

The recorder is a packet socket of the test (`tests/support/packets.py`), so these tests need root.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import redis
import redis.asyncio

from exodus.cli import app
from exodus.observe import known_commands, monitor
from exodus.observe.capture_files import Packet
from exodus.observe.coverage import Reconciled, commandstats, reconcile
from exodus.observe.events import Answer, Event
from exodus.observe.packets import PacketWatcher
from exodus.observe.profile import Profile
from exodus.observe.segments import FIN, RST, SYN, Unread, segment_of
from exodus.resp.encode import encode
from tests.support.full import FULL
from tests.support.ioredis import installed_ioredis
from tests.support.libraries import Coredis, Glide, Library
from tests.support.packets import Recorder, TcpDump, pcap
from tests.support.servers import DatabaseServer
from tests.support.wait import wait_until

pytestmark = pytest.mark.fault


def redis_py(server: DatabaseServer, protocol: int) -> None:
    """What applications do: plain requests, errors, pipelines, transactions, scans, blocking."""
    with server.client(protocol=protocol, client_name=f"app-{protocol}") as client:
        for number in range(300):
            client.set(f"user:{number % 40}", "v" * (number % 200), ex=100 + number)
            client.get(f"user:{number % 60}")
        client.hset("cart:1", mapping={f"f{n}": "x" * n for n in range(50)})
        client.hgetall("cart:1")
        client.zadd("board", {f"m{n}": n for n in range(30)})
        client.zrange("board", 0, -1, withscores=True)
        for wrong in (("LPUSH", "cart:1", "x"), ("GET",), ("NOSUCH", "a"), ("INCR", "cart:1")):
            with contextlib.suppress(redis.ResponseError):
                client.execute_command(*wrong)
        with client.pipeline(transaction=False) as pipe:
            for number in range(100):
                pipe.set(f"p:{number}", "x" * 3_000).get(f"p:{number}").incr("count")
            pipe.execute()
        for number in range(20):
            with client.pipeline(transaction=True) as pipe:
                pipe.incr("count").rpush("queue", number).expire("queue", 60).execute()
        watching = client.pipeline()
        watching.watch("count")
        client.incr("count")
        watching.multi()
        watching.set("never", 1)
        with contextlib.suppress(redis.WatchError):
            watching.execute()
        client.blpop(["queue"], timeout=1)
        client.blpop(["nothing"], timeout=0.1)
        client.set("large", "y" * 400_000)
        assert len(client.get("large")) == 400_000
        assert len(list(client.scan_iter(count=50))) > 100
    with server.client(protocol=protocol, db=3) as client:
        client.set("in:3", 1)


def publish(server: DatabaseServer, protocol: int) -> None:
    """A subscriber and a publisher."""
    with server.client(protocol=protocol) as client, server.client() as other:
        listening = client.pubsub()
        listening.subscribe("news", "weather")
        listening.psubscribe("a.*")
        for number in range(50):
            other.publish("news", f"n{number}")
        heard = 0
        while heard < 50:
            message = listening.get_message(timeout=5)
            assert message is not None
            heard += message["type"] == "message"
        listening.unsubscribe("news")
        listening.close()


async def many(server: DatabaseServer) -> None:
    """Ten connections at a time."""
    async with redis.asyncio.Redis(
        port=server.port,
        username=server.address().username,
        password=server.address().secret("test"),
        protocol=3,
    ) as client:

        async def one(number: int) -> None:
            for each in range(100):
                await client.set(f"async:{number}:{each}", "v" * each)
                await client.mget([f"async:{number}:{each}", "none"])

        await asyncio.gather(*map(one, range(10)))


async def others(server: DatabaseServer) -> None:
    """coredis with a pool, and glide with all callers on one connection; both speak RESP3."""
    for make in (Coredis, Glide):
        library = make("127.0.0.1", server.port)

        async def one(number: int, on: Library = library) -> None:
            key = b"other:%d" % number
            for _ in range(20):
                await on.ask([b"SET", key, b"v" * number])
                await on.batch([[b"GET", key], [b"RPUSH", b"list:1", key]], atomic=number % 2 == 0)

        await asyncio.gather(*map(one, range(8)))
        await library.aclose()


def benchmark(server: DatabaseServer) -> None:
    """As redis-benchmark -P 50: requests do not wait for replies."""
    address = server.address()
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        password = address.secret("test") or ""
        login = encode("AUTH", address.username or "default", password)
        batch = b"".join(
            encode("SET", f"bench:{n}", "z" * 64) + encode("GET", f"bench:{n}") for n in range(25)
        )
        sent = login + batch * 100
        wanted = len(b"+OK\r\n") * (1 + 25 * 100) + len(b"$64\r\n" + b"z" * 64 + b"\r\n") * 2_500
        sender = threading.Thread(target=sock.sendall, args=(sent,))
        sender.start()
        got = 0
        while got < wanted:
            got += len(sock.recv(1 << 16))
        sender.join()
        assert got == wanted


def all_libraries(server: DatabaseServer) -> None:
    """Each client library of Python, and what a benchmark sends."""
    for protocol in (2, 3):
        redis_py(server, protocol)
        publish(server, protocol)
    asyncio.run(many(server))
    asyncio.run(others(server))
    benchmark(server)


def ioredis(server: DatabaseServer) -> None:
    """ioredis: pipelines, transactions, scripts, blocking pops, scans, pub/sub."""
    program, folder = asyncio.run(installed_ioredis("ioredis.mjs"))
    address = server.address()
    login = f"{address.username or 'default'}:{address.secret('test') or ''}"
    url = f"redis://{login}@127.0.0.1:{server.port}"
    subprocess.run(["node", program, url, folder], check=True, timeout=60, capture_output=True)


class Recorded:
    """Packets of one port, and what the server counted meanwhile."""

    def __init__(
        self,
        server: DatabaseServer,
        talk: Callable[[DatabaseServer], None] = all_libraries,
        recording: type[Recorder | TcpDump] = Recorder,
    ) -> None:
        with server.client() as control:
            control.ping()
            before = commandstats(control.info("commandstats"))
            with recording(server.port) as recorder:
                talk(server)
                after = commandstats(control.info("commandstats"))
        assert recorder.dropped == 0
        self.port = server.port
        self.packets = recorder.packets
        self.before, self.after = before, after

    def watch(self, packets: list[tuple[float, bytes]]) -> tuple[PacketWatcher, list[Event]]:
        events: list[Event] = []

        class Keep:
            add = staticmethod(events.append)

        watcher = PacketWatcher(known_commands.known_table(), Keep(), [self.port])
        watcher.feed([Packet(at, 1, frame, len(frame)) for at, frame in packets])
        watcher.finish()
        return watcher, events

    def differing(self, events: list[Event]) -> list[Reconciled]:
        """Return the commands whose seen and executed counts differ."""
        # A server counts no command that it does not know; of subcommands, only Redis 6.2 does
        unknown = {"(UNKNOWN)"} | ({"CLIENT|(other)"} if "CLIENT" not in self.after else set())
        seen = Counter(event.command for event in events if event.command not in unknown)
        return [row for row in reconcile(self.before, self.after, seen) if row.seen != row.executed]


_BY_TCPDUMP = " by tcpdump"


@pytest.fixture(
    scope="module",
    params=[
        *("_redis82", "_valkey91", "_redis62"),
        *(["_redis82" + _BY_TCPDUMP, "_redis62" + _BY_TCPDUMP] if FULL else []),
    ],
)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    name: str = request.param
    box: DatabaseServer = request.getfixturevalue(name.removesuffix(_BY_TCPDUMP))
    box.restore()
    return Recorded(box, recording=TcpDump if name.endswith(_BY_TCPDUMP) else Recorder)


def _payload(frame: bytes) -> tuple[bytes, int, bytes, int]:
    segment = segment_of(1, frame, Unread())
    assert segment is not None
    key, seq, _, flags, payload, _ = segment
    return key, seq, payload, flags


def test_what_was_seen_is_what_the_server_counted(recorded: Recorded) -> None:
    watcher, events = recorded.watch(recorded.packets)
    coverage = watcher.coverage
    assert recorded.differing(events) == []
    assert len(events) > 9_000
    assert coverage.lost_bytes == coverage.gaps == coverage.cut_bytes == 0
    assert coverage.parsed_share == 1
    assert coverage.requests_without_reply == sum(
        not event.answer and not event.queued for event in events
    )
    assert coverage.requests_without_reply == 0
    assert coverage.replies_without_request == 0
    assert coverage.remarks() == []
    assert coverage.connections_before == 1  # the test's own
    errors = Counter(event.error for event in events if event.answer is Answer.ERROR)
    assert errors["WRONGTYPE"] == 4
    assert errors["ERR"] >= 4
    # Of redis-py 20 of three requests in each protocol; of the others 4 callers with 20 of two
    assert sum(event.batch for event in events) == 2 * 20 * 3 + 2 * 4 * 20 * 2
    assert coverage.requests_not_executed == 2
    assert coverage.pushes >= 2 * 50
    assert {event.db for event in events} == {0, 3}
    assert coverage.libraries["redis-py"] > 5
    assert "GlidePy" in coverage.libraries
    assert {"app-2", "app-3"} <= {event.client for event in events}
    assert max(event.reply_bytes for event in events) > 400_000
    assert max(event.depth for event in events) > 50


if FULL:

    def test_ioredis_is_seen_as_the_server_counted(redis82: DatabaseServer) -> None:
        recorded = Recorded(redis82, ioredis, TcpDump)
        watcher, events = recorded.watch(recorded.packets)
        differing = {row.command: row.executed - row.seen for row in recorded.differing(events)}
        assert differing == {"INCRBY": 2}  # by its script, which was called twice
        assert len(events) > 900
        assert watcher.coverage.parsed_share == 1
        assert watcher.coverage.requests_without_reply == 0
        assert watcher.coverage.replies_without_request == 0
        assert "ioredis" in watcher.coverage.libraries

    @pytest.mark.parametrize("protocol", [[], ["-3"]], ids=["RESP2", "RESP3"])
    @pytest.mark.parametrize("pipeline", [1, 50])
    def test_redis_benchmark_is_seen_as_the_server_counted(
        redis82: DatabaseServer, protocol: list[str], pipeline: int
    ) -> None:
        """Debian's packages tcpdump and redis-tools are needed."""
        tests = "ping,set,get,incr,lpush,rpop,sadd,hset,spop,zadd,zpopmin,lrange_100,mset"

        def talk(server: DatabaseServer) -> None:
            login = ["--user", "default", "-a", server.address().secret("test") or ""]
            options = ["-p", str(server.port), *login, *protocol, "-P", str(pipeline), "-t", tests]
            subprocess.run(
                ["redis-benchmark", *options, "-c", "20", "-n", "1000", "-q"],
                check=True,
                timeout=60,
                capture_output=True,
            )

        recorded = Recorded(redis82, talk, TcpDump)
        watcher, events = recorded.watch(recorded.packets)
        assert recorded.differing(events) == []
        assert len(events) > 14_000
        assert watcher.coverage.parsed_share == 1
        assert watcher.coverage.lost_bytes == watcher.coverage.gaps == 0
        assert watcher.coverage.requests_without_reply == 0
        assert watcher.coverage.replies_without_request == 0


def test_repeated_and_reordered_packets_change_nothing(recorded: Recorded) -> None:
    draw = random.Random(11)
    packets: list[tuple[float, bytes]] = []
    for packet in recorded.packets:
        packets.append(packet)
        if draw.random() < 0.01:
            packets.append(packet)
    for place in range(len(packets) - 3):
        if draw.random() < 0.01:
            other = place + draw.randint(1, 3)
            packets[place], packets[other] = packets[other], packets[place]
    watcher, events = recorded.watch(packets)
    assert recorded.differing(events) == []
    assert watcher.coverage.repeated_segments > 20
    assert watcher.coverage.reordered_segments > 20
    assert watcher.coverage.lost_bytes == watcher.coverage.gaps == 0


def _sent_twice(packets: Sequence[tuple[float, bytes]]) -> set[tuple[bytes, int]]:
    """Return the segments of which another one has bytes too: a busy machine sends some again. What
    is lost of these came, or comes.
    """
    segments = sorted(
        (key, seq, seq + len(payload))
        for key, seq, payload, _ in (_payload(frame) for _, frame in packets)
        if payload
    )
    found: set[tuple[bytes, int]] = set()
    for before, after in pairwise(segments):
        if before[0] == after[0] and after[1] < before[2]:
            found |= {before[:2], after[:2]}
    return found


def test_every_gap_is_reported(recorded: Recorded) -> None:
    draw = random.Random(12)
    kept, lost = [], 0
    twice = _sent_twice(recorded.packets)
    for at, frame in recorded.packets:
        key, seq, payload, flags = _payload(frame)
        once = (key, seq) not in twice
        if draw.random() < 0.01 and once and payload and not flags & (SYN | FIN | RST):
            lost += len(payload)
        else:
            kept.append((at, frame))
    watcher, events = recorded.watch(kept)
    coverage = watcher.coverage
    assert lost > 1_000
    assert coverage.lost_bytes == lost
    assert 0 < coverage.gaps <= len(recorded.packets) - len(kept)
    assert any("missed" in remark for remark in coverage.remarks())
    differing = recorded.differing(events)
    assert differing
    assert [row for row in differing if row.seen > row.executed] == []
    seen = len(events)
    truth = len(recorded.watch(recorded.packets)[1])
    assert 0.75 < seen / truth < 1
    # The place is found again, except in a pipeline that never pauses
    pausing = [event for event in events if event.pattern != "bench:*"]
    answered = sum(event.answer is not Answer.UNKNOWN for event in pausing)
    assert answered > 0.8 * len(pausing)


def test_a_capture_that_begins_in_the_middle_is_understood(recorded: Recorded) -> None:
    half = recorded.packets[len(recorded.packets) // 3 :]
    watcher, events = recorded.watch(half)
    assert watcher.coverage.connections_before >= 1
    # Of the connections that were open, what comes before the first pause is not understood
    assert watcher.coverage.parsed_share > 0.8
    assert sum(event.answer is not Answer.UNKNOWN for event in events) > 0.9 * len(events)


# The command line.


def capture(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run `exodus capture`."""
    return subprocess.run(
        [sys.executable, "-m", app.__name__, "capture", *arguments],
        input=data,
        capture_output=True,
        timeout=60,
        check=False,
    )


def capturing(origin: str, port: int, *, seconds: float) -> subprocess.Popen[bytes]:
    """Start `exodus capture`."""
    options = ["--from", origin, "--port", str(port), "--seconds", str(seconds), "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", app.__name__, "capture", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def report_of(*arguments: str, data: bytes = b"") -> dict:
    done = capture(*arguments, "--json", data=data)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_a_file_a_pipe_and_a_folder_say_the_same(recorded: Recorded, tmp_path: Path) -> None:
    port = ("--port", str(recorded.port))
    packets = recorded.packets
    data = pcap(packets, nanoseconds=True)
    single = tmp_path / "all.pcap"
    single.write_bytes(data)
    single.chmod(0o600)
    folder = tmp_path / "rotated"
    folder.mkdir()
    third = len(packets) // 3
    for name, some in (("b", packets[:third]), ("c", packets[third : 2 * third])):
        (folder / name).write_bytes(pcap(some))
    with gzip.open(folder / "a.gz", "wb") as file:
        file.write(pcap(packets[2 * third :]))
    by_file = report_of("--from", str(single), *port)
    by_pipe = report_of("--from", "-", *port, data=data)
    by_folder = report_of("--from", str(folder), *port)
    assert by_file["remarks"] == by_pipe["remarks"] == []
    for report in (by_file, by_pipe):  # sketches differ from process to process
        for row in report["profile"]["patterns"]:
            del row["keys_distinct"], row["hottest_share"], row["zipf_exponent"]
    assert by_file["profile"] == by_pipe["profile"]
    assert by_folder["profile"]["requests"] == by_file["profile"]["requests"]
    assert by_folder["remarks"] == [
        f"other users could read 3 files of {folder}, which hold keys and values: "
        "now only their owner can"
    ]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert by_file["profile"]["requests"] > 9_000
    assert "user:*" in {row["pattern"] for row in by_file["profile"]["patterns"]}


def test_a_pipe_is_watched_for_some_seconds(redis82: DatabaseServer) -> None:
    """As `ssh host tcpdump -w -`, which does not end by itself."""
    with Recorder(redis82.port) as recorder, redis82.client() as client:
        for _ in range(50):
            client.incr("count")
        wait_until(
            lambda: len(recorder.packets) > 100, within_s=5, otherwise="nothing was recorded"
        )
    process = capturing("-", redis82.port, seconds=3)
    assert process.stdin is not None
    process.stdin.write(pcap(recorder.packets))
    process.stdin.flush()
    assert process.stdout is not None
    report = json.loads(process.stdout.read())
    process.communicate()
    assert process.returncode == 0
    commands = {row["command"]: row["calls"] for row in report["profile"]["commands"]}
    assert commands["INCRBY"] == 50


def test_a_folder_that_grows_is_followed(redis82: DatabaseServer, tmp_path: Path) -> None:
    with Recorder(redis82.port) as recorder, redis82.client() as client:
        for _ in range(60):
            client.incr("count")
    packets = recorder.packets
    third = len(packets) // 3
    first = tmp_path / "1.pcap"
    first.write_bytes(pcap(packets[:third]))
    process = capturing(str(tmp_path), redis82.port, seconds=5)
    time.sleep(2)  # it reads by now; only later packets count
    with first.open("ab") as file:
        file.write(pcap(packets[third : 2 * third])[24:])
    (tmp_path / "2.pcap").write_bytes(pcap(packets[2 * third :]))
    assert process.stdout is not None
    report = json.loads(process.stdout.read())
    process.communicate()
    assert process.returncode == 0
    assert report["coverage"]["lost_bytes"] == 0
    commands = {row["command"]: row["calls"] for row in report["profile"]["commands"]}
    assert commands["INCRBY"] == 60


_BUSY = """
import os, redis, time
client = redis.Redis.from_url(os.environ["URL"])
while True:
    with client.pipeline(transaction=False) as pipe:
        for number in range(200):
            pipe.set(f"user:{number}", "v" * 200)
        pipe.execute()
    time.sleep(0.01)
"""


def url_of(server: DatabaseServer) -> str:
    address = server.address()
    return f"redis://{address.username}:{address.secret('test')}@127.0.0.1:{server.port}"


@contextlib.contextmanager
def busy(server: DatabaseServer) -> Iterator[None]:
    """An application with long pipelines, in a process of its own. A request costs the server
    little, and a line of MONITOR much.
    """
    process = subprocess.Popen([sys.executable, "-c", _BUSY], env={"URL": url_of(server)})
    try:
        with server.client() as client:
            wait_until(lambda: client.dbsize() == 200, within_s=10, otherwise="nothing was written")
        yield
    finally:
        process.kill()
        process.wait()


def test_the_servers_own_counts_are_held_against_monitor(redis82: DatabaseServer) -> None:
    with busy(redis82):
        report = report_of("--from", "monitor", "--server", url_of(redis82), "--seconds", "2")
    rows = {row["command"]: row for row in report["reconciled"]}
    assert rows["SET"]["seen"] > 50
    assert all(row["seen"] == row["executed"] for row in rows.values())
    assert "no latency" in report["remarks"][0]
    assert "of a core" in report["remarks"][1]


@pytest.mark.parametrize("share_max", [0.0, 1.0])
async def test_monitor_ends_when_it_costs_too_much(
    redis82: DatabaseServer, share_max: float
) -> None:
    """Its cost is measured by the server's own processor time."""
    table = known_commands.known_table()
    with busy(redis82):
        watch = await monitor.capture(
            redis82.address(), table, seconds=4.0, cpu_share_max=share_max
        )
    profile = watch.profile
    cost = profile.report()["cost"]
    assert cost["requests_per_s_during"] > 100
    assert 0 < cost["cpu_share_added"] < 1
    if share_max:
        assert profile.seconds >= 4
        assert cost["stopped"] == ""
    else:
        assert profile.seconds < 3
        assert "of a core of the server, more than 0.0%" in cost["stopped"]

    def gone() -> bool:
        with redis82.client() as client:
            names = {each["name"] for each in client.client_list()}
        return not names & {"exodus-monitor", "exodus-monitor-cost"}

    wait_until(gone, within_s=5, otherwise="MONITOR still runs")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "/nowhere.pcap"), b"/nowhere.pcap cannot be read"),
        (("--from", "-"), b"no packet in -"),
        (("--from", "monitor"), b"needs --server and --seconds"),
        (("--from", "-", "--server", "redis://127.0.0.1:1"), b"does not answer COMMAND"),
        (("--from", "-", "--server", "http://x"), b"the scheme of the URL"),
    ],
)
def test_what_is_wrong_is_said_with_the_option(arguments: tuple[str, ...], said: bytes) -> None:
    done = capture(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert b"next:" in done.stderr


def test_a_wrong_port_names_the_ports_that_are_there(recorded: Recorded, tmp_path: Path) -> None:
    file = tmp_path / "x.pcap"
    file.write_bytes(pcap(recorded.packets[:200]))
    done = capture("--from", str(file), "--port", "1")
    assert done.returncode == 2
    assert str(recorded.port).encode() in done.stderr


def test_the_known_commands_are_those_of_the_servers(
    redis82: DatabaseServer, valkey91: DatabaseServer
) -> None:
    found = asyncio.run(known_commands.commands_at([redis82.address(), valkey91.address()]))
    file = Path(known_commands.__file__).with_suffix(".json")
    assert known_commands.text_of(found) == file.read_text()


def test_scripts_are_executed_and_not_seen(redis82: DatabaseServer) -> None:
    """The report must show what only the server counted."""
    with redis82.client() as control:
        before = commandstats(control.info("commandstats"))
        with Recorder(redis82.port) as recorder:
            for _ in range(5):
                control.eval("return redis.call('incr', KEYS[1])", 1, "count")
            after = commandstats(control.info("commandstats"))
    profile = Profile()
    watcher = PacketWatcher(known_commands.known_table(), profile, [redis82.port])
    watcher.feed([Packet(at, 1, frame, len(frame)) for at, frame in recorder.packets])
    watcher.finish()
    rows = {row.command: row for row in reconcile(before, after, profile.commands)}
    assert rows["EVAL"].share == 1
    assert (rows["INCR"].seen, rows["INCR"].executed) == (0, 5)
