"""A trial of a side with the mix that was observed: slowly at first, bounded, and cleaned up.

It plays the workload model on scratch keys at a quarter, half, and all of the mean rate, or of
`RAMP_RATE_MAX` where that is less. It ends at the first step in which requests fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from exodus.observe.player import SCRATCH, Played, scratch_prefix
from exodus.observe.players import play_on_each, remove_scratch_on_each
from exodus.observe.templates import TEMPLATES
from exodus.observe.workload import Workload
from exodus.plan.bounds import (
    RAMP_CONNECTIONS_MAX,
    RAMP_PREPARED_BYTES_MAX,
    RAMP_RATE_MAX,
    RAMP_SPEEDS,
    RAMP_STEP_S,
)
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node
from exodus.topology.permits import refused_of

_NO_RIGHT = "NOPERM"


@dataclass
class Ramp:
    """What a trial did."""

    steps: list[dict[str, Any]] = field(default_factory=list)  # speed and report of each
    not_played: dict[str, int] = field(default_factory=dict)  # requests of the model by shape
    requests: int = 0  # of the model
    refused: dict[str, int] = field(default_factory=dict)  # by shape: the user has no right
    errors: dict[str, dict[str, int]] = field(default_factory=dict)  # others, by shape and word
    memory_bytes: int = 0  # that the server used more at the end than before
    left: int = 0  # scratch keys that were still there after their removal

    @property
    def played_share(self) -> float:
        """The share of the model's requests whose shape was played."""
        missed = sum(self.not_played.values())
        return 1 - missed / self.requests if self.requests else 0.0

    @property
    def sent(self) -> int:
        """How many requests were sent."""
        return sum(int(step["sent"]) for step in self.steps)

    def drop(self, workload: Workload, refused: set[str]) -> Workload:
        """Return the workload without commands that the server's user may not run."""
        kept = []
        for operation in workload.operations:
            if operation.command in refused:
                shape = " ".join((operation.command, *operation.options))
                self.refused[shape] = self.refused.get(shape, 0) + operation.calls
            else:
                kept.append(operation)
        return workload.model_copy(update={"operations": kept}) if self.refused else workload

    def add(self, speed: float, played: Played) -> None:
        """Take a step."""
        self.steps.append({"speed": speed, **played.report()})
        for shape, codes in played.errors.items():
            for code, count in codes.items():
                if code == _NO_RIGHT:
                    self.refused[shape] = self.refused.get(shape, 0) + count
                else:
                    found = self.errors.setdefault(shape, {})
                    found[code] = found.get(code, 0) + count

    def report(self) -> dict[str, Any]:
        """As JSON."""
        last = self.steps[-1] if self.steps else {}
        return {
            "steps": self.steps,
            "sent": self.sent,
            "played_share": round(self.played_share, 6),
            "not_played": self.not_played,
            "refused": self.refused,
            "errors": self.errors,
            "memory_bytes": self.memory_bytes,
            "left": self.left,
            "requests_per_s": last.get("requests_per_s", 0.0),
            "latency_us": last.get("latency_us", {}),
        }


async def ramp(server: Endpoint, workload: Workload, *, seed: int = 1) -> Ramp:
    """Play a workload on each node of a side in steps, and remove the scratch keys, after an error
    too.

    Raises:
        OperatorError: the server has no room, is a replica, or refuses the login; or nothing of
            the workload can be played.
        TargetError: it went away.
    """
    prefix = scratch_prefix(Random())  # noqa: S311 - a name, not a secret
    top = min(1.0, RAMP_RATE_MAX / max(workload.rates.mean, 1e-9))
    found = Ramp(requests=workload.requests)
    connections = min(workload.connections, RAMP_CONNECTIONS_MAX)
    nodes = await server.each_node()
    workload = found.drop(workload, await refused_commands(nodes, workload))
    before = await _used_memory(nodes)
    try:
        for share in RAMP_SPEEDS:
            played, found.not_played = await play_on_each(
                nodes,
                workload,
                prefix=prefix,
                speed=share * top,
                seconds=RAMP_STEP_S,
                connections=connections,
                prepared_bytes_max=RAMP_PREPARED_BYTES_MAX,
                seed=seed,
            )
            found.add(share * top, played)
            if found.errors:
                break
        found.memory_bytes = max(0, await _used_memory(nodes) - before)
    finally:
        await remove_scratch_on_each(nodes, prefix)
    found.left = await remove_scratch_on_each(nodes, prefix)
    return found


async def refused_commands(nodes: Sequence[Node], workload: Workload) -> set[str]:
    """Return the commands that a node's user may not run on a scratch key."""
    names = sorted({each.command for each in workload.operations if each.command in TEMPLATES})
    return set().union(*[await _refused_on(node, names) for node in nodes])


async def _refused_on(node: Node, names: Sequence[str]) -> set[str]:
    async with await node.connect(name="exodus-load") as leg:
        arity = {
            row[0].decode().upper(): abs(row[1])
            for row in await leg.call("COMMAND", "INFO", *names)
            if row
        }
        asked = [name for name in names if name in arity]
        said = await refused_of(
            leg,
            node.place.username or "default",
            [(name, *[SCRATCH + b"try"] * (arity[name] - 1)) for name in asked],
        )
    return {
        name
        for name, why in zip(asked, said, strict=True)
        if why is not None and "ermission" in why
    }


async def _used_memory(nodes: Sequence[Node]) -> int:
    return sum([int((await node.info()).get("used_memory", 0)) for node in nodes])
