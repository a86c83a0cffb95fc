"""Trials on a cluster: each request goes to the node that has its slot, and follows redirects.

MOVED, ASK, TRYAGAIN and CLUSTERDOWN say nothing about data. A request is sent again after them, a
bounded number of times. Then the redirect is the reply, and Compare counts a server in trouble.

A request is sent again only if nothing of it ran. What a script answers is not believed: `{err =
'MOVED 1 a:1'}` would lead this process, with its login, to any address. A request that is no plain
command therefore goes to nodes that are known, and to no others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from exodus.commands.key_slots import slot_of
from exodus.commands.semantics import COMPARED_READS, COMPARED_WRITES
from exodus.commands.slots import is_redirect, redirected_to
from exodus.errors import SourceError, TargetError
from exodus.net.clusters import NoMaster, cluster_of, look, shard_of
from exodus.net.leg import Leg, Reply, ReplyError, lost
from exodus.net.routed import RoutedLeg
from exodus.plan.address import Cluster
from exodus.plan.bounds import CLUSTER_AGAIN_S, COMPARE_REDIRECTS_MAX, COMPARE_SECONDS_MAX
from exodus.plan.vocabulary import Side
from exodus.shadow.rules import INFRASTRUCTURE, error_code
from exodus.shadow.trials import Slow, TooSlow, TrialConnection

_PLAIN = COMPARED_READS | COMPARED_WRITES | {b"MULTI", b"EXEC", b"ASKING"}


class ClusterTrials:
    """A connection for trial requests to each node, made when it is needed."""

    def __init__(
        self,
        cluster: Cluster,
        side: Side,
        slow: Slow,
        *,
        name: str,
        enters: Cluster | None = None,
        redirects_max: int = COMPARE_REDIRECTS_MAX,
    ) -> None:
        """`cluster` names the user of the requests, `enters` the one that enters a database in its
        place. `slow` has what took too long in this sampling. After `redirects_max` redirects these
        are the replies.
        """
        self._slow = slow
        self._cluster = cluster
        self._side = side
        self._name = name
        self._enters = enters
        self._redirects_max = redirects_max
        self._nodes: dict[str, TrialConnection] = {}  # by announced address

    async def ask_all(self, db: int, requests: list[list[bytes]], key: bytes) -> list[Reply]:
        """As `Trials.ask_all`."""
        asks, said = "", ""
        for _ in range(self._redirects_max):
            node, since = asks or self._owner(slot_of(key)), time.monotonic()
            sent = [[b"ASKING"], *requests] if asks else requests
            replies = await self._ask(node, db, sent, key)
            replies = replies[1:] if asks else replies
            errors = (str(reply) for reply in replies if isinstance(reply, ReplyError))
            said = next(filter(is_redirect, errors), "")
            if not said:
                return replies
            if not _nothing_ran(requests, replies):
                break
            believed = all(args[0].upper() in _PLAIN for args in requests)
            asks = await self._noted(said, node, since, believed=believed)
        # In a script's words a redirect has no code of its own.
        trouble = ReplyError(said)
        if error_code(trouble) not in INFRASTRUCTURE:
            trouble = ReplyError(f"TRYAGAIN {said}")
        return [trouble] * len(requests)

    def _owner(self, slot: int) -> str:
        try:
            return shard_of(self._cluster, slot).master
        except NoMaster as exc:
            cluster_of(self._cluster).doubt()
            raise lost(self._side, self._cluster, exc) from exc

    async def _ask(
        self, announced: str, db: int, requests: list[list[bytes]], key: bytes
    ) -> list[Reply]:
        tries = await self._node(announced)
        try:
            return await tries.ask_all(db, requests, key)
        except TooSlow as exc:
            names = {args[0].upper() for args in requests}
            blamed = names <= self._slow.stalled or not names <= _PLAIN
            if blamed or await self._answers(announced):
                raise
            self._slow.stalled |= names
            cluster_of(self._cluster).doubt()
            raise lost(self._side, self._cluster.server(announced), exc) from exc
        except (SourceError, TargetError):
            cluster_of(self._cluster).doubt()
            raise

    async def _answers(self, announced: str) -> bool:
        """Return whether a node answers a new connection. One that stalls answers nobody, and a
        failover may be under way. A command that makes it stall is found out by the next one.
        """
        try:
            async with asyncio.timeout(COMPARE_SECONDS_MAX):
                async with await Leg.connect(
                    self._cluster.server(announced), self._side, name=self._name
                ):
                    return True
        except (SourceError, TargetError, TimeoutError):
            return False

    async def _node(self, announced: str) -> TrialConnection:
        tries = self._nodes.get(announced)
        if tries is None or tries.ended:
            state = cluster_of(self._cluster)
            try:
                leg = await Leg.connect(
                    self._cluster.server(announced), self._side, name=self._name
                )
            except (SourceError, TargetError):
                state.doubt()
                raise
            state.end_by(announced, leg.end)
            enters = None if self._enters is None else self._enters.server(announced)
            if tries is not None:
                await tries.close()
            tries = self._nodes[announced] = TrialConnection(leg, enters=enters)
        return tries

    async def _noted(self, said: str, node: str, since: float, *, believed: bool) -> str:
        """Take over what an error says of the topology; return the node to ask, after ASK."""
        state = cluster_of(self._cluster)
        to = redirected_to(said, self._cluster.server(node).host)
        known = to is not None and to[1] in state.known.masters
        if to is not None and said.startswith("ASK ") and (believed or known):
            return to[1]
        if to is not None and believed and known and state.known.move(*to):
            return ""
        state.doubt(since)
        try:
            await look(self._cluster)
        except NoMaster as exc:
            raise lost(self._side, self._cluster, exc) from exc
        await asyncio.sleep(CLUSTER_AGAIN_S)
        return ""

    async def may(self, ours: Leg, requests: Sequence[Sequence[str | int]]) -> list[str]:
        """As `Trials.may`: on any of the nodes, since each has users of its own."""
        found: dict[str, None] = {}
        for leg in await ours.nodes():
            if isinstance(ours, RoutedLeg):
                tries = await self._node(ours.name_of(leg))
                found |= dict.fromkeys(await tries.may(leg, requests))
        return list(found)

    async def ends_within(self, seconds: float) -> bool:
        """As `Trials.ends_within`."""
        ended = await asyncio.gather(*[each.ends_within(seconds) for each in self._nodes.values()])
        return all(ended)

    async def close(self) -> None:
        """End the connections."""
        nodes, self._nodes = list(self._nodes.values()), {}
        for each in nodes:
            await each.close()


def _nothing_ran(requests: Sequence[Sequence[bytes]], replies: Sequence[Reply]) -> bool:
    """Return whether an error means that nothing of these requests ran: they are one request, or
    one transaction whose EXEC failed.
    """
    one = len(requests) == 1 or (
        requests[0] == [b"MULTI"] and [*requests].index([b"EXEC"]) == len(requests) - 1
    )
    return one and isinstance(replies[-1], ReplyError)
