"""What does a request cost in a gateway in front of a cluster, compared with a single server?

`python -m benchmarks listeners`: one gateway process in front of three masters, and one in front of
one server of the same version, in turn. The load of both is the same, on keys of one slot, so a
cluster redirects nothing. Full tap, journal on. The goal is at most 1.1.
"""

from __future__ import annotations

import psutil
import redis

from benchmarks.cluster import started_cluster
from benchmarks.gateway import load, started_gateway
from benchmarks.result import Result, result
from benchmarks.rig import Rig, client, cpu_s
from exodus.commands.key_slots import SLOTS
from exodus.commands.slots import tag_of
from exodus.stack.servers import Server, ServerKind

_SLOT, _KEYS, _BYTES = 5_000, 1_000, 100
_PREFIX = "bench:{" + tag_of(b"bench", _SLOT).decode() + "}:"
_PIPELINES = (1, 16)
_PEER = "single server"


def measure(*, full: bool) -> list[Result]:
    """Return the processor time of both gateways a request, for each depth of pipeline."""
    seconds, rounds = (5.0, 9) if full else (1.5, 5)
    runs: dict[int, list[dict[str, float]]] = {pipeline: [] for pipeline in _PIPELINES}
    with Rig() as rig:
        control = rig.server(ServerKind.VALKEY_91, "control", appendonly="yes")
        ways = {"exodus": _clustered(rig, control), _PEER: _single(rig, control)}
        for port, _ in ways.values():
            for pipeline in _PIPELINES:
                _requests(port, pipeline, 0.5)
        for number in range(rounds):
            for pipeline in _PIPELINES:
                found = {}
                for name in sorted(ways, reverse=bool(number % 2)):
                    port, process = ways[name]
                    before = cpu_s(process)
                    requests = _requests(port, pipeline, seconds)
                    found[name] = 1e6 * (cpu_s(process) - before) / requests
                runs[pipeline].append({name: found[name] for name in ways})
    return [
        result(
            name="listeners" if pipeline == 1 else "listeners-pipelined",
            what="CPU of a gateway in front of three masters a request, GET and SET of "
            f"{_BYTES} bytes, 50 connections, pipeline {pipeline}",
            unit="us/request",
            runs=runs[pipeline],
            against=_PEER,
            higher_is_better=False,
        )
        for pipeline in _PIPELINES
    ]


def _requests(port: int, pipeline: int, seconds: float) -> float:
    """Return how many requests the load made: as many seconds of SET as of GET."""
    return sum(
        load(port, prefix=_PREFIX, pipeline=pipeline, seconds=seconds, command=command)["requests"]
        for command in ("set", "get")
    )


def _single(rig: Rig, control: Server) -> tuple[int, psutil.Process]:
    source = rig.server(ServerKind.VALKEY_81, "source")
    target = rig.server(ServerKind.VALKEY_91, "target")
    _fill(source)
    return started_gateway(rig, source.address(), target.address(), control, name="single")


def _clustered(rig: Rig, control: Server) -> tuple[int, psutil.Process]:
    """Return the port of the listener that stands for the node of the load's slot."""
    (source, nodes), (target, _) = (
        started_cluster(rig, version) for version in (ServerKind.VALKEY_81, ServerKind.VALKEY_91)
    )
    first, process = started_gateway(rig, source, target, control, name="cluster")
    with redis.Redis(port=first) as asked:
        rows = asked.execute_command("CLUSTER", "SLOTS")
    port = next(row[2][1] for row in rows if row[0] <= _SLOT <= row[1])
    _fill(nodes[_SLOT * len(nodes) // SLOTS])
    return int(port), process


def _fill(server: Server) -> None:
    with client(server) as application:
        for number in range(_KEYS):
            application.set(f"{_PREFIX}{number}", b"x" * _BYTES)
