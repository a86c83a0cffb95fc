"""Each observed kind of request, run on scratch keys of the target; where allowed, of the source.

A verdict is

| verdict       | means                                                                   |
| ------------- | ----------------------------------------------------------------------- |
| same          | both sides ran it, and their replies mean the same                      |
| accepted      | the target ran it; the source was not asked (`prove_on_source`)         |
| differs       | the replies differ, or only one side ran it                             |
| missing       | the target does not have the command or the option                      |
| not provable  | Exodus cannot try it, or its user may not run it                        |
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from enum import StrEnum
from typing import Any, NamedTuple

from exodus.commands.key_slots import slot_of
from exodus.net.leg import Leg, Reply, ReplyError
from exodus.observe.monitor import hidden
from exodus.observe.workload import Workload
from exodus.plan.bounds import SHAPE_PROOFS_MAX
from exodus.shadow.rules import Rules, error_code
from exodus.shadow.shape_specs import Spec, spec_of
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node
from exodus.topology.permits import refused_of

_KEYS = ("K1", "K2", "K3")
_NO_RIGHT = re.compile("NOPERM|permission", re.IGNORECASE)
_LACKS = ("unknown command", "unknown subcommand", "syntax error", "wrong number of arguments")
# Their replies are another each time.
_NEVER_EQUAL = frozenset({"TIME", "DUMP", "MEMORY|USAGE", "OBJECT|IDLETIME", "XINFO|STREAM"})


class ShapeVerdict(StrEnum):
    """What a trial of a shape showed."""

    SAME = "same"
    ACCEPTED = "accepted"
    DIFFERS = "differs"
    MISSING = "missing"
    NOT_PROVABLE = "not provable"


_BADNESS = [
    ShapeVerdict.SAME,
    ShapeVerdict.ACCEPTED,
    ShapeVerdict.NOT_PROVABLE,
    ShapeVerdict.DIFFERS,
    ShapeVerdict.MISSING,
]


class Shape(NamedTuple):
    """A kind of request, and how often it was observed."""

    command: str  # with its subcommand as CONTAINER|SUBCOMMAND
    options: tuple[str, ...]
    calls: int
    origin: str  # who observed it

    @property
    def text(self) -> str:
        """Return it as a person reads it."""
        return " ".join((self.command.replace("|", " "), *self.options))


def shapes_of(workload: Workload | None, commands: Sequence[dict[str, Any]]) -> list[Shape]:
    """Return the shapes of a workload model and of the gateways' commands, the most frequent first.

    What sets a connection up (AUTH, CLIENT) is left out. Gateways count commands without options.
    Where the model has shapes of a command, these count; else the command without options does.
    """
    calls: dict[tuple[str, tuple[str, ...]], int] = {}
    for operation in workload.operations if workload is not None else ():
        name = operation.command
        if operation.subcommand:
            name += f"|{operation.subcommand}"
        shape = name, tuple(operation.options)
        calls[shape] = calls.get(shape, 0) + operation.calls
    seen = {name for name, _ in calls}
    found = [Shape(*shape, count, "pre-test") for shape, count in calls.items()]
    found += [
        Shape(row["command"], (), row["calls"], "gateways")
        for row in commands
        if row["command"] not in seen
    ]
    found = [shape for shape in found if not hidden(shape.command)]
    return sorted(found, key=lambda shape: -shape.calls)


async def prove_on(
    shapes: Sequence[Shape], target: Node, source: Endpoint | None, rules: Rules
) -> list[dict[str, Any]]:
    """Try each shape on scratch keys of a node of the target, and of the source's node that has the
    same slot; see `prove`.

    Raises:
        SourceError, TargetError, OperatorError: a node does not answer, or refuses the login.
    """
    tag = target.tag
    async with AsyncExitStack() as legs:
        theirs = await legs.enter_async_context(await target.connect(name="exodus-prove"))
        ours = None
        if source is not None:
            nodes = await source.each_node()
            slot = slot_of(tag.encode())
            alike = [node for node in nodes if node.shard is not None and node.shard.has(slot)]
            node = alike[0] if tag and alike else nodes[0]
            tag = tag or node.tag
            ours = await legs.enter_async_context(await node.connect(name="exodus-prove"))
        return await prove(shapes, theirs, ours, rules, tag=tag)


def worst_of(tried: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Return a row a shape of several nodes: of the node on which it went worst.

    Args:
        tried: node and its rows, which are of the same shapes in the same order.
    """
    found = []
    for of_each in zip(*[rows for _, rows in tried], strict=True):
        badness = [_BADNESS.index(row["verdict"]) for row in of_each]
        worst = badness.index(max(badness))
        row = of_each[worst]
        alike = len(set(badness)) == 1
        found.append(row if alike else {**row, "how": f"on {tried[worst][0]}: {row['how']}"})
    return found


async def prove(
    shapes: Sequence[Shape],
    target: Leg,
    source: Leg | None,
    rules: Rules,
    *,
    tag: str = "",
) -> list[dict[str, Any]]:
    """Try each shape; a row of verdict and reason for each.

    What the connection's user may not run is not sent.

    Scratch keys are removed in the same pipeline. Replies of the source are compared by `rules`.

    Args:
        shapes: what is tried.
        target: a connection to one node.
        source: the same, or None.
        rules: by which replies are compared.
        tag: in braces, of a slot that both nodes have; empty where no side is a cluster.

    Raises:
        SourceError, TargetError: a side went away.
    """
    prefix = f"exodus:load:{secrets.token_hex(4)}"
    rows = []
    for number, shape in enumerate(shapes):
        own = f"{prefix}:{tag}:{number}" if tag else f"{prefix}:{{{number}}}"
        keys = {name: f"{own}:{name}" for name in _KEYS}
        spec = (
            spec_of(shape.command, shape.options)
            if number < SHAPE_PROOFS_MAX
            else f"more than {SHAPE_PROOFS_MAX} shapes were observed"
        )
        if isinstance(spec, str):
            verdict, how = ShapeVerdict.NOT_PROVABLE, spec
        elif (why := await _not_allowed([target, source], spec, keys)) is not None:
            verdict, how = ShapeVerdict.NOT_PROVABLE, why
        else:
            theirs = await _tried(target, spec, keys)
            ours = None if source is None else await _tried(source, spec, keys)
            request = [keys.get(word, word).encode() for word in spec.request]
            verdict, how = _judge(shape.command, request, theirs, ours, rules, source is not None)
        rows.append(
            {
                "shape": shape.text,
                "calls": shape.calls,
                "observed_by": shape.origin,
                "verdict": str(verdict),
                "how": how,
            }
        )
    return rows


def _lines(spec: Spec, keys: dict[str, str]) -> list[list[str]]:
    lines = [[keys.get(word, word) for word in words] for words in (*spec.before, spec.request)]
    return [*lines, ["UNLINK", *keys.values()]]


async def _not_allowed(legs: Sequence[Leg | None], spec: Spec, keys: dict[str, str]) -> str | None:
    """Return why a trial cannot be run by the users of the connections; None: it can."""
    lines = _lines(spec, keys)
    for leg in legs:
        if leg is None:
            continue
        said = await refused_of(leg, leg.address.username or "default", lines)
        for line, why in zip(lines, said, strict=True):
            if why is not None and _NO_RIGHT.search(why):
                return f"Exodus's user on the {leg.side} may not run {line[0]}"
    return None


async def _tried(leg: Leg, spec: Spec, keys: dict[str, str]) -> Reply:
    """Return the reply to the request, or the first error before it."""
    replies = await leg.pipeline(_lines(spec, keys))
    before = next((reply for reply in replies[:-2] if isinstance(reply, ReplyError)), None)
    return before if before is not None else replies[-2]


def _judge(
    command: str, request: list[bytes], theirs: Reply, ours: Reply, rules: Rules, compared: bool
) -> tuple[ShapeVerdict, str]:
    for side, reply in (("target", theirs), *([("source", ours)] if compared else [])):
        if error_code(reply) == "NOPERM":
            return ShapeVerdict.NOT_PROVABLE, f"Exodus's user on the {side} may not run it"
    target_failed = isinstance(theirs, ReplyError)
    if target_failed and any(text in str(theirs) for text in _LACKS):
        if compared and isinstance(ours, ReplyError):
            return ShapeVerdict.NOT_PROVABLE, f"neither side takes the trial: {theirs}"
        return ShapeVerdict.MISSING, str(theirs)
    if not compared:
        if target_failed:
            return ShapeVerdict.DIFFERS, f"the target answers: {theirs}"
        return ShapeVerdict.ACCEPTED, ""
    if command in _NEVER_EQUAL and not target_failed and not isinstance(ours, ReplyError):
        return ShapeVerdict.ACCEPTED, "the reply is another each time"
    name = command.partition("|")[0].encode()
    if rules.equivalent(name, ours, theirs, request):
        return ShapeVerdict.SAME, ""
    return ShapeVerdict.DIFFERS, f"source: {_shown(ours)}; target: {_shown(theirs)}"


def _shown(reply: Reply) -> str:
    return str(reply)[:80]
