"""The route: the current orders for every gateway, syncer, and comparer, in one versioned document.

A change is a compare-and-set on the epoch. It is announced on a channel, and processes also poll,
so a lost announcement costs half a second. A process reports the epoch it has acted on in its
heartbeat (`registry.py`).
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict

from exodus.control.store import ControlStore
from exodus.errors import Bug, DecisionRefused
from exodus.lua import lua
from exodus.net.client import answered
from exodus.plan.sample import KeySample
from exodus.plan.vocabulary import Feed, Hold, JournalMode, Side


class Redirect(BaseModel):
    """Clients are sent away from the gateways, connection by connection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_s: float  # that each gateway process ends
    refuse_new: bool = False  # new connections are closed at once
    busy: bool = False  # sessions in a transaction, blocked or subscribed are ended too


class Route(BaseModel):
    """One epoch's orders. `writer_epoch` changes only when a syncer's right to write to the
    follower ends.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int = 0
    authority: Side = Side.SOURCE
    generation: int = 0  # changes of the authority so far: SCAN cursors say from which they are
    hold: Hold = Hold.NONE
    journal: JournalMode = JournalMode.OFF
    sync: bool = False  # syncers copy authority → follower
    feed: Feed = Feed.GATEWAY  # the change feed that is in force; never auto
    native: bool = (
        False  # the follower is the authority's replica: syncers wait for it, and copy nothing
    )
    shadow_rate: float = 0.0
    shadow_salt: int = 0
    shadow_include: tuple[str, ...] = ()  # patterns of names that are sampled; (): all
    shadow_exclude: tuple[str, ...] = ()  # patterns of names that are not
    shadow_scripts: bool = False  # scripts are sampled, too
    canary: float = 0.0  # share of key hashes whose reads the follower is asked, too
    writer_epoch: int = 0
    rehearsal_prefix: str | None = (
        None  # while a rehearsal goes on: what its keys begin with, see exodus/rehearsal/
    )
    rehearsal_name: str | None = (
        None  # sessions with this client name, drawn for it, are held and switched alone
    )
    rehearsal_authority: Side = Side.SOURCE
    rehearsal_hold: Hold = Hold.NONE
    redirect: Redirect | None = None
    # A gateway that cannot read the route goes on holding: no server would refuse its writes
    hold_until_told: bool = False
    # Id of the last switch that began. A fence and a closed epoch on a side carry it
    switch: str = ""
    why: str = ""

    @property
    def follower(self) -> Side:
        """Return the side that is not the authority."""
        return self.authority.other

    @property
    def sample(self) -> KeySample:
        """The keys that are sampled."""
        return KeySample(
            self.shadow_rate, self.shadow_salt, self.shadow_include, self.shadow_exclude
        )

    @property
    def text(self) -> str:
        """Return the epoch's orders in words, for a log."""
        held = ", writes are held" if self.hold is Hold.WRITES else ""
        sync = f", live sync by {self.feed}" if self.sync else ""
        more = f", {self.shadow_rate:.0%} shadowed" if self.shadow_rate else ""
        more += f", canary {self.canary:.0%}" if self.canary else ""
        return (
            f"epoch {self.epoch}, the {self.authority} is the authority, journal "
            f"{self.journal}{sync}{more}{held} ({self.why or 'as it began'})"
        )

    def next(self, *, why: str, **changes: object) -> Self:
        """Return the following epoch with these changes."""
        if "authority" in changes and changes["authority"] != self.authority:
            changes["generation"] = self.generation + 1
        return self.model_validate(
            {**self.model_dump(), **changes, "epoch": self.epoch + 1, "why": why}
        )


_CHANGE = lua("exodus.control", "change_route")


SOON = b"soon"  # the word of `say_soon`

_LATENCY = b"latency "
_ASK = lua("exodus.control", "ask_for_heartbeats")


async def ask_for_beats(store: ControlStore) -> int:
    """Ask everybody who follows the route for a heartbeat; it will be of this time (the store's, in
    ms) or a later one.
    """
    return int(await answered(store.client.eval(_ASK, 0, store.keys.route_changed)))


def asked_at_ms(word: bytes | None) -> int | None:
    """Return the time of `ask_for_beats`, if the message is one."""
    return int(word[4:]) if word is not None and word.startswith(b"say ") else None


async def ask_for_latency(store: ControlStore) -> int:
    """Ask every gateway how long both sides take to answer it; their heartbeats then tell it,
    with this time (the store's, in ms).
    """
    at_ms = await store.now_ms()
    await answered(store.client.publish(store.keys.route_changed, b"%s%d" % (_LATENCY, at_ms)))
    return at_ms


def latency_asked_ms(word: bytes | None) -> int | None:
    """Return the time of `ask_for_latency`, if the message is one."""
    if word is None or not word.startswith(_LATENCY):
        return None
    return int(word.removeprefix(_LATENCY))


async def say_soon(store: ControlStore) -> None:
    """Tell gateways that writes are about to be held, so that what they can do before that need not
    be done under it.
    """
    await answered(store.client.publish(store.keys.route_changed, SOON))


def announced(word: bytes | None) -> Route | None:
    """Return the announced route, if the message is one. An older route than the one in force may
    still arrive.
    """
    return Route.model_validate_json(word) if word is not None and word.startswith(b"{") else None


async def read_route(store: ControlStore) -> Route:
    """Return the route in force; a migration that never had one is at epoch 0 with the source as
    authority.
    """
    raw = await answered(store.client.get(store.keys.route))
    return Route() if raw is None else Route.model_validate_json(raw)


async def restore_route(store: ControlStore, found: Route, ours: Route) -> bool:
    """Put back a newer route than the store has; False where it was changed meanwhile."""
    now = await answered(
        store.client.eval(
            _CHANGE,
            1,
            store.keys.route,
            str(found.epoch),
            ours.model_dump_json(),
            store.keys.route_changed,
        )
    )
    return int(now) == -1


async def change_route(store: ControlStore, before: Route, after: Route) -> Route:
    """Replace `before` by `after`, or refuse.

    Raises:
        DecisionRefused: somebody else changed the route since `before` was read; nothing was
            changed.
    """
    if after.epoch != before.epoch + 1:
        raise Bug(
            f"route epoch {before.epoch} may not be followed by {after.epoch}",
            why="epochs go up by one",
            next_step="report this; the route was not changed",
        )
    found = await answered(
        store.client.eval(
            _CHANGE,
            1,
            store.keys.route,
            str(before.epoch),
            after.model_dump_json(),
            store.keys.route_changed,
        )
    )
    if int(found) != -1:
        raise DecisionRefused(
            f"the route is at epoch {int(found)}, not {before.epoch}",
            why="another flow or person changed it meanwhile",
            next_step="look at `exodus status`, then start the step again",
        )
    return after
