"""How fast is a backfill between clusters, compared with one between single servers?

`python -m benchmarks cluster`: three masters to three others, and one server to another, with the
same keys, in turn, on the same cores. Valkey 8.1 to 9.1. Where others use these cores, believe the
processor time and not the rates: seven processes get a larger share of the cores than three.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import redis
import uvloop

from benchmarks.copying import backfill, begin_epoch, data
from benchmarks.result import Result, result
from benchmarks.rig import Rig, client, cpu_s, seconds_of
from exodus.control.store import ControlStore
from exodus.engine import open_engine
from exodus.plan.address import Cluster, Place
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Cutover
from exodus.stack.clusters import CLUSTER_SETTINGS, cluster_port, join
from exodus.stack.servers import USER, Server, ServerKind

_MASTERS, _ROUNDS = 3, 5
_PARTS = ("all", "exodus", "sources", "targets")


def measure(*, full: bool) -> list[Result]:
    """Return the backfill's rate between clusters with that between single servers as the peer, and
    the processor time that both took.
    """
    del full  # fewer keys would measure how slices begin and end
    kind = data(full=True)[0]
    rates: list[dict[str, float]] = []
    costs: dict[str, list[dict[str, float]]] = {part: [] for part in _PARTS}
    with Rig() as rig:
        control = rig.server(ServerKind.VALKEY_91, "control", appendonly="yes")
        versions = ServerKind.VALKEY_81, ServerKind.VALKEY_91
        single = [rig.server(version, f"single-{version}") for version in versions]
        clusters = [_cluster(rig, version) for version in versions]
        with client(single[0]) as ours:
            kind.load(ours)
        with redis.RedisCluster(host="127.0.0.1", port=clusters[0][1][0].port) as ours:
            kind.load(ours)
        ways = {
            "exodus": _Way([place for place, _ in clusters], *(nodes for _, nodes in clusters)),
            "single servers": _Way([server.address() for server in single], single[:1], single[1:]),
        }
        for number in range(_ROUNDS):
            rates.append({})
            for each in costs.values():
                each.append({})
            for name in sorted(ways, reverse=bool(number % 2)):
                took_s, cpu_us = _measured(ways[name], control, f"{name}-{number}", kind.keys)
                rates[-1][name] = kind.keys / took_s
                for part, each in costs.items():
                    each[-1][name] = cpu_us[part] / kind.keys
    against = "single servers"
    found = [result(name="cluster", what=kind.what, unit="keys/s", runs=rates, against=against)]
    for part, runs in costs.items():
        found.append(
            result(
                name=f"cluster-cpu-{part}",
                what=kind.what,
                unit="µs of processor time a key",
                runs=runs,
                against=against,
                higher_is_better=False,
            )
        )
    return found


@dataclass
class _Way:
    places: Sequence[Place]
    sources: Sequence[Server]
    targets: Sequence[Server]


def _measured(way: _Way, control: Server, run: str, keys: int) -> tuple[float, dict[str, float]]:
    """Return the seconds of one backfill, and the processor time in µs by who used it."""
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
    return took_s, {"all": sum(used.values()), **used}


def _cpu(way: _Way) -> dict[str, float]:
    return {
        "exodus": time.process_time(),
        "sources": _servers_cpu_s(way.sources),
        "targets": _servers_cpu_s(way.targets),
    }


def _servers_cpu_s(servers: Sequence[Server]) -> float:
    return sum(cpu_s(psutil.Process(server.started.process.pid)) for server in servers)


def _cluster(rig: Rig, kind: ServerKind) -> tuple[Cluster, list[Server]]:
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
