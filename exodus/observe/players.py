"""Playing a workload model on every node of a side at once: each takes the share of the load that
its slots have.

The scratch keys of a node have a hash tag of one of its slots, so the requests of several keys that
one server takes are none of several slots here. What the applications' own requests would meet
there, the gateways count (`exodus/gateway/misfits.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from exodus.commands.key_slots import SLOTS
from exodus.net.masters import located
from exodus.net.routed import together
from exodus.observe.composer import Composer
from exodus.observe.distribution import Distribution
from exodus.observe.player import Played, Player, remove_scratch
from exodus.observe.workload import Workload
from exodus.topology.node import Node


def share_of(node: Node) -> float:
    """Return a node's share of all slots; 1 for a single server."""
    return 1.0 if node.shard is None else node.shard.slot_count / SLOTS


def prefix_on(node: Node, prefix: bytes) -> bytes:
    """Return the prefix of a run's scratch keys on a node."""
    return prefix + node.tag.encode()


async def play_on_each(
    nodes: Sequence[Node],
    workload: Workload,
    *,
    prefix: bytes,
    speed: float,
    seconds: float,
    connections: int,
    prepared_bytes_max: int,
    seed: int = 1,
) -> tuple[Played, dict[str, int]]:
    """Play a workload on all nodes for some seconds, and leave the scratch keys there.

    Args:
        nodes: of one side.
        workload: with the rate of all nodes together.
        prefix: of the scratch keys.
        speed: times the workload's rate.
        seconds: how long.
        connections: to all nodes together; each has one at least.
        prepared_bytes_max: of the scratch keys on all nodes.
        seed: of the draw, so that a load can be repeated.

    Returns:
        What was done on all nodes, and the requests of the model that were not played, by shape.

    Raises:
        OperatorError: a node has no room, is a replica, or refuses the login; or nothing of the
            workload can be played.
        TargetError: a node went away.
    """
    players = []
    not_played: dict[str, int] = {}
    for number, node in enumerate(nodes):
        own = prefix_on(node, prefix)
        composer = Composer(
            workload,
            prefix=own,
            speed=speed * share_of(node),
            draw=Random(seed + number),  # noqa: S311 - a load that can be repeated
            prepared_bytes_max=prepared_bytes_max // len(nodes),
        )
        composer.check()
        not_played = composer.not_played
        players.append(Player(await located(node.place), composer, prefix=own))
    each = max(1, connections // len(nodes))
    played = await together(
        player.run(seconds=seconds, connections=each, keep=True) for player in players
    )
    return sum_of(played), not_played


def sum_of(played: Sequence[Played]) -> Played:
    """Return what several players did at the same time."""
    found = Played(seconds=max(each.seconds for each in played))
    for each in played:
        for name in ("due", "sent", "answered", "not_sent", "not_waited", "prepared", "removed"):
            setattr(found, name, getattr(found, name) + getattr(each, name))
        found.latency_us.add(each.latency_us)
        found.late_us.add(each.late_us)
        for shape, latencies in each.by_shape.items():
            found.by_shape.setdefault(shape, Distribution()).add(latencies)
        for shape, codes in each.errors.items():
            into = found.errors.setdefault(shape, {})
            for code, count in codes.items():
                into[code] = into.get(code, 0) + count
    return found


async def remove_scratch_on_each(nodes: Sequence[Node], prefix: bytes) -> int:
    """Remove the scratch keys of a run from all nodes; return how many there were.

    Raises:
        TargetError: a node went away.
    """
    return sum(
        [await remove_scratch(await located(node.place), prefix_on(node, prefix)) for node in nodes]
    )
