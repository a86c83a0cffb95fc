"""Rounds of the switch, there and back, for sessions of a reserved key prefix only.

A session with the rehearsal's client name (CLIENT SETNAME) follows orders of its own in every
gateway. So the rehearsal holds, moves, and releases sessions as a cutover does, while applications
notice nothing. The name is drawn anew for each rehearsal and only the route has it, so no
application has it by chance.

In one round a gateway dies at a drawn step (`own_gateway.py`). The switch of that round may be
given up, as a cutover would be, and its stall is told apart.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from dataclasses import dataclass, field
from random import Random
from typing import Any

from exodus.control import registry
from exodus.control.route import Route, change_route, read_route
from exodus.control.schema import fence_guard_key, guard_key
from exodus.control.store import ControlStore
from exodus.copy.cluster_grants import GUARD_SLOTS, guard_keys
from exodus.cutover.rehearsal_report import REPORT, fingerprint
from exodus.cutover.switch import perform
from exodus.errors import CutoverAborted, DecisionRefused, ExodusError
from exodus.net.leg import ReplyError
from exodus.plan.address import Address
from exodus.plan.bounds import (
    CONNECT_TIMEOUT_S,
    REHEARSAL_AGAIN_S,
    REHEARSAL_ERRORS_KEPT,
    REHEARSAL_SETTLE_S,
    REHEARSAL_WITHIN_S,
)
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Hold, Side
from exodus.rehearsal.clients import ProbeClients, again, names
from exodus.rehearsal.nodes import RehearsalNodes, find_nodes
from exodus.rehearsal.own_gateway import OwnGateway, started
from exodus.rehearsal.steps import RehearsedSwitch, steps
from exodus.topology.applications import connect_as_application, takes_nobody
from exodus.topology.endpoint import Endpoint

_BAD = ("lost_writes", "resurrected_writes", "error_count", "silent_nodes")
_KILLED_KEYS = "killed:"


async def rehearse(store: ControlStore, plan: Plan, *, seed: int | None = None) -> dict[str, Any]:
    """Switch the reserved prefix to the target and back under writes, in rounds; the findings as
    JSON, also kept as report `rehearsal`, failed or not.

    Args:
        store: the control store.
        plan: the plan, with passwords.
        seed: of an earlier rehearsal, to draw the same step for the death of the gateway.

    Raises:
        OperatorError: no gateway answers at the plan's `gateway`.
        CutoverAborted: a step was not done in time; the prefix is back at the source.
        DecisionRefused: the target is a replica now.
    """
    at_ms = await store.now_ms()
    if (await read_route(store)).native:
        raise DecisionRefused(
            "the switch cannot be rehearsed now",
            why="the target is the source's replica and takes no writes, not even a rehearsal's",
            next_step="rehearse in the phase Test, before Migrate; exodus start rollback ends the "
            "replication",
        )
    try:
        seed = secrets.randbits(32) if seed is None else seed
        found = await _Rehearsal(store, plan, seed).run()
    except (ExodusError, ReplyError) as exc:
        why = f"{exc.what}: {exc.why}" if isinstance(exc, ExodusError) else str(exc)
        await store.save_report(REPORT, {"at_ms": at_ms, "ok": False, "why": why})
        raise
    bad = [f"{found[name]} {name.replace('_', ' ')}" for name in _BAD if found[name]]
    found = {**found, "at_ms": at_ms, "ok": not bad, "why": ", ".join(bad)}
    await store.save_report(REPORT, found)
    return found


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that this share of all does not exceed; 0 without any."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 100) // 100) - 1)] if ordered else 0.0


@dataclass
class _Death:
    """The gateway that dies in one round, and at which step."""

    round: int
    to: Side
    step: str
    gateway: OwnGateway | None = None
    why_not: str = ""
    clients: ProbeClients | None = None
    back: asyncio.Task[None] | None = None  # it starts again

    def look(self, step: str) -> None:
        """Die where it is time to."""
        if self.gateway is not None and self.back is None and step == self.step:
            self.gateway.kill()
            self.back = asyncio.create_task(self.gateway.start())


@dataclass
class _Rehearsal:
    """One rehearsal."""

    store: ControlStore
    plan: Plan
    seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    name: str = field(default_factory=lambda: f"exodus-rehearsal-{secrets.token_hex(16)}")
    writer: int = 0
    lost: int = 0
    resurrected: int = 0
    nodes: RehearsalNodes = field(default_factory=RehearsalNodes)

    @property
    def guard_name(self) -> str:
        """Return the name of its guards."""
        return _guard_name(self.plan.name)

    def _death(self) -> _Death | None:
        checks = self.plan.test_checks
        if not checks.rehearsal_kill:
            return None
        draw = Random(self.seed)  # noqa: S311 - no secret
        return _Death(
            draw.randint(1, checks.rehearsal_rounds),
            draw.choice(list(Side)),
            draw.choice([step.name for step in steps()]),
        )

    def _clients(self, gateway: Address, prefix: str, *, queue: bool = True) -> ProbeClients:
        # An answer may come as late as a hold may take.
        timeout_s = self.plan.hold_seconds_max + CONNECT_TIMEOUT_S
        return ProbeClients(
            gateway,
            prefix,
            self.name,
            timeout_s=timeout_s,
            queue=queue,
            listeners=self.nodes.listeners,
            slots=self.nodes.slots,
            told_port=self.plan.gateway.told_port,
        )

    async def run(self) -> dict[str, Any]:
        """Do all rounds; the findings as JSON."""
        plan, death = self.plan, self._death()
        prefix = plan.rehearsal_prefix
        of = await self._fingerprint()
        self.nodes = await find_nodes(self.store, plan)
        clients = self._clients(await _login(plan), prefix)
        await self._change(
            rehearsal_prefix=prefix,
            rehearsal_name=self.name,
            rehearsal_authority=Side.SOURCE,
            rehearsal_hold=Hold.NONE,
        )
        try:
            await clients.start()
            for number in range(1, plan.test_checks.rehearsal_rounds + 1):
                dies = death if death is not None and death.round == number else None
                await self._round(number, clients, dies)
        finally:
            await clients.stop()
            await self._change(
                rehearsal_prefix=None,
                rehearsal_name=None,
                rehearsal_authority=Side.SOURCE,
                rehearsal_hold=Hold.NONE,
            )
            await self._count(clients)
            await _clean(plan, self.guard_name)
        whole = [row["stall_ms"] for row in self.rows if not row["killed"]]
        return {
            "switches": self.rows,
            "rounds": plan.test_checks.rehearsal_rounds,
            "seed": self.seed,
            "killed": _told(death),
            "acknowledged_writes": clients.count,
            "lost_writes": self.lost,
            "resurrected_writes": self.resurrected,
            "errors": clients.errors[:REHEARSAL_ERRORS_KEPT],
            "error_count": len(clients.errors),
            "clusters": [str(side) for side in self.nodes.masters],
            "silent_nodes": sum(len(row["nodes_not_written"]) for row in self.rows),
            "stall_ms_p50": percentile(whole, 0.5),
            "stall_ms_p99": percentile(whole, 0.99),
            "stall_ms_max": max(whole, default=0.0),
            "quiet_ms_max": max((row["quiet_ms"] for row in self.rows), default=0.0),
            "fingerprint": of,
        }

    async def _fingerprint(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for side in Side:
            endpoint = Endpoint(side, self.plan.address(side))
            async with await endpoint.connect(name="exodus-rehearsal") as leg:
                found |= await fingerprint(self.plan, leg)
        return found

    async def _count(self, clients: ProbeClients) -> None:
        endpoint = Endpoint(Side.SOURCE, self.plan.source)
        async with await endpoint.connect(name="exodus-rehearsal") as leg:
            self.lost += await clients.lost_on(leg)
            self.resurrected += await clients.resurrected_on(leg)

    async def _round(self, number: int, clients: ProbeClients, death: _Death | None) -> None:
        if death is None:
            await self._there_and_back(number, clients, None)
            return
        death.gateway, death.why_not = await started(self.store, self.plan)
        try:
            if death.gateway is not None:
                address = clients.gateway.model_copy(
                    update={**death.gateway.listen.reached, "tls": False}
                )
                prefix = self.plan.rehearsal_prefix + _KILLED_KEYS
                death.clients = self._clients(address, prefix, queue=False)
                await death.clients.start()
            await self._there_and_back(number, clients, death)
        finally:
            if death.back is not None:
                await death.back
            if death.clients is not None:
                await again(death.clients, death.clients.count, REHEARSAL_WITHIN_S)
                await death.clients.stop()
                await self._count(death.clients)
            if death.gateway is not None:
                await death.gateway.close()

    async def _there_and_back(
        self, number: int, clients: ProbeClients, death: _Death | None
    ) -> None:
        for to in (Side.TARGET, Side.SOURCE):
            dies = death if death is not None and death.to is to else None
            row = {"round": number, **await self._switch(to, clients, death, dies)}
            self.rows.append(row)
            if row["outcome"] == "switched":
                continue
            if to is Side.TARGET:
                return  # the sessions never left the source
            back = await self._switch(to, clients, death, None)  # as a person would, once more
            self.rows.append({"round": number, **back})

    async def _switch(
        self, to: Side, clients: ProbeClients, death: _Death | None, dies: _Death | None
    ) -> dict[str, Any]:
        """Do one switch, and measure it."""
        clients.begin_window()
        await asyncio.sleep(REHEARSAL_SETTLE_S)
        quiet_ms = clients.stall_ms
        clients.begin_window()
        self.writer += 1
        also = [death.clients] if death is not None and death.clients is not None else []
        switch = RehearsedSwitch(
            self.store,
            self.plan,
            to,
            await read_route(self.store),
            began_ms=await self.store.now_ms(),
            clients=[clients, *also],
            guard_name=self.guard_name,
            writer=self.writer,
        )
        outcome = "switched"
        try:
            await perform(
                switch,
                steps(),
                lambda _, step: dies.look(step.name) if dies is not None else None,
            )
        except (CutoverAborted, DecisionRefused) as exc:
            if dies is None or dies.back is None:
                raise
            outcome = f"given up, as a cutover would be: {exc.what}"
        finally:
            await switch.close()
        clients.begin_answers()
        await asyncio.sleep(REHEARSAL_SETTLE_S)
        if dies is not None and dies.back is not None:
            await dies.back
            await self._followed()
        authority = to if outcome == "switched" else to.other
        silent = await self._silent_nodes(clients, authority)
        return {
            "to": str(to),
            "outcome": outcome,
            "killed": f"at '{dies.step}'" if dies is not None and dies.back is not None else "",
            "hold_ms": switch.facts.get("hold_ms", 0.0),
            "stall_ms": round(clients.stall_ms, 1),
            "quiet_ms": round(quiet_ms, 1),
            "keys": switch.facts.get("keys", 0),
            "fence": switch.facts.get("fence", ""),
            "authority": str(authority),
            "nodes": self.nodes.count(authority),
            "nodes_not_written": silent,
            "steps": "; ".join(f"{row['step']} {row['ms']} ms" for row in switch.timeline),
        }

    async def _silent_nodes(self, clients: ProbeClients, authority: Side) -> list[str]:
        """Return the nodes of the authority that answered no request of the sessions in time."""
        deadline = time.monotonic() + REHEARSAL_WITHIN_S
        while silent := self.nodes.silent(authority, clients.answered_by):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(REHEARSAL_AGAIN_S)
        return silent

    async def _followed(self) -> None:
        route = await read_route(self.store)
        await registry.wait_for_gateways(
            self.store,
            lambda beat: beat.epoch >= route.epoch,
            within_s=REHEARSAL_WITHIN_S,
            otherwise="a gateway did not follow the rehearsal",
        )

    async def _change(self, **changes: object) -> Route:
        route = await read_route(self.store)
        after = await change_route(self.store, route, route.next(why="rehearsal", **changes))
        await self._followed()
        return after


def _told(death: _Death | None) -> dict[str, Any]:
    """Return what became of the gateway that was to die."""
    if death is None:
        return {"done": False, "why": "test_checks.rehearsal_kill is false"}
    if death.back is None:
        why = death.why_not or f"the round ended before '{death.step}' to the {death.to}"
        return {"done": False, "why": why}
    of_it = death.clients
    return {
        "done": True,
        "round": death.round,
        "to": str(death.to),
        "step": death.step,
        "acknowledged_writes": 0 if of_it is None else of_it.count,
        "errors_of_its_sessions": 0 if of_it is None else len(of_it.errors),
    }


async def _login(plan: Plan) -> Address:
    """Return the gateway with the login of the rehearsal's sessions: none where both sides take
    that.

    Else Exodus's own, which the gateways say to each side as that side's own (`Logins.with_own`).
    """
    mapped = any(login.secret() is None for login in plan.logins)
    async with await connect_as_application(plan, Side.SOURCE, name="exodus-rehearsal") as leg:
        address = leg.address
    if mapped or await takes_nobody(plan, Side.TARGET):
        return address
    return plan.through_gateway(Side.SOURCE)


async def _clean(plan: Plan, guard_name: str) -> None:
    """Remove the keys of this rehearsal, and of one that died: their names are always the same."""
    prefix = plan.rehearsal_prefix
    ends = [Endpoint(side, plan.address(side)) for side in Side]
    slots = GUARD_SLOTS if any(end.cluster for end in ends) else ()
    keys = [*names(prefix, slots), *names(prefix + _KILLED_KEYS, slots)]
    for end in ends:
        ours = [guard_key(guard_name), fence_guard_key(guard_name)]
        if end.cluster is not None:
            ours = guard_keys(guard_name)
        async with await end.connect(name="exodus-rehearsal") as leg:
            await leg.pipeline([("UNLINK", key) for key in [*keys, *ours]])


def _guard_name(migration: str) -> str:
    """Return the name for guards, in place of the migration's own."""
    return f"rehearsal-{hashlib.sha256(migration.encode()).hexdigest()[:8]}"
