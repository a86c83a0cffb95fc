"""Reading many keys of a cluster: each node's by a script of its own, as `read.py` reads a single
server.

A script fails as a whole where one of its keys is in a slot that the node does not serve now. These
keys are then read one by one, each in a transaction that is redirected to the node that has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from exodus.commands.slots import is_redirect
from exodus.copy.read import Batch, Limits, Reader, ReadMode, ScannedKey
from exodus.copy.scan import scan_once
from exodus.copy.value import Command
from exodus.net.leg import Leg, Reply, ReplyError
from exodus.net.routed import RoutedLeg, together
from exodus.topology.node import NodeFacts


class _OneByOne(Reader):
    """Reads of a routed leg without scripts, each key in a transaction of its own."""

    async def _small(self, keys: Sequence[tuple[bytes, bytes]]) -> list[ScannedKey]:
        if not self._modern:
            return await super()._small(keys)
        reads = [self._reads(key, kind) for key, kind in keys]
        commands: list[Command] = []
        for (key, _), each in zip(keys, reads, strict=True):
            commands += [("MULTI",), ("PEXPIRETIME", key), *each, ("EXEC",)]
        replies = iter(await self._leg.pipeline(commands))
        found: list[ScannedKey] = []
        for (key, kind), each in zip(keys, reads, strict=True):
            outcome = [next(replies) for _ in range(len(each) + 3)][-1]
            if isinstance(outcome, ReplyError):
                raise outcome
            at_ms, *values = outcome
            found.append(self._seen(key, kind, at_ms, values))
        return found


class ClusterReader(Reader):
    """Reads of all nodes of a cluster. Used by one task at a time."""

    def __init__(
        self, leg: RoutedLeg, facts: NodeFacts, what: ReadMode, limits: Limits | None = None
    ) -> None:
        super().__init__(leg, facts, what, limits)
        self._routed = leg
        self._facts = facts
        self._given = limits
        self._nodes: dict[str, tuple[Leg, Reader]] = {}
        plain = replace(facts, capabilities={**facts.capabilities, "scripts": False})
        self._one_by_one = _OneByOne(leg, plain, what, limits)

    async def _node(self, announced: str) -> Reader:
        leg = await self._routed.node(announced)
        kept = self._nodes.get(announced)
        if kept is None or kept[0] is not leg:
            kept = self._nodes[announced] = (
                leg,
                Reader(leg, self._facts, self._what, self._given),
            )
        return kept[1]

    async def scan(self, cursor: int, count: int, *, at_least: bool = False) -> tuple[int, Batch]:
        """Do one SCAN call of the pinned node; see `Reader.scan`."""
        if self._scripted:
            leg = await self._routed.pinned()
            reader = await self._node(self._routed.name_of(leg))
            try:
                return await reader.scan(cursor, count, at_least=at_least)
            except ReplyError as exc:
                if not is_redirect(str(exc)):
                    raise
        following, keys = await scan_once(self._routed, cursor, count)
        return following, Batch.of(await self.keys(keys))

    async def keys(self, keys: Sequence[bytes]) -> list[ScannedKey]:
        """Return the keys named, in their order."""
        if not self._scripted:
            return await self._one_by_one.keys(keys)
        by_node = self._by_node(keys)
        parts = await together(
            self._of_node(node, [keys[at] for at in places]) for node, places in by_node.items()
        )
        found: dict[bytes, ScannedKey] = {}
        for places, part in zip(by_node.values(), parts, strict=True):
            # One after the other: they use the connections of several nodes.
            rows = part or await self._one_by_one.keys([keys[at] for at in places])
            found.update((seen.key, seen) for seen in rows)
        return [found[key] for key in keys]

    async def _of_node(self, node: str, keys: Sequence[bytes]) -> list[ScannedKey] | None:
        """Return the keys, or None where the node does not serve all of them now."""
        reader = await self._node(node)
        try:
            return await reader.keys(keys)
        except ReplyError as exc:
            if not is_redirect(str(exc)):
                raise
            return None

    async def like(self, others: Batch) -> Batch:
        """Return the same keys as another side has them; see `Reader.like`."""
        keys = others.keys
        if not self._scripted or not keys:
            return Batch.of(await self._one_by_one.keys(keys))
        by_node = self._by_node(keys)
        parts = await together(
            self._like_of_node(node, others.at(places)) for node, places in by_node.items()
        )
        kinds: list[bytes] = [b""] * len(keys)
        expiries_ms = [0] * len(keys)
        values: list[Reply] = [None] * len(keys)
        for places, told in zip(by_node.values(), parts, strict=True):
            part = told or Batch.of(await self._one_by_one.keys([keys[at] for at in places]))
            for at, kind, expiry_ms, value in zip(
                places, part.kinds, part.expiries_ms, part.values, strict=True
            ):
                kinds[at], expiries_ms[at], values[at] = kind, expiry_ms, value
        return Batch(keys, kinds, expiries_ms, values)

    async def _like_of_node(self, node: str, others: Batch) -> Batch | None:
        """Return the keys, or None where the node does not serve all of them now."""
        reader = await self._node(node)
        try:
            return await reader.like(others)
        except ReplyError as exc:
            if not is_redirect(str(exc)):
                raise
            return None

    def _by_node(self, keys: Sequence[bytes]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for at, key in enumerate(keys):
            found.setdefault(self._routed.master_of(key), []).append(at)
        return found


def reader_of(leg: Leg, facts: NodeFacts, what: ReadMode, limits: Limits | None = None) -> Reader:
    """Return what reads the keys of a side: of one server, or of the nodes of a cluster."""
    if isinstance(leg, RoutedLeg):
        return ClusterReader(leg, facts, what, limits)
    return Reader(leg, facts, what, limits)
