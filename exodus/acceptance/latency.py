"""How long the target takes to answer each gateway, against the source.

Each gateway measures it itself, at a word on the route's channel: a PING there and back over a
connection of its own, to both sides in turn. Of a cluster it measures each master, and the slowest
counts: requests for its slots take so long.
"""

from __future__ import annotations

import asyncio
import time

from exodus.acceptance.rows import Checked, told
from exodus.control import registry
from exodus.control.heartbeats import GatewayHeartbeat, LatencyFacts
from exodus.control.route import ask_for_latency
from exodus.control.store import ControlStore
from exodus.plan.bounds import ACCEPTANCE_LATENCY_S, ACCEPTANCE_LOOK_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side


async def check_latency(plan: Plan, store: ControlStore) -> list[Checked]:
    """Ask every gateway, and judge each."""
    if not plan.has_gateways:
        return [told("latency from the gateways", "cutover: own; applications pass no gateway")]
    asked_ms = await ask_for_latency(store)
    deadline = time.monotonic() + ACCEPTANCE_LATENCY_S
    while True:
        beats = await registry.heartbeats(store, "gateway")
        answered = [beat for beat in beats if beat.facts.latency.asked_ms >= asked_ms]
        if len(answered) == len(beats) or time.monotonic() > deadline:
            break
        await asyncio.sleep(ACCEPTANCE_LOOK_S)
    rows = [_judged(plan, beat, asked_ms) for beat in beats]
    return rows or [
        Checked(
            "latency from the gateways",
            False,
            "no gateway is registered",
            "nothing could be measured",
            "start a gateway, then exodus start test",
        )
    ]


def _judged(plan: Plan, beat: GatewayHeartbeat, asked_ms: int) -> Checked:
    what = f"latency from gateway {beat.process}"
    found = beat.facts.latency
    added_max = plan.test_checks.latency_ms_added_max
    next_step = "place the target nearer to the gateways, or raise test_checks.latency_ms_added_max"
    if found.asked_ms < asked_ms:
        return Checked(
            what,
            False,
            f"it did not tell within {ACCEPTANCE_LATENCY_S:.0f} s",
            "it may be of an older version, or a side does not answer it",
            "look at the gateway's log; restart it with this version",
        )
    if found.failed:
        return Checked(what, False, found.failed, "its sessions could not move there", next_step)
    source, target = found.ping_ms_p50[Side.SOURCE], found.ping_ms_p50[Side.TARGET]
    return Checked(
        what,
        target <= source + added_max,
        f"PING p50 {source:.2f} ms to the source{_of(found, Side.SOURCE)} and {target:.2f} ms to "
        f"the target{_of(found, Side.TARGET)}, p99 "
        f"{found.ping_ms_p99[Side.SOURCE]:.2f} and {found.ping_ms_p99[Side.TARGET]:.2f} ms",
        f"each request would take {added_max:g} ms longer or more (test_checks)",
        next_step,
    )


def _of(found: LatencyFacts, side: Side) -> str:
    """Return which master of a cluster the figures are of, in words."""
    count = found.masters.get(side, 1)
    return f" ({found.slowest[side]}, the slowest of {count} masters)" if count > 1 else ""
