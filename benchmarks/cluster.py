"""How fast is a backfill between clusters, compared with one between single servers?

`python -m benchmarks cluster`: three masters to three others, and one server to another, with the
same keys, in turn, on the same cores. Valkey 8.1 to 9.1. Where others use these cores, believe the
processor time and not the rates: seven processes get a larger share of the cores than three.

Three sizes of database, each once by both ways in a round. The smallest still has all slices, so it
tells what a backfill takes whatever its size: to connect, to begin and to end each slice.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import psutil
import redis
import uvloop

from benchmarks.copying import VALUE_BYTES, backfill, begin_epoch, data
from benchmarks.result import Result, result
from benchmarks.rig import Rig, client, cpu_s, seconds_of
from exodus.control.store import ControlStore
from exodus.engine import open_engine
from exodus.plan.address import Cluster, Place
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Cutover
from exodus.stack.clusters import CLUSTER_SETTINGS, cluster_port, join
from exodus.stack.servers import USER, Server, ServerKind

_MASTERS, _ROUNDS, _ROUNDS_FULL = 3, 5, 9
_PARTS = ("all", "exodus", "sources", "targets")
# All slices are there from 4,000 keys a node on. The largest takes some 250 MB on each of the four.
_SLICES_ONLY, _FEW, _MANY = 16_000, 300_000, 1_200_000
_PEER = "single servers"


def measure(*, full: bool) -> list[Result]:
    """Return the backfill's rate between clusters with that between single servers as the peer, the
    processor time that both took, and the time that no key causes.
    """
    rounds = _ROUNDS_FULL if full else _ROUNDS
    with Rig() as rig:
        control = rig.server(ServerKind.VALKEY_91, "control", appendonly="yes")
        versions = ServerKind.VALKEY_81, ServerKind.VALKEY_91
        single = [rig.server(version, f"single-{version}") for version in versions]
        clusters = [started_cluster(rig, version) for version in versions]
        ways = {
            "exodus": _Way([place for place, _ in clusters], *(nodes for _, nodes in clusters)),
            _PEER: _Way([server.address() for server in single], single[:1], single[1:]),
        }
        measured = {}
        for keys in (_SLICES_ONLY, _FEW, _MANY):
            kind = replace(data(full=True)[0], keys=keys)
            with client(single[0]) as ours:
                kind.load(ours)
            with redis.RedisCluster(host="127.0.0.1", port=clusters[0][1][0].port) as ours:
                kind.load(ours)
            measured[keys] = _rounds(ways, control, keys, rounds)
    found = [_fixed(measured[_SLICES_ONLY], measured[_FEW])]
    for keys, name in ((_FEW, "cluster"), (_MANY, "cluster-large")):
        found += _compared(name, keys, measured[keys])
    return found


def _rounds(
    ways: Mapping[str, _Way], control: Server, keys: int, rounds: int
) -> list[dict[str, _Run]]:
    """Measure each way once a round, in turn."""
    found: list[dict[str, _Run]] = []
    for number in range(rounds):
        names = sorted(ways, reverse=bool(number % 2))
        runs = {
            name: _measured(ways[name], control, f"{name}-{keys}-{number}", keys) for name in names
        }
        found.append({name: runs[name] for name in ways})
    return found


def _fixed(small: list[dict[str, _Run]], few: list[dict[str, _Run]]) -> Result:
    """Return the time of a small backfill without what its keys take: the line through the medians
    of both sizes. A large database is no measure of it, since there each key takes longer.
    """

    def median_s(runs: list[dict[str, _Run]], name: str) -> float:
        return statistics.median(run[name].took_s for run in runs)

    a_key_s = {
        name: (median_s(few, name) - median_s(small, name)) / (_FEW - _SLICES_ONLY)
        for name in small[0]
    }
    runs = [
        {name: 1e3 * (each.took_s - _SLICES_ONLY * a_key_s[name]) for name, each in run.items()}
        for run in small
    ]
    return result(
        name="cluster-fixed",
        what="the part of a backfill that does not grow with the keys",
        unit="ms",
        runs=runs,
        against=_PEER,
        higher_is_better=False,
    )


def _compared(name: str, keys: int, runs: list[dict[str, _Run]]) -> list[Result]:
    what = f"{keys:,} keys of {VALUE_BYTES} random bytes"
    rates = [{way: keys / run.took_s for way, run in each.items()} for each in runs]
    found = [result(name=name, what=what, unit="keys/s", runs=rates, against=_PEER)]
    found += [
        result(
            name=f"{name}-cpu-{part}",
            what=what,
            unit="µs of processor time a key",
            runs=[{way: run.cpu_us[part] / keys for way, run in each.items()} for each in runs],
            against=_PEER,
            higher_is_better=False,
        )
        for part in _PARTS
    ]
    return found


@dataclass
class _Way:
    places: Sequence[Place]
    sources: Sequence[Server]
    targets: Sequence[Server]


@dataclass
class _Run:
    """One backfill."""

    took_s: float
    cpu_us: dict[str, float]  # processor time, by who used it


def _measured(way: _Way, control: Server, run: str, keys: int) -> _Run:
    """Copy everything once, to targets that are empty."""
    for server in way.targets:
        with client(server) as theirs:
            theirs.flushall(asynchronous=False)
    before = _cpu(way)
    took_s = seconds_of(lambda: uvloop.run(_copy(way.places, control, run)))
    after = _cpu(way)
    copied = 0
    for server in way.targets:
        with client(server) as theirs:
            copied += sum(key.startswith(b"key:") for key in theirs.scan_iter(count=1_000))
    if copied != keys:
        raise AssertionError(f"{run} copied {copied} of {keys} keys")
    used = {part: (after[part] - before[part]) * 1e6 for part in before}
    return _Run(took_s, {"all": sum(used.values()), **used})


def _cpu(way: _Way) -> dict[str, float]:
    return {
        "exodus": time.process_time(),
        "sources": _servers_cpu_s(way.sources),
        "targets": _servers_cpu_s(way.targets),
    }


def _servers_cpu_s(servers: Sequence[Server]) -> float:
    return sum(cpu_s(psutil.Process(server.started.process.pid)) for server in servers)


def started_cluster(rig: Rig, kind: ServerKind) -> tuple[Cluster, list[Server]]:
    """Return a cluster of three masters, and these in the order of their slots."""
    nodes = [
        rig.server(kind, f"{kind}-{number}", port=str(cluster_port()), **CLUSTER_SETTINGS)
        for number in range(_MASTERS)
    ]
    files = [node.password_file for node in nodes]
    join([node.port for node in nodes], masters=_MASTERS)
    # One password for all nodes, as an operator has it.
    assert files[0] is not None
    secret = files[0].read_text().strip()
    for node in nodes:
        with client(node) as asked:
            asked.execute_command("ACL", "SETUSER", USER, "resetpass", f">{secret}")
    named = tuple(f"127.0.0.1:{node.port}" for node in nodes)
    return Cluster(cluster=named, username=USER, password_file=files[0]), nodes


async def _copy(places: Sequence[Place], control: Server, run: str) -> None:
    source, target = places
    plan = Plan(name="bench", source=source, target=target, cutover=Cutover.OWN)
    async with await ControlStore.connect(control.address(), plan.name) as store:
        engine = await open_engine(store, plan, await begin_epoch(store, plan))
        await backfill(engine, run)
