"""Do the applications fit a cluster, while they still use a single server?

The gateways count which requests a cluster would refuse, and which clients ask for the nodes of a
cluster (`gateway.facade: cluster` answers them).
"""

from __future__ import annotations

from exodus.gateway.misfits import OTHER_DATABASE
from exodus.observe.profile import OWN_CLIENTS
from exodus.plan.bounds import TASKS_COMPATIBILITY_NAMED
from tasks.checks import Level, check
from tasks.context import Json

_WHOLE = frozenset({"KEYS", "SCAN", "DBSIZE", "RANDOMKEY", "FLUSHALL", "FLUSHDB"})


def judge_cluster_fit(workload: Json, databases: int) -> list[Json]:
    """Return the checks of applications that are about to use a cluster; none where the target is
    no cluster.

    Args:
        workload: as `learn_workload` returns it.
        databases: how many the target has: more than one with `cluster-databases`.
    """
    if workload["misfits"] is None:
        return []
    misfits = misfits_of(workload["misfits"], databases)
    plain = plain_clients(workload["clients"])
    whole = [row for row in workload["commands"] if row["command"].partition("|")[0] in _WHOLE]
    return [
        check(
            "every client can use a cluster",
            not plain,
            ", ".join(
                f"{row['client']} from {row['host']}: {row['connections']} connection(s)"
                for row in plain[:TASKS_COMPATIBILITY_NAMED]
            )
            or "each client asked for the nodes of a cluster",
            why="a client without cluster support gets MOVED for most keys after the cutover",
            next_step="set gateway.facade: cluster, and give these applications a cluster client, "
            "such as RedisCluster of redis-py or Cluster of ioredis",
        ),
        check(
            "the target executes every observed request",
            not misfits,
            ", ".join(
                f"{row['command']}: {row['why']} ({row['calls']} calls)"
                for row in misfits[:TASKS_COMPATIBILITY_NAMED]
            )
            or "no request has keys of several slots, and none another database",
            why="a cluster refuses these requests",
            next_step="give keys that are used together one hash tag, such as {user:7}:name; "
            "keep all keys in database 0, or set cluster-databases on the target (Valkey 9)",
        ),
        check(
            "no request is about all keys",
            not whole,
            ", ".join(
                f"{row['command']}: {row['calls']} calls"
                for row in whole[:TASKS_COMPATIBILITY_NAMED]
            )
            or "none was observed",
            level=Level.SHOULD,
            why="a node of a cluster answers for its own keys alone",
            next_step="see whether the cluster client sends these to every master",
        ),
    ]


def misfits_of(misfits: list[Json], databases: int) -> list[Json]:
    """Return the misfits that this target does have: several databases may be no fault."""
    return [row for row in misfits if databases < 2 or row["why"] != OTHER_DATABASE]


def plain_clients(clients: list[Json]) -> list[Json]:
    """Return the clients that never asked for the nodes of a cluster, by name and host."""
    found: dict[tuple[str, str], Json] = {}
    for row in clients:
        if row["cluster"] or row["name"].startswith(OWN_CLIENTS):
            continue
        client = " ".join(filter(None, (row["name"] or "(no name)", row["library"])))
        known = found.setdefault(
            (client, row["host"]), {"client": client, "host": row["host"], "connections": 0}
        )
        known["connections"] += row["connections"]
    return sorted(found.values(), key=lambda row: (-row["connections"], row["client"]))
