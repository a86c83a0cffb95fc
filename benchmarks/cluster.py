"""How fast is a backfill between clusters, compared with one between single servers?

`python -m benchmarks cluster`: three masters to three others, and one server to another, with the
same keys, in turn, on the same cores. Valkey 8.1 to 9.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import redis
import uvloop

from benchmarks.copying import backfill, begin_epoch, data
from benchmarks.result import Result, result
from benchmarks.rig import Rig, client, seconds_of
from exodus.control.store import ControlStore
from exodus.engine import open_engine
from exodus.plan.address import Cluster, Place
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Cutover
from exodus.stack.clusters import CLUSTER_SETTINGS, cluster_port, join
from exodus.stack.servers import USER, Server, ServerKind

_MASTERS, _ROUNDS = 3, 3


def measure(*, full: bool) -> Result:
    """Return the backfill's rate between clusters, with that between single servers as the peer."""
    kind = data(full=full)[0]
    with Rig() as rig:
        control = rig.server(ServerKind.VALKEY_91, "control", appendonly="yes")
        single = [
            rig.server(version, f"single-{version}")
            for version in (ServerKind.VALKEY_81, ServerKind.VALKEY_91)
        ]
        clusters = [
            _cluster(rig, version) for version in (ServerKind.VALKEY_81, ServerKind.VALKEY_91)
        ]
        with client(single[0]) as ours:
            kind.load(ours)
        with redis.RedisCluster(host="127.0.0.1", port=clusters[0][1][0].port) as ours:
            kind.load(ours)
        runs = []
        for number in range(_ROUNDS):
            run = {}
            for way, places, targets in (
                ("exodus", [place for place, _ in clusters], clusters[1][1]),
                ("single servers", [server.address() for server in single], single[1:]),
            ):
                for server in targets:
                    with client(server) as theirs:
                        theirs.flushall()
                took_s = seconds_of(
                    lambda: uvloop.run(_copy(places, control, f"{way}-{number}"))  # noqa: B023
                )
                run[way] = kind.keys / took_s
                copied = 0
                for server in targets:
                    with client(server) as theirs:
                        copied += sum(
                            key.startswith(b"key:") for key in theirs.scan_iter(count=1_000)
                        )
                if copied != kind.keys:
                    raise AssertionError(f"{way} copied {copied} of {kind.keys} keys")
            runs.append(run)
    return result(
        name="cluster", what=kind.what, unit="keys/s", runs=runs, against="single servers"
    )


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
