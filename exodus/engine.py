"""What moving data needs: the plan, the control store, and the present authority and follower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from redis.exceptions import RedisError

from exodus.control import letters
from exodus.control.changes import Key
from exodus.control.route import Route, read_route
from exodus.control.schema import guard_key, lane_guard_key
from exodus.control.store import ControlStore
from exodus.copy.guard import Guard
from exodus.copy.key import BatchReport, Copier, Failure, Proofs
from exodus.errors import ControlStoreError
from exodus.feeds.feed import ChangeFeed, feed_of
from exodus.native.replica import ReplicaSync
from exodus.net.leg import Leg
from exodus.plan.plan import Plan
from exodus.plan.scope import Scope
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node, NodeFacts


class KeySync(Protocol):
    """`sync(key)` for a lane: see `Copier` and `ReplicaSync`."""

    async def sync_keys(self, db: int, keys: Sequence[bytes]) -> BatchReport:
        """Make every key equal on the follower."""

    async def guard_by(self, guard: Guard) -> None:
        """Write under another guard from the next batch on."""

    async def close(self) -> None:
        """End the connections."""


@dataclass
class Engine:
    """One direction of copying in one epoch of the route."""

    plan: Plan
    store: ControlStore
    route: Route
    authority: Endpoint
    follower: Endpoint
    authority_facts: NodeFacts
    follower_facts: NodeFacts
    proofs: Proofs = field(default_factory=Proofs)
    scope: Scope = field(init=False)  # what is carried in this direction, and under which names
    # After a cutover: what the rules left on the source, where it is left alone
    left_behind: Scope = field(init=False)

    def __post_init__(self) -> None:
        forwards = self.route.authority is Side.SOURCE
        # Rules apply from source to target. After a cutover every write at the target flows back:
        # a rollback would lose a filtered one.
        self.scope, self.left_behind = (
            (self.plan.scope, Scope()) if forwards else (Scope(), self.plan.scope)
        )

    @property
    def spare_others(self) -> bool:
        """Return whether the follower's keys outside the rules belong to others. Exodus then leaves
        them alone.
        """
        return self.plan.allow_nonempty

    @property
    def feed(self) -> ChangeFeed:
        """Return the change feed in force."""
        return feed_of(self.store, self.route.feed, self.plan.partitions, self.authority)

    @property
    def run_ids(self) -> dict[Side, str]:
        """Return the lives of both sides: run ids of their servers, and failovers where there are
        any.
        """
        return {
            self.route.authority: self.authority_facts.life,
            self.route.follower: self.follower_facts.life,
        }

    def guard(self, tokens: Mapping[int, int] | None = None) -> Guard:
        """Return the guard of this epoch, and of leases given as partition → fencing token."""
        values = [(guard_key(self.plan.name), b"%d" % self.route.writer_epoch)]
        values += [
            (lane_guard_key(self.plan.name, partition), b"%d" % token)
            for partition, token in sorted((tokens or {}).items())
        ]
        return Guard(tuple(values))

    async def key_sync(self, guard: Guard, *, name: str) -> KeySync:
        """Return what makes changed keys equal: a copier, or a wait for the replica."""
        if not self.route.native:
            return await self.copier(guard, name=name)
        authority = await self.authority_leg(name=name)
        try:
            return ReplicaSync(authority, await self.follower.connect(name=name))
        except BaseException:
            await authority.close()
            raise

    async def copier(
        self, guard: Guard, *, name: str = "exodus", node: Node | None = None
    ) -> Copier:
        """Connections for one task. `node` is the one whose keys it scans."""
        authority = await self.authority_leg(name=name, node=node)
        try:
            follower = await self.follower.connect(name=name, slot=_slot_of(node))
        except BaseException:
            await authority.close()
            raise
        return Copier(
            authority,
            follower,
            self.authority_facts,
            self.follower_facts,
            guard,
            another_leg=lambda: self.authority_leg(name=name),
            proofs=self.proofs,
            scope=self.scope,
            spare_others=self.spare_others,
            keep_usage=self.plan.keep_usage,
        )

    async def authority_leg(self, *, name: str, node: Node | None = None) -> Leg:
        """Connect to the authority. Reads do not make a key look used, where the server allows
        that. SCAN goes to `node`.
        """
        scanned = None if node is None else node.name
        leg = await self.authority.connect(name=name, node=scanned, slot=_slot_of(node))
        try:
            if self.authority_facts.capabilities.get("no-touch"):
                await leg.call("CLIENT", "NO-TOUCH", "ON")
        except BaseException:
            await leg.close()
            raise
        return leg

    async def keep_failures(self, failures: Iterable[Failure]) -> None:
        """List keys that could not be carried as dead letters, with their reasons."""
        for failure in failures:
            await letters.keep(self.store, failure.db, failure.key, failure.reason)

    async def forget_failures(self, keys: Iterable[Key]) -> None:
        """Take keys that were carried after all off the list."""
        await letters.forget(self.store, keys)


def _slot_of(node: Node | None) -> int | None:
    return None if node is None else node.first_slot


async def open_engine(store: ControlStore, plan: Plan, route: Route | None = None) -> Engine:
    """Return the engine for the route in force (or the one given).

    Raises:
        SourceError, TargetError, OperatorError: a side does not answer.
        ControlStoreError: the store does not.
    """
    if route is None:
        try:
            route = await read_route(store)
        except (RedisError, OSError) as exc:
            raise ControlStoreError(
                "the route cannot be read", why=str(exc), next_step="start the control store"
            ) from exc
    authority = Endpoint(route.authority, plan.address(route.authority))
    follower = Endpoint(route.follower, plan.address(route.follower))
    return Engine(
        plan,
        store,
        route,
        authority,
        follower,
        await authority.facts(),
        await follower.facts(),
    )
