"""The servers of services behind Sentinel, looked at when a switch begins and right before the
route changes.

A switch prepares for certain servers: it fences them, it has drained them. If another server is
the master by then, or one appeared that is not fenced, the switch is given up. What no majority of
the Sentinels tells is not known, and stops a switch too.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from exodus.errors import CutoverAborted, DecisionRefused
from exodus.net.leg import Leg, ReplyError
from exodus.net.masters import Believed, Lookout, master_of
from exodus.plan.address import Service
from exodus.plan.bounds import REPLICAS_HAVE_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side


@dataclass(frozen=True)
class Servers:
    """The master of a service in one life."""

    master: str  # host:port, as announced
    config_epoch: int
    run_id: str

    @classmethod
    def of(cls, believed: Believed) -> Servers:
        """Return what must stay as it is during a switch."""
        return cls(believed.announced, believed.config_epoch, believed.role.run_id)


Standing = dict[Side, Servers]  # of the sides that are services


async def _look(plan: Plan) -> dict[Side, Believed | str]:
    """Ask the Sentinels of both sides; return what is known, or why it is not."""

    async def one(service: Service) -> Believed | str:
        async with Lookout(service) as lookout:
            await lookout.look()
        master = master_of(service)
        return master.why or master.believed or "nothing is known"

    services = {side: place for side in Side if isinstance(place := plan.address(side), Service)}
    found = await asyncio.gather(*map(one, services.values()))
    return dict(zip(services, found, strict=True))


async def look_at_services(plan: Plan) -> Standing:
    """Return the masters that a switch begins with.

    Raises:
        DecisionRefused: one is not known.
    """
    standing: Standing = {}
    for side, found in (await _look(plan)).items():
        if isinstance(found, str):
            raise DecisionRefused(
                f"which server is the master of the {side} is not known for certain",
                why=found,
                next_step="start the Sentinels, or wait for the end of a failover; then retry",
            )
        standing[side] = Servers.of(found)
    return standing


async def check_unchanged(plan: Plan, before: Standing, old: Side, fenced: set[str] | None) -> None:
    """Check that the masters are the same, and that every server of the old side is fenced.

    Raises:
        CutoverAborted: they are not, or it is not known.
    """
    for side, found in (await _look(plan)).items():
        why = found if isinstance(found, str) else ""
        if not isinstance(found, str):
            now = Servers.of(found)
            if now != before.get(side):
                why = f"there was a failover to {now.master} while the switch was under way"
            elif side is old and fenced is not None:
                place = plan.address(side)
                assert isinstance(place, Service)
                names = {place.server(name).place for name in found.replicas}
                if not names <= fenced:
                    why = f"{', '.join(sorted(names - fenced))} appeared and is not fenced"
        if why:
            raise CutoverAborted(
                f"the servers of the {side} are not what the switch prepared for",
                why=why,
                next_step="writes go on at the old side; wait until `exodus status` shows no open "
                "gap, then retry",
            )


async def check_replicas_have(plan: Plan, side: Side, leg: Leg, left_s: float) -> int | None:
    """Wait until a replica of the new side has all that was copied there, so that a failover right
    after the switch does not lose it; return how many have. None: the side has no replicas.

    `leg` has written last of all to the side (`close_epoch`).

    Raises:
        CutoverAborted: no replica has it in time.
    """
    place = plan.address(side)
    if not isinstance(place, Service):
        return None
    believed = master_of(place).believed
    if believed is None or not believed.replicas:
        return None
    within_ms = max(1, int(min(REPLICAS_HAVE_S, left_s) * 1000))
    (have,) = await leg.pipeline([("WAIT", 1, within_ms)])
    if isinstance(have, ReplyError) or not have:
        raise CutoverAborted(
            f"no replica of the {side} has all that was copied there",
            why=str(have) if isinstance(have, ReplyError) else f"none in {within_ms} ms",
            next_step=f"look at the replication of the {side}; writes go on at the old side",
        )
    return int(have)
