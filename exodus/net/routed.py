"""All masters of a cluster behind the interface of one connection: each request goes to the node
that has its key's slot.

Redirects are handled here. MOVED corrects what this process knows, ASK sends the request to the
node that imports the slot, and after TRYAGAIN, CLUSTERDOWN or LOADING the request is sent again.
None of these executed anything. After `CLUSTER_REDIRECT_S` the side counts as lost, and the caller
repeats the work.

    one key          to the node of its slot
    several keys     EXISTS, UNLINK and DEL are sent key by key
    MULTI … EXEC     as a whole, to the node of its first key
    SCAN             to the node that `pin` names: a cursor belongs to one node
    no key           to any master

What holds state on its connection (WATCH) needs the connection itself: `of` returns it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from exodus.commands.key_slots import slot_of
from exodus.commands.slots import LATER, NO_SHARD, Shard, is_redirect, redirected_to, shard_named
from exodus.errors import Bug, ExodusError, SourceError, TargetError
from exodus.net.clusters import NoMaster, cluster_of, look, shard_of
from exodus.net.leg import Leg, Reply, ReplyError, close_all, error_of, lost
from exodus.plan.address import Cluster
from exodus.plan.bounds import CLUSTER_AGAIN_S, CLUSTER_REDIRECT_S
from exodus.plan.vocabulary import Side
from exodus.resp.encode import Arg, encode_many

T = TypeVar("T")
_SUMMED = ("EXISTS", "UNLINK", "DEL")
_SECOND = ("OBJECT", "MEMORY", "XINFO", "XGROUP")  # whose key is behind the subcommand
_SCRIPTS = ("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO")
_NO_KEY = (
    *("PING", "TIME", "INFO", "ROLE", "CONFIG", "ACL", "CLIENT", "COMMAND", "CLUSTER", "SCRIPT"),
    *("FUNCTION", "SCAN", "SELECT", "MULTI", "EXEC", "HELLO", "MODULE", "REPLCONF", "WAIT", "AUTH"),
    *("DBSIZE", "LATENCY", "SLOWLOG", "UNWATCH"),
)


def key_of(command: Sequence[Arg]) -> bytes | None:
    """Return the key by which a request of Exodus's own is routed; None where it has none."""
    verb = str(command[0])
    if verb in _NO_KEY or len(command) < 2:
        return None
    at = 1
    if verb in _SECOND:
        at = 2
    elif verb in _SCRIPTS:
        if int(command[2]) == 0:
            return None
        at = 3
    key = command[at]
    return key if isinstance(key, bytes) else str(key).encode()


async def together(works: Iterable[Awaitable[T]]) -> list[T]:
    """Return the results of works that run at once. Where one fails, the others are ended first."""
    each_work = list(works)
    if len(each_work) == 1:
        return [await each_work[0]]  # no task is made for it
    found = await asyncio.gather(*each_work, return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return [each for each in found if not isinstance(each, BaseException)]


@dataclass
class _Unit:
    """Requests that go to one node together: one, or a transaction."""

    at: int  # place of the first one in what the caller sent
    commands: list[Sequence[Arg]]
    key: bytes | None
    asks: str = ""  # the node that imports the slot, after ASK
    said: str = ""  # why it was sent again


class RoutedLeg(Leg):
    """One task's connections to the masters of a cluster, made when they are needed."""

    def __init__(self, cluster: Cluster, side: Side, name: str) -> None:
        self.place = cluster
        self.cluster = cluster
        self.address = cluster.seeds[0]
        self.side = side
        self.db = 0
        self.name = name
        self._legs: dict[str, Leg] = {}  # by the master's announced address
        self._modes: list[Sequence[Arg]] = []  # for each connection, such as CLIENT NO-TOUCH
        self._pinned: str | None = None
        self._scanned: Shard | None = None
        self._beating: dict[str, Leg] | None = None  # that `pulse` returned

    @classmethod
    async def open(
        cls, cluster: Cluster, side: Side, *, db: int = 0, name: str, slot: int | None = None
    ) -> Self:
        """Know the cluster, connect to the node of a slot or to any, and choose a database.

        Raises:
            SourceError, TargetError: no node says who has which slots.
            OperatorError: the login is refused.
        """
        leg = cls(cluster, side, name)
        await leg.look()
        try:
            if slot is None:
                await leg.any_leg()
            else:
                await leg.node(leg._of_slot(slot))
            if db:
                await leg.select(db)
        except BaseException:
            await leg.close()
            raise
        return leg

    async def look(self) -> None:
        """Ask the nodes who has which slots, unless that was done of late.

        Raises:
            SourceError, TargetError: none of them says it.
        """
        try:
            await look(self.cluster)
        except NoMaster as exc:
            raise lost(self.side, self.cluster, exc) from exc

    # ------------------------------------------------------------------ nodes

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Return the masters with their slots, as they are known."""
        return cluster_of(self.cluster).known.shards

    async def node(self, announced: str) -> Leg:
        """Return the connection to one node, in the database of now.

        Raises:
            SourceError, TargetError: the node does not answer.
        """
        leg = self._legs.get(announced)
        if leg is None or leg.ended:
            state = cluster_of(self.cluster)
            try:
                leg = await Leg.connect(self.cluster.server(announced), self.side, name=self.name)
            except (SourceError, TargetError):
                state.doubt()
                raise
            state.end_by(announced, leg.end)
            for command in self._modes:
                await leg.call(*command)
            self._legs[announced] = leg
        await leg.select(self.db)
        return leg

    def master_of(self, key: bytes) -> str:
        """Return the announced address of the node that has a key.

        Raises:
            SourceError, TargetError: no node has its slot.
        """
        return self._of_slot(slot_of(key))

    def _of_slot(self, slot: int) -> str:
        try:
            return shard_of(self.cluster, slot).master
        except NoMaster as exc:
            cluster_of(self.cluster).doubt()
            raise lost(self.side, self.cluster, exc) from exc

    def by_node(self, keys: Sequence[bytes]) -> dict[str, list[int]]:
        """Return the announced addresses of the nodes that have keys, each with the places of its
        keys.

        Raises:
            SourceError, TargetError: no node has the slot of a key.
        """
        view = cluster_of(self.cluster).known
        found = view.by_owner(keys)
        if NO_SHARD in found:
            self.master_of(keys[found[NO_SHARD][0]])  # says which slot it is
        return {view.shards[number].master: places for number, places in found.items()}

    def slots_by_node(self, keys: Sequence[bytes]) -> dict[str, list[list[int]]]:
        """Return the same, with the places of each slot together.

        Raises:
            SourceError, TargetError: no node has the slot of a key.
        """
        view = cluster_of(self.cluster).known
        found = view.groups_by_owner(keys)
        if NO_SHARD in found:
            self.master_of(keys[found[NO_SHARD][0][0]])  # says which slot it is
        return {view.shards[number].master: groups for number, groups in found.items()}

    async def nodes(self) -> list[Leg]:
        """Return a connection to each master: users, settings and scripts are not shared.

        Raises:
            SourceError, TargetError: one does not answer.
        """
        await self.look()
        return [await self.node(shard.master) for shard in self.shards]

    async def of(self, key: bytes) -> Leg:
        """Return the connection to the node of a key, for what holds state on it."""
        return await self.node(self.master_of(key))

    async def any_leg(self) -> Leg:
        """Return a connection to a master, for what all of them answer alike."""
        for announced, leg in self._legs.items():
            if not leg.ended:
                return await self.node(announced)
        failed: ExodusError | None = None
        for shard in self.shards:
            try:
                return await self.node(shard.master)
            except (SourceError, TargetError) as exc:
                failed = exc
        raise failed or lost(self.side, self.cluster, NoMaster("no node has slots"))

    def pin(self, node: str) -> None:
        """Let SCAN go to one shard, by `Shard.name`: to the node that is its master now."""
        self._pinned, self._scanned = node, None

    async def pinned(self) -> Leg:
        """Return the connection to that node.

        Raises:
            SourceError, TargetError: it does not answer, or is a master no more: a cursor that it
                gave means nothing on another node (race rule 5).
        """
        if self._pinned is None:
            raise Bug(
                "a cursor was used without its node",
                why="SCAN was sent to a cluster as a whole",
                next_step="report this; nothing was changed",
            )
        if self._scanned is None:
            self._scanned = shard_named(self.shards, self._pinned)
        now = {(shard.node_id, shard.master) for shard in self.shards}
        if self._scanned is None or (self._scanned.node_id, self._scanned.master) not in now:
            raise lost(self.side, self.cluster, NoMaster(f"{self._pinned}: no master any more"))
        return await self.node(self._scanned.master)

    def name_of(self, leg: Leg) -> str:
        """Return the announced address of the node that a connection leads to."""
        return next(name for name, each in self._legs.items() if each is leg)

    def doubt(self, since: float) -> None:
        """Ask the nodes again, unless they were asked after `since` (monotonic)."""
        cluster_of(self.cluster).doubt(since)

    def drop(self, leg: Leg) -> None:
        """Forget a connection that failed, and doubt what is known."""
        leg.end()
        self._legs = {name: each for name, each in self._legs.items() if each is not leg}
        cluster_of(self.cluster).doubt()

    async def noted(self, said: str, asked: Leg, since: float) -> str:
        """Take over what an error says of the topology; return the node to ask, after ASK.

        Args:
            said: the error.
            asked: the connection on which it came.
            since: when the request was sent (monotonic): what was learnt later is no doubt.
        """
        state, to = cluster_of(self.cluster), redirected_to(said, asked.address.host)
        if to is not None and said.startswith("ASK "):
            return to[1]
        if to is None or state.view is None or not state.view.move(*to):
            state.doubt(since)
            await self.look()
        return ""

    # ------------------------------------------------------------------ requests

    async def pipeline(self, commands: Iterable[Sequence[Arg]]) -> list[Reply]:
        """Send requests, each to its node; their replies in order, errors as values.

        Raises:
            SourceError, TargetError: a node was lost, or no node serves a slot now.
        """
        many = list(commands)
        found: list[Reply] = [None] * len(many)
        left, deadline = _units(many), time.monotonic() + CLUSTER_REDIRECT_S
        while left:
            by_node: dict[str, list[_Unit]] = {}
            for unit in left:
                by_node.setdefault(await self._target(unit), []).append(unit)
            rounds = await together(
                self._send(node, units, found) for node, units in by_node.items()
            )
            left = [unit for again in rounds for unit in again]
            if not left:
                break
            if time.monotonic() > deadline:
                raise self.not_served(left[0].said)
            if any(unit.said.startswith(LATER) for unit in left):
                await asyncio.sleep(CLUSTER_AGAIN_S)
        return found

    def not_served(self, said: str) -> ExodusError:
        """Return the error for a slot that no node serves within the bound."""
        return error_of(self.side)(
            f"a slot of the {self.side} is not served now",
            why=said[:200],
            next_step=f"wait for the failover or the move of slots to end; Exodus repeats the "
            f"work. CLUSTER INFO on a node of the {self.side} tells its state",
        )

    async def _target(self, unit: _Unit) -> str:
        if unit.asks:
            return unit.asks
        if unit.key is not None:
            return self.master_of(unit.key)
        scans = str(unit.commands[0][0]) == "SCAN"
        return self.name_of(await (self.pinned() if scans else self.any_leg()))

    async def _send(self, node: str, units: list[_Unit], found: list[Reply]) -> list[_Unit]:
        """Send units to one node; return those that are to be sent again."""
        leg, since = await self.node(node), time.monotonic()
        sent: list[Sequence[Arg]] = []
        for unit in units:
            sent += [("ASKING",), *unit.commands] if unit.asks else unit.commands
        try:
            leg.write(encode_many(sent))
            await leg.drain()
            replies = iter(await leg.replies(len(sent)))
        except (SourceError, TargetError):
            self.drop(leg)
            raise
        again: list[_Unit] = []
        for unit in units:
            if unit.asks:
                next(replies)
            told = [next(replies) for _ in unit.commands]
            found[unit.at : unit.at + len(told)] = told
            errors = (str(reply) for reply in told if isinstance(reply, ReplyError))
            said = next(filter(is_redirect, errors), "")
            if said:
                unit.said, unit.asks = said, await self.noted(said, leg, since)
                again.append(unit)
        return again

    async def call(self, *args: Arg) -> Reply:
        """Send one request.

        Raises:
            hiredis.ReplyError: the server answered with an error.
            SourceError, TargetError: as `pipeline` does.
        """
        verb = str(args[0])
        if verb in _SUMMED and len(args) > 2:
            replies = await self.pipeline([(args[0], key) for key in args[1:]])
            for reply in replies:
                if isinstance(reply, ReplyError):
                    raise reply
            return sum(replies)
        if verb == "CLIENT" and str(args[1]) != "LIST":
            self._modes.append(args)
            for leg in self._legs.values():
                await leg.call(*args)
            return b"OK"
        (reply,) = await self.pipeline([args])
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    async def transaction(self, commands: Sequence[Sequence[Arg]]) -> list[Reply] | None:
        """Run commands of one slot in one transaction; see `Leg.transaction`."""
        replies = await self.pipeline([("MULTI",), *commands, ("EXEC",)])
        outcome = replies[-1]
        if isinstance(outcome, ReplyError):
            raise next(reply for reply in replies if isinstance(reply, ReplyError))
        return None if outcome is None else list(outcome)

    async def select(self, db: int) -> None:
        """Change the database of all connections, if it is another.

        Raises:
            NoDatabase: the cluster has no such database.
            hiredis.ReplyError: it does not let us into it.
        """
        if db == self.db:
            return
        await (await self.any_leg()).select(db)
        self.db = db

    async def pulse(self) -> dict[str, Leg]:
        """Return the connections to all masters, by address: the same ones each time.

        Raises:
            SourceError, TargetError: one has ended since, or another node is a master.
        """
        await self.look()
        before, now = self._beating, {shard.master for shard in self.shards}
        if before is None:
            self._beating = before = {name: await self.node(name) for name in now}
        ended = [name for name, leg in before.items() if leg.ended]
        if ended or before.keys() != now:
            changed = ", ".join(sorted(ended or before.keys() ^ now))
            raise lost(self.side, self.cluster, ConnectionError(f"{changed} is another node now"))
        return before

    async def answer_all(self) -> None:
        """See that every master answers.

        Raises:
            SourceError, TargetError: one does not.
        """
        cluster_of(self.cluster).doubt()
        await self.look()
        for shard in self.shards:
            leg = await self.node(shard.master)
            try:
                await leg.call("PING")
            except (SourceError, TargetError):
                self.drop(leg)
                raise

    @property
    def ended(self) -> bool:
        """Return whether no connection is open."""
        return all(leg.ended for leg in self._legs.values())

    def end(self) -> None:
        """End the connections, without waiting for it."""
        for leg in self._legs.values():
            leg.end()

    async def close(self) -> None:
        """End the connections."""
        legs, self._legs = list(self._legs.values()), {}
        await close_all(legs)


def _units(commands: Sequence[Sequence[Arg]]) -> list[_Unit]:
    """Return what goes to one node together."""
    found: list[_Unit] = []
    inside = False
    for at, command in enumerate(commands):
        verb = str(command[0])
        if verb == "MULTI" or not inside:
            found.append(_Unit(at, [], None))
        unit = found[-1]
        unit.commands.append(command)
        if unit.key is None:
            unit.key = key_of(command)
        inside = verb == "MULTI" or (inside and verb != "EXEC")
    return found
