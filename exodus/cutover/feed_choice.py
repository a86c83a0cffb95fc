"""Choosing the change feed of each side, when Migrate begins, and proving it.

With `feed: auto` it is the first of ORDER that the side allows and that reports a key written by a
script without declaring it. The reason against each earlier one is kept and shown. If none is left,
the gateways' journal is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from exodus.control.store import ControlStore
from exodus.cutover.preflight import fence_of
from exodus.errors import DecisionRefused
from exodus.feeds.feed import check_feed
from exodus.net.leg import ReplyError
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import CopyStrategy, Cutover, Feed, FenceKind, Side
from exodus.topology.endpoint import Endpoint

ORDER = (Feed.REPLICATION, Feed.TRACKING, Feed.NOTIFICATIONS)
NAMES = {
    Feed.GATEWAY: "gateway journal",
    Feed.REPLICATION: "replication stream",
    Feed.TRACKING: "client tracking",
    Feed.NOTIFICATIONS: "keyspace notifications",
}
_REPORT = "feeds"


class ChosenFeed(BaseModel):
    """The change feed of one side, and why it is that."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    feed: Feed = Feed.GATEWAY
    why: str = ""
    # Feeds that are more complete → why each was not taken
    refused: dict[Feed, str] = Field(default_factory=dict)

    def text(self, side: Side) -> str:
        """Return the choice as forms and status show it."""
        if not self.why and not self.refused:
            return f"Change feed of the {side}: {NAMES[self.feed]}; Migrate chooses one"
        refused = "".join(f"; {NAMES[feed]}: {why}" for feed, why in self.refused.items())
        return f"Change feed of the {side}: {NAMES[self.feed]} ({self.why}{refused})"


async def choose_feed(plan: Plan, side: Side) -> ChosenFeed:
    """Find and prove the change feed of a side.

    Raises:
        SourceError, TargetError: the side does not answer.
    """
    if plan.feed is not Feed.AUTO:
        return ChosenFeed(feed=plan.feed, why="named in the migration file")
    if side is Side.SOURCE and plan.strategy is CopyStrategy.NATIVE:
        return ChosenFeed(why="native replication itself carries every write")
    refused: dict[Feed, str] = {}
    for feed in ORDER:
        why = await _no_fence(plan, side, feed)
        if not why:
            try:
                await check_feed(Endpoint(side, plan.address(side)), feed, plan.rehearsal_prefix)
            except DecisionRefused as exc:
                why = exc.why
            except ReplyError as exc:
                why = str(exc)
        if not why:
            return ChosenFeed(feed=feed, why="proved by a script's write", refused=refused)
        refused[feed] = why
    return ChosenFeed(
        why="it does not see keys that scripts do not declare, evicted keys, and writers that "
        "bypass the gateways",
        refused=refused,
    )


async def _no_fence(plan: Plan, side: Side, feed: Feed) -> str:
    """Return why the side could not be fenced under this feed although it can be without; empty
    where it can, or never can.
    """
    if plan.cutover is not Cutover.GATEWAY or plan.fence.of(side) is FenceKind.PROVIDER:
        return ""
    without, _ = await fence_of(plan, side, Feed.GATEWAY)
    if without is None:
        return ""
    method, _ = await fence_of(plan, side, feed)
    return (
        f"it does not go with the one fence that the {side} allows, {without.kind}"
        if method is None
        else ""
    )


async def choose_feeds(
    store: ControlStore, plan: Plan, sides: Iterable[Side] = tuple(Side)
) -> dict[Side, ChosenFeed]:
    """Find and prove the change feeds of these sides, and keep them."""
    wanted = list(sides)
    found = dict(
        zip(
            wanted, await asyncio.gather(*[choose_feed(plan, side) for side in wanted]), strict=True
        )
    )
    kept = await store.report(_REPORT) or {}
    await store.save_report(
        _REPORT,
        {**kept, **{str(side): chosen.model_dump(mode="json") for side, chosen in found.items()}},
    )
    return found


async def chosen_feed(store: ControlStore, plan: Plan, side: Side) -> ChosenFeed:
    """Return the change feed that was chosen for a side; the gateways' journal where none was."""
    kept = (await store.report(_REPORT) or {}).get(str(side))
    if kept is not None:
        return ChosenFeed.model_validate(kept)
    return ChosenFeed(feed=Feed.GATEWAY if plan.feed is Feed.AUTO else plan.feed)
