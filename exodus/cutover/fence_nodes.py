"""The nodes of a fenced cluster: masters, and replicas that may be masters next.

ACL rules and settings are not replicated. So each node gets a fence of its own, under the guard of
its own slots. The guard is field `fence` of the guard keys that are spread over the slots
(`exodus/copy/cluster_grants.py`): any of them that a node has guards that node. A replica reads its
master's, in a connection in READONLY mode.

A node is named by the address that the cluster announces.
"""

from __future__ import annotations

import asyncio
import time

from exodus.commands.key_slots import slot_of
from exodus.commands.slots import Shard, is_redirect, tag_of
from exodus.control.schema import cluster_guard_key
from exodus.copy.cluster_grants import FENCE, GUARD_SLOTS
from exodus.cutover.fence_methods import Command
from exodus.cutover.fence_servers import FencedServers
from exodus.errors import ExodusError
from exodus.net.clusters import NodeLookout, cluster_of
from exodus.net.leg import Leg, Reply, ReplyError, close_all, error_of, lost
from exodus.plan.address import Cluster, place_of
from exodus.plan.bounds import FENCE_NODE_S, FENCE_POLL_S, FENCE_REPLICA_S
from exodus.plan.own_keys import RESERVED_PREFIX
from exodus.plan.vocabulary import Side
from exodus.topology.node import Node


class ClusterNodes(FencedServers):
    """Connections to the nodes of one side, kept until `close`."""

    _what = "node"
    _page = "docs/operating/cluster.md"

    def __init__(self, side: Side, cluster: Cluster, migration: str) -> None:
        super().__init__(side)
        self._cluster = cluster
        self._migration = migration
        self._lookout = NodeLookout(cluster)
        self._turn = asyncio.Lock()  # of who looks
        self._legs: dict[str, Leg] = {}
        self._strangers: dict[str, Leg | None] = {}
        self._shards: dict[str, Shard] = {}  # by node, as of the last look
        self._moving: set[int] = set()  # slots whose guard a node refused

    async def close(self) -> None:
        """End the connections."""
        legs = [*self._legs.values(), *self._strangers.values()]
        self._legs, self._strangers = {}, {}
        self._lookout.hang_up()
        await close_all(legs)

    async def look(self, *, certain: bool = False) -> None:
        """Ask the nodes who is there.

        Args:
            certain: every slot must have a master, and all masters must agree.

        Raises:
            SourceError, TargetError: it is not known.
        """
        async with self._turn:
            await self._lookout.look()
        state = cluster_of(self._cluster)
        why = state.why
        if not why and state.disputed:
            why = f"{state.disputed} says something else: slots are moving, or a node failed over"
        if state.view is None or (certain and why):
            raise error_of(self._side)(
                f"the nodes of the {self._side} are not known",
                why=why,
                next_step="wait for the end of a failover or of a move of slots; then retry",
            )
        self._shards = {
            node: shard for shard in state.view.shards for node in (shard.master, *shard.replicas)
        }

    @property
    def masters(self) -> list[str]:
        """Return the masters of the last look, in the order of their slots."""
        return [node for node, shard in self._shards.items() if node == shard.master]

    @property
    def names(self) -> list[str]:
        """Return the nodes of the last look, masters first."""
        masters = self.masters
        return [*masters, *(node for node in self._shards if node not in masters)]

    def master_of(self, name: str) -> str:
        """Return the master that a node follows, or itself; as of the last look."""
        shard = self._shards.get(name)
        return name if shard is None else shard.master

    async def leg(self, name: str) -> Leg:
        """Return the connection to one node.

        Raises:
            SourceError, TargetError, OperatorError: it does not answer, or refuses.
        """
        leg = self._legs.get(name)
        if leg is None or leg.ended:
            node = Node(self._side, self._cluster.server(name))
            leg = self._legs[name] = await node.connect(name="exodus-fence")
            await self.sure(name, ("READONLY",))  # changes nothing on a master
        return leg

    async def call(self, name: str, *commands: Command) -> list[Reply]:
        """Return replies of commands sent together to one node, errors as values.

        Raises:
            SourceError, TargetError, OperatorError: it does not answer, or refuses the login.
        """
        leg: Leg | None = None
        try:
            async with asyncio.timeout(FENCE_NODE_S):
                leg = await self.leg(name)
                return await leg.pipeline(commands)
        except BaseException as exc:
            self._legs.pop(name, None)  # replies that nobody waits for any more may still come
            if leg is not None:
                leg.end()
            if isinstance(exc, TimeoutError):
                silent = TimeoutError(f"no answer in {FENCE_NODE_S:.0f} s")
                raise lost(self._side, self._cluster.server(name), silent) from exc
            raise

    async def meet_strangers(self) -> None:
        """Connect to each master as an application that needs no password, for the proof."""
        nobody = dict.fromkeys(("username", "password", "password_env", "password_file"))
        cluster = self._cluster.model_copy(update=nobody)
        for name in self.masters:
            try:
                self._strangers[name] = await Leg.connect(
                    cluster.server(name), self._side, name="exodus-probe"
                )
            except ExodusError:
                # `default` has a password that we do not know: its rules are read back.
                self._strangers[name] = None

    async def part_strangers(self) -> None:
        """End these connections: they would count as strays."""
        legs, self._strangers = list(self._strangers.values()), {}
        await close_all(legs)

    def stranger(self, name: str) -> Leg | None:
        """Return that connection; None where `default` has a password."""
        return self._strangers.get(name)

    def probe_key(self, name: str) -> bytes:
        """Return a key of a slot that this node, or its master, has."""
        return RESERVED_PREFIX + tag_of(b"probe", self._shards[name].ranges[0][0]) + b"}"

    async def change(self, name: str, guard: bytes, commands: list[Command]) -> bool:
        """Do `commands` on one node if the guard has this value there; return whether it had.

        A replica's guard comes by replication, so it is waited for.

        Raises:
            SourceError, TargetError: the node does not answer, refuses, or has no guard; or the
                guard did not come to a replica.
        """
        deadline = time.monotonic() + FENCE_REPLICA_S
        while True:
            key = self._guard_key(name)
            watched, found = await self.call(name, ("WATCH", key), ("HGET", key, FENCE))
            if found == guard and watched == b"OK":
                if await self.transaction(name, commands):
                    return True
            else:
                await self.sure(name, ("UNWATCH",))
                refused = [each for each in (watched, found) if isinstance(each, ReplyError)]
                if refused and not is_redirect(str(refused[0])):
                    raise self.refused(name, refused[0])
                if refused:
                    self._moving.add(slot_of(key))
                    await self.look()
                elif name in self.masters:
                    return False
            # Another field of the guard was set, its slot is on its way, or a replica lags.
            if time.monotonic() > deadline:
                raise error_of(self._side)(
                    f"{name} of the {self._side} could not be changed under the fence's guard",
                    why=f"the guard is {found!r} there: the replica is behind its master, or its "
                    "slots are on their way",
                    next_step="look at its INFO replication; it is done again",
                )
            await asyncio.sleep(FENCE_POLL_S)

    def check_guarded(self, name: str) -> None:
        """Check that a node has a guard key.

        Raises:
            SourceError, TargetError: it has none.
        """
        self._guard_key(name)

    async def run_unguarded(self, name: str, commands: list[Command]) -> None:
        """Do `commands` on a node that has no slot, and so no guard.

        Raises:
            SourceError, TargetError: the node does not answer, or refuses.
        """
        await self.transaction(name, commands)

    async def knows(self, name: str) -> bool:
        """Return whether a master of the cluster still has a node in its list.

        Raises:
            SourceError, TargetError: the master does not answer, or does not tell.
        """
        (listed,) = await self.sure(self.masters[0], ("CLUSTER", "NODES"))
        return name in _listed(listed.decode())

    # ------------------------------------------------------------------ parts

    def _guard_key(self, name: str) -> bytes:
        """Return a guard key that a node has. One that is on its way is avoided as long as there
        are others.

        Raises:
            SourceError, TargetError: it has none.
        """
        shard = self._shards.get(name)
        slots = shard.multiples(GUARD_SLOTS.step) if shard is not None else []
        if not slots:
            raise error_of(self._side)(
                f"{name} of the {self._side} has no slot with a guard key",
                why=f"every {GUARD_SLOTS.step}th slot has one",
                next_step=f"give it {GUARD_SLOTS.step} slots in a row, or none",
            )
        stays = next((slot for slot in slots if slot not in self._moving), None)
        if stays is None:
            self._moving.difference_update(slots)
            stays = slots[0]
        return cluster_guard_key(self._migration, stays)


def _listed(nodes: str) -> set[str]:
    """Return the addresses in a reply to CLUSTER NODES: `host:port@busport[,hostname]`."""
    found: set[str] = set()
    for line in nodes.splitlines():
        place, _, names = line.split(" ")[1].partition(",")
        host, _, port = place.partition("@")[0].rpartition(":")
        hosts = [host, *(word for word in names.split(",") if word and "=" not in word)]
        found |= {place_of(each.strip("[]"), int(port)) for each in hosts}
    return found
