"""What the steps of a switch share: the plan, the route, the time left, and the connections."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from redis.asyncio.client import PubSub

from exodus.control import registry
from exodus.control.heartbeats import GatewayHeartbeat, ProcessState
from exodus.control.process import STORE_ERRORS
from exodus.control.route import Route, change_route, read_route
from exodus.control.store import ControlStore
from exodus.cutover.fence import Fence
from exodus.cutover.fence_cluster import fence_for
from exodus.cutover.preconditions import NOTHING_MORE, Approved
from exodus.cutover.topology_check import Standing
from exodus.errors import CutoverAborted, DecisionRefused, SwitchUnknown
from exodus.net.leg import Leg, close_all
from exodus.plan.address import Address
from exodus.plan.bounds import SWITCH_OUTCOME_S, SWITCH_RETRY_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Feed, Side, UserRole
from exodus.plan.window import Window
from exodus.topology.endpoint import Endpoint
from exodus.verify.comparison import Comparison


@dataclass
class Switch:
    """What the steps share."""

    store: ControlStore
    plan: Plan
    to: Side
    route: Route
    window: Window | None = None  # in which it may begin; None: now
    approved: Approved = NOTHING_MORE
    began_ms: int = 0  # by the store's clock
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    timeline: list[dict[str, str | float]] = field(default_factory=list)
    facts: dict[str, str | int | float] = field(default_factory=dict)
    switched: bool = False
    released: bool = False  # writes go on at the new side
    told: bool = True  # `exodus status` shows its steps
    closing: bool = False
    held_until_told: bool = (
        False  # no server would refuse the writes of a gateway that ended its hold alone
    )
    feed: Feed = Feed.GATEWAY  # the change feed of the new side, by which writes flow back
    held_at: float | None = None
    store_run: str = ""  # the control store's, when the hold began
    before_hold: dict[int, bytes] = field(default_factory=dict)
    comparison: Comparison | None = None
    # The guards' values on the old authority before
    old_grants: dict[bytes, bytes | None] = field(default_factory=dict)
    blocks_exodus: bool = (
        False  # the fence on the new side refuses our own writes too, where nobody lets us in
    )
    heard: PubSub | None = (
        None  # gateways announce the heartbeats that a switch waits for; a lost word costs one poll
    )
    legs: dict[Side, Leg] = field(default_factory=dict)
    # Of who asks over `legs` beside another task
    legs_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    # Of services and clusters, when the switch began
    standing: Standing = field(default_factory=dict)
    listeners: dict[str, int] = field(default_factory=dict)  # versions of the maps then, by side
    scripts_loaded: set[bytes] = field(default_factory=set)  # on the new side, by digest
    while_held: ExitStack = field(default_factory=ExitStack)
    _fences: dict[Side, Fence] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    @property
    def old(self) -> Side:
        """Return the side that is the authority when the switch begins."""
        return self.to.other

    def endpoint(self, side: Side) -> Endpoint:
        """Return one side."""
        return Endpoint(side, self.plan.acting(UserRole.SWITCH).address(side))

    def fence(self, side: Side) -> Fence:
        """Return the fence of a side, with its connections kept."""
        return self._fences.setdefault(side, fence_for(self.store, side, self.plan))

    @property
    def fenced_servers(self) -> set[str] | None:
        """Return the servers of the old side that are fenced; None for a standalone server, whose
        replicas nothing promotes.
        """
        if isinstance(self.plan.address(self.old), Address):
            return None
        return self.fence(self.old).fenced_servers

    async def close(self) -> None:
        """Give connections back."""
        self.while_held.close()
        for fence in self._fences.values():
            await fence.close()
        await close_all(self.legs.values())
        if self.comparison is not None:
            await self.comparison.close()
        if self.heard is not None:
            await self.heard.aclose()

    @property
    def holding(self) -> bool:
        """Return whether writes wait for us."""
        return self.held_at is not None and not self.released

    @contextmanager
    def timed(self, step: str) -> Iterator[dict[str, str | float]]:
        """Add a row to the timeline: its beginning (UTC, from the store's clock and a monotonic
        one) and its ms.
        """
        began = time.monotonic()
        at = datetime.fromtimestamp(self.began_ms / 1000 + began - self._began, UTC)
        row: dict[str, str | float] = {"step": step, "at": at.isoformat(timespec="milliseconds")}
        try:
            yield row
        finally:
            row["ms"] = round((time.monotonic() - began) * 1000, 1)
            self.timeline.append(row)

    def held(self, beat: GatewayHeartbeat) -> bool:
        """Return whether a gateway holds all writes that this switch is about."""
        return beat.state is ProcessState.HELD

    def left_s(self) -> float:
        """Return the seconds that writes may still be held. The clock is monotonic and runs while
        this process is frozen.
        """
        if self.held_at is None:
            return self.plan.hold_seconds_max
        return max(0.0, self.held_at + self.plan.hold_seconds_max - time.monotonic())

    def check_time(self) -> None:
        """Raise where the hold's time is over.

        Raises:
            CutoverAborted: the gateways are about to end the hold, or have.
        """
        if not self.left_s():
            raise CutoverAborted(
                f"writes were held for {self.plan.hold_seconds_max} s",
                why="hold_seconds_max is over; the gateways end the hold by themselves",
                next_step="look at the step that took so long in the timeline, then retry",
            )

    async def change(self, **changes: object) -> None:
        """Make the next epoch; where the store fails in the middle, find out whether it was made.

        Raises:
            DecisionRefused: somebody else made another.
            SwitchUnknown: the store did not come back in time.
        """
        before, after = self.route, self.route.next(**changes)  # type: ignore[arg-type]
        deadline = time.monotonic() + SWITCH_OUTCOME_S
        while True:
            try:
                self.route = await change_route(self.store, before, after)
                return
            except STORE_ERRORS as exc:
                now = await self._read_route(deadline, exc)
            except DecisionRefused:
                now = await self._read_route(deadline, None)
                if now != after:
                    raise
            if now == after:
                self.route = after
                return
            if now != before:
                self.route = now
                raise DecisionRefused(
                    f"the route is at epoch {now.epoch}",
                    why=f"it was changed meanwhile: {now.why}",
                    next_step="look at `exodus status`",
                )

    async def _read_route(self, deadline: float, cause: BaseException | None) -> Route:
        while True:
            try:
                return await read_route(self.store)
            except STORE_ERRORS as exc:
                if time.monotonic() > deadline:
                    raise SwitchUnknown(
                        "whether the route was changed is not known",
                        why=f"the control store is away: {type(cause or exc).__name__}",
                        next_step="start the control store: the gateways then settle it; `exodus "
                        "status` tells which side is the authority",
                    ) from exc
                await asyncio.sleep(SWITCH_RETRY_S)

    async def hear(self, within_s: float) -> None:
        """Wait for the next word of a gateway or syncer."""
        if self.heard is None:
            await asyncio.sleep(within_s)
        else:
            await self.heard.get_message(ignore_subscribe_messages=True, timeout=within_s)

    async def gateways(
        self, holds: Callable[[GatewayHeartbeat], bool], otherwise: str, within_s: float
    ) -> None:
        """Wait for every gateway."""
        await registry.wait_for_gateways(
            self.store,
            holds,
            within_s=within_s,
            otherwise=otherwise,
            woken_by=self.heard,
        )
