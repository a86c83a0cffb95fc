"""The steps of a switch from the change of the authority on. Failures are repaired forwards."""

from __future__ import annotations

import asyncio
import time

from exodus.control.route import read_route
from exodus.cutover.context import Switch
from exodus.cutover.listeners_check import check_same_listeners
from exodus.cutover.settle import settle
from exodus.cutover.topology_check import check_replicas_have, check_unchanged
from exodus.errors import CutoverAborted, DecisionRefused, ExodusError
from exodus.plan.bounds import HOLD_ACK_S, SWITCH_AFTER_RELEASE_S
from exodus.plan.vocabulary import Hold, JournalMode


async def check_services(switch: Switch) -> None:
    """Check that both sides have the servers that the switch prepared for, and that what was copied
    has reached a replica.

    Raises:
        CutoverAborted: there was a failover, or a server appeared; nothing was switched.
    """
    _, acknowledged, _ = await asyncio.gather(
        check_unchanged(switch.plan, switch.standing, switch.old, switch.fenced_servers),
        check_replicas_have(switch.plan, switch.to, switch.legs[switch.to], switch.left_s()),
        check_same_listeners(switch),
    )
    if acknowledged is not None:
        switch.facts["replicas_with_all_keys"] = acknowledged


async def change_authority(switch: Switch) -> None:
    """Make the new side the authority, and wait for the gateways to follow."""
    await check_services(switch)
    switch.check_time()
    await switch.change(
        authority=switch.to,
        sync=False,
        native=False,
        journal=JournalMode.ALL,
        feed=switch.feed,
        writer_epoch=switch.route.writer_epoch + 1,
        why=f"switch {switch.id}: the {switch.to} is the authority",
    )
    switch.switched = True
    epoch = switch.route.epoch
    try:
        await switch.gateways(
            lambda beat: beat.epoch >= epoch,
            "a gateway did not confirm the switch",
            max(min(HOLD_ACK_S, switch.left_s()), 0.5),
        )
    except CutoverAborted as exc:
        # The fence stands, so a gateway that is behind can lose nothing; it follows as soon as it
        # reads the route.
        switch.facts["late_gateways"] = exc.why


async def release_writes(switch: Switch) -> None:
    """Let writes go on at the new side."""
    try:
        await switch.change(
            hold=Hold.NONE, why=f"switch {switch.id}: writes go on at the {switch.to}"
        )
    except DecisionRefused:
        switch.route = await read_route(switch.store)  # the gateways have ended the hold
    switch.released = True
    switch.while_held.close()
    if switch.held_at is not None:
        switch.facts["hold_ms"] = round((time.monotonic() - switch.held_at) * 1000, 1)


async def kill_strays(switch: Switch) -> None:
    """End what is still connected to the old side as an application."""
    await asyncio.sleep(SWITCH_AFTER_RELEASE_S)
    switch.facts["strays_killed"] = await switch.fence(switch.old).kill_strays()


async def flow_back(switch: Switch) -> None:
    """Settle what is left, so that changes flow back to the old side.

    Raises:
        ExodusError: something is left; the gateways go on trying.
    """
    left = await settle(switch.store, switch.plan)
    switch.route = await read_route(switch.store)
    if left:
        raise ExodusError(
            f"changes do not flow back to the {switch.old} yet",
            why="; ".join(left),
            next_step="the gateways go on trying",
        )
