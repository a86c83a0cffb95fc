"""Make a cluster of servers that were started with `CLUSTER_SETTINGS`, without redis-cli."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Sequence

import redis

from exodus.commands.key_slots import SLOTS
from exodus.errors import StackError
from exodus.plan.bounds import CLUSTER_BUS_PORTS, PORT_MAX, STACK_CLUSTER_WITHIN_S
from exodus.stack.home import free_port

CLUSTER_SETTINGS = {
    "cluster_enabled": "yes",
    "cluster_node_timeout": "1000",
    "cluster_config_file": "nodes.conf",
    "repl_diskless_sync_delay": "0",
}


def cluster_port() -> int:
    """Return a free port whose bus port is free, too."""
    while True:
        port = free_port()
        if port + CLUSTER_BUS_PORTS > PORT_MAX:
            continue
        with contextlib.suppress(OSError), socket.socket() as bus:
            bus.bind(("127.0.0.1", port + CLUSTER_BUS_PORTS))
            return port


def join(
    ports: Sequence[int],
    *,
    masters: int,
    spare: int = 0,
    username: str | None = None,
    password: str | None = None,
) -> None:
    """Give the slots to the first servers in equal ranges, and make the others replicas of these.

    Args:
        ports: of the servers, on 127.0.0.1.
        masters: number of servers that get slots.
        spare: number of servers at the end that know the cluster and have no slots.
        username: of a user that may run CLUSTER.
        password: of that user.

    Raises:
        StackError: the servers do not agree in time.
    """
    with contextlib.ExitStack() as opened:
        nodes = [
            opened.enter_context(redis.Redis(port=port, username=username, password=password))
            for port in ports
        ]
        for number, node in enumerate(nodes[:masters]):
            first, last = number * SLOTS // masters, (number + 1) * SLOTS // masters - 1
            node.execute_command("CLUSTER", "ADDSLOTS", *range(first, last + 1))
        for number, node in enumerate(nodes):
            node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for port in ports[1:]:
            nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port)
        replicas = nodes[masters : len(nodes) - spare]
        for number, node in enumerate(replicas):
            wanted = nodes[number % masters].execute_command("CLUSTER", "MYID")
            _until(lambda: _follows(node, wanted), "a node knows no master")  # noqa: B023
        _until(
            lambda: all(_ready(node, masters, len(replicas)) for node in nodes),
            "the nodes do not agree who has which slots",
        )


def _follows(node: redis.Redis, master: bytes) -> bool:
    facts = node.info("replication")
    if facts["role"] == "master":  # Redis 6.2 begins its copy anew each time that it is told
        with contextlib.suppress(redis.ResponseError):  # it has not heard of the master yet
            node.execute_command("CLUSTER", "REPLICATE", master)
    return bool(facts.get("master_link_status") == "up")


def slots_of(node: redis.Redis) -> list[list[object]]:
    """Return a node's answer to CLUSTER SLOTS, in the order of the slots."""
    connection = node.connection_pool.get_connection()
    try:
        connection.send_command("CLUSTER", "SLOTS")
        return sorted(connection.read_response())
    finally:
        node.connection_pool.release(connection)


def _ready(node: redis.Redis, masters: int, replicas: int) -> bool:
    rows = slots_of(node)
    up = node.cluster("INFO").get("cluster_state") == "ok"
    return up and len(rows) == masters and sum(len(row) - 3 for row in rows) == replicas


def _until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + STACK_CLUSTER_WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise StackError(
                "the cluster was not made",
                why=f"{otherwise} within {STACK_CLUSTER_WITHIN_S:.0f} s",
                next_step="look at the servers' logs",
            )
        time.sleep(0.05)  # no event loop runs here, and a node tells its state only when asked
