"""The registry of live processes, and the epoch that each has acted on.

Every long-lived process writes one heartbeat under its kind. Ages are by the control store's clock.
A heartbeat that stopped without `unregister` is a lost process. A lost gateway is an open gap until
it returns and replays its intent log, or until a verification closes the gap.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Literal, overload

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from exodus.control.heartbeats import (
    HEARTBEATS,
    ComparerHeartbeat,
    GatewayHeartbeat,
    Heartbeat,
    ProcessKind,
    SyncerHeartbeat,
)
from exodus.control.store import ControlStore
from exodus.errors import CutoverAborted
from exodus.lua import lua
from exodus.net.client import answered
from exodus.plan.bounds import HEARTBEAT_STALE_S

Gateways = Literal["gateway", ProcessKind.GATEWAY]
Syncers = Literal["syncer", ProcessKind.SYNCER]
Comparers = Literal["comparer", ProcessKind.COMPARER]


async def beat(store: ControlStore, heartbeat: Heartbeat, *, announce: bool = False) -> None:
    """Write one heartbeat. With `announce`, a process that waits for it wakes up."""
    await store.register(
        heartbeat.kind, heartbeat.process, heartbeat.model_dump(mode="json"), announce=announce
    )


_HEARTBEAT = lua("exodus.control", "heartbeat")
_CLAIM = lua("exodus.control", "claim")


class Claim(StrEnum):
    """Whose a registration was before this instance asked for it."""

    OURS = "ours"  # nobody's, or ours
    LEFT = "left"  # another instance's, which went away without a word
    TAKEN = "taken"  # another instance's, which is alive: it keeps it


async def claim(
    store: ControlStore, kind: str, process: str, instance: str
) -> tuple[Claim, Heartbeat | None]:
    """Ask for the registration of an id; with the heartbeat of the instance that has it, where one
    has.
    """
    keys = (store.keys.part(kind), store.keys.owner(kind))
    found = await answered(
        store.client.eval(
            _CLAIM, len(keys), *keys, process, instance, str(int(HEARTBEAT_STALE_S * 1000))
        )
    )
    if isinstance(found, bytes):
        return Claim.TAKEN, HEARTBEATS[ProcessKind(kind)].model_validate_json(found)
    return (Claim.LEFT if found else Claim.OURS), None


async def beat_as(
    store: ControlStore,
    heartbeat: Heartbeat,
    instance: str,
    proof: tuple[str, int],
    *,
    announce: bool = False,
) -> tuple[str, bytes]:
    """Write the heartbeat of one instance, if its registration is its own and the store has the
    batch of `proof`.

    Returns:
        `ok`; or `owner` with the instance that the registration belongs to; or `tail` with the
        number of the last batch in the store. With these two nothing was written.
    """
    keys = store.keys
    names = (keys.part(heartbeat.kind), keys.owner(heartbeat.kind), keys.acknowledged)
    channel = keys.part_changed if announce else ""
    told = (
        heartbeat.process,
        instance,
        proof[0],
        str(proof[1]),
        heartbeat.model_dump_json(),
        channel,
    )
    outcome, found = await answered(store.client.eval(_HEARTBEAT, len(names), *names, *told))
    return outcome.decode(), found


@overload
async def heartbeats(store: ControlStore, kind: Gateways) -> list[GatewayHeartbeat]: ...
@overload
async def heartbeats(store: ControlStore, kind: Syncers) -> list[SyncerHeartbeat]: ...
@overload
async def heartbeats(store: ControlStore, kind: Comparers) -> list[ComparerHeartbeat]: ...
@overload
async def heartbeats(store: ControlStore, kind: str) -> Sequence[Heartbeat]: ...
async def heartbeats(store: ControlStore, kind: str) -> Sequence[Heartbeat]:
    """Return the heartbeats of one kind, stale ones included."""
    model = HEARTBEATS[ProcessKind(kind)]
    return [model.model_validate(state) for state in (await store.registrations(kind)).values()]


async def wait_for(
    store: ControlStore,
    kind: str,
    holds: Callable[[Heartbeat], bool],
    *,
    within_s: float,
    otherwise: str,
    at_least: int = 1,
    poll_s: float = 0.02,
    woken_by: PubSub | None = None,
) -> list[Heartbeat]:
    """Wait until `holds` is true of every registered process of a kind.

    Raises:
        CutoverAborted: it was not within the time; names the processes and what they last said.
    """
    loop, model = asyncio.get_running_loop(), HEARTBEATS[ProcessKind(kind)]
    deadline = loop.time() + within_s
    while True:
        states, now_ms = await store.registrations_now(kind)
        found = [model.model_validate(state) for state in states.values()]
        late = [beat for beat in found if beat.stale(now_ms) or not holds(beat)]
        if len(found) >= at_least and not late:
            return found
        if loop.time() >= deadline:
            named = ", ".join(
                f"{b.process} (epoch {b.epoch}, {b.state}, {b.age_s(now_ms):.1f} s ago)"
                for b in late
            )
            raise CutoverAborted(
                otherwise,
                why=named or f"{len(found)} {kind} processes are registered, {at_least} are needed",
                next_step=f"look at `exodus status` and the log of the {kind}; start it again or "
                "remove it, then retry",
            )
        if woken_by is None:
            await asyncio.sleep(poll_s)
        else:
            await woken_by.get_message(ignore_subscribe_messages=True, timeout=poll_s)


async def wait_for_gateways(
    store: ControlStore,
    holds: Callable[[GatewayHeartbeat], bool],
    *,
    within_s: float,
    otherwise: str,
    woken_by: PubSub | None = None,
) -> None:
    """Wait until `holds` is true of every registered gateway.

    Raises:
        CutoverAborted: it was not within the time; names the gateways and what they last said.
    """
    await wait_for(
        store,
        ProcessKind.GATEWAY,
        lambda beat: isinstance(beat, GatewayHeartbeat) and holds(beat),
        within_s=within_s,
        otherwise=otherwise,
        woken_by=woken_by,
    )


async def follow(
    changed: Callable[[bytes | None], Awaitable[None]], store: ControlStore, *, poll_s: float
) -> None:
    """Call `changed` with each word on the route's channel, and with None every `poll_s` seconds in
    any case, until cancelled.

    `changed` handles its own failures of the store; the subscription here is rebuilt after each of
    them.
    """
    while True:
        subscriber = store.client.pubsub()
        try:
            await subscriber.subscribe(store.keys.route_changed)
            word = None
            while True:
                await changed(None if word is None else word["data"])
                word = await subscriber.get_message(ignore_subscribe_messages=True, timeout=poll_s)
        except (RedisError, OSError, TimeoutError):
            # Without the channel the poll goes on; `changed` counts the outage by its own means.
            await changed(None)
            await asyncio.sleep(poll_s)
        finally:
            with contextlib.suppress(RedisError, OSError):
                await subscriber.aclose()
