"""Whether the way back may be closed, and what people have to do afterwards."""

from __future__ import annotations

import contextlib
from typing import Any

from exodus.closing.collect import connected_clients, last_state
from exodus.closing.redirect import who_is_connected
from exodus.control import freshness, journal, ledger, registry
from exodus.control.approvers import PersonIdentity, decider, why_not_the_second
from exodus.control.ledger import CUTOVER, LedgerEntry
from exodus.control.route import Route, read_route
from exodus.control.store import ControlStore
from exodus.cutover.fence import Record, blocks_exodus, read_record
from exodus.errors import DecisionRefused, OperatorError, SourceError
from exodus.net.client import answered
from exodus.net.clusters import NoMaster
from exodus.net.masters import standing
from exodus.plan.bounds import FINALISE_CLIENTS_SHOWN, FINALISE_LAG_MS_MAX, HOUR_MS
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import FenceKind, Phase, Side
from exodus.topology.endpoint import Endpoint
from exodus.topology.permits import why_not

BY_HAND = "by-hand"  # the verification of `exodus verify`
Json = dict[str, Any]


def _last_switch(entries: list[LedgerEntry]) -> LedgerEntry | None:
    return next((entry for entry in reversed(entries) if entry.event == "switched"), None)


async def switched_ms(store: ControlStore) -> int:
    """Return when the authority changed last, in the control store's ms; 0 if it never did."""
    switched = _last_switch(await ledger.read(store))
    return switched.at_ms if switched is not None else 0


async def problems(store: ControlStore, plan: Plan, decided_by: PersonIdentity) -> list[str]:
    """Return why the source may not be given up now; empty where it may."""
    found: list[str] = []
    entries = await ledger.read(store)
    now_ms, route = await store.now_ms(), await read_route(store)
    if route.authority is not Side.TARGET:
        found.append(f"the {route.authority} is the authority")
    switched = _last_switch(entries)
    open_until_ms = (switched.at_ms if switched is not None else now_ms) + int(
        plan.observation_hours_min * HOUR_MS
    )
    if open_until_ms > now_ms:
        found.append(
            "the observation window is open for another "
            f"{(open_until_ms - now_ms) / HOUR_MS:.1f} h (observation_hours_min)"
        )
    technical = ledger.last_decision(entries, Phase.COMMIT, CUTOVER)
    if (
        plan.two_people
        and technical is not None
        and (why := why_not_the_second(decider(technical), decided_by)) is not None
    ):
        found.append(why)
    found += await _check_way_back(
        store, plan, now_ms, route, switched.at_ms if switched is not None else 0
    )
    for what, key in (("open gap(s)", store.keys.gap), ("dead letter(s)", store.keys.dead)):
        count = int(await answered(store.client.hlen(key)))
        if count:
            found.append(f"{count} {what}")
    return found


async def _check_way_back(
    store: ControlStore, plan: Plan, now_ms: int, route: Route, switched_ms: int
) -> list[str]:
    if await blocks_exodus(store, Side.SOURCE):
        # Nothing flows back by intent; the sides were compared before the switch, and spot-checked
        # in it
        return []
    found: list[str] = []
    syncers = [
        beat for beat in await registry.heartbeats(store, "syncer") if not beat.stale(now_ms)
    ]
    lag_ms = await journal.oldest_ms(store, plan.partitions, now_ms)
    if not route.sync or not syncers or lag_ms > FINALISE_LAG_MS_MAX:
        found.append(
            f"reverse sync is not healthy: {'on' if route.sync else 'off'}, {len(syncers)} "
            f"syncer(s), {lag_ms} ms behind"
        )
    reports = [
        report
        for name in (Phase.COMMIT, BY_HAND)
        if (report := await store.report(f"verification.{name}")) is not None
    ]
    last = max(reports, key=lambda report: int(report["at_ms"]), default=None)
    if last is not None and last["divergences_total"]:
        found.append(f"{last['divergences_total']} divergence(s)")
    newest = await freshness.last_pass(store)
    if newest is None or newest.at_ms < switched_ms:
        found.append(
            "no verification of all keys began after the cutover and ended clean: exodus verify "
            "--repair"
        )
    elif (age_h := (now_ms - newest.at_ms) / HOUR_MS) > plan.verification_hours_max:
        found.append(
            f"the last clean verification of all keys is {age_h:.1f} h old "
            "(verification_hours_max): exodus verify --repair"
        )
    return found


async def check(store: ControlStore, plan: Plan, decided_by: PersonIdentity) -> None:
    """Check again, right before it is done, what was checked when somebody decided it.

    Raises:
        DecisionRefused: the source may not be given up; nothing was changed.
    """
    found = await problems(store, plan, decided_by)
    if found:
        raise DecisionRefused(
            "the source may not be given up",
            why="; ".join(found),
            next_step="correct it; the run of commit can then be retried, or exodus start rollback",
        )


async def checklist(store: ControlStore, plan: Plan) -> Json:
    """Return the last state of the source, and what people have to do before it can be switched
    off. Take it when nothing of ours writes there any more.
    """
    clients = await connected_clients(plan, Side.SOURCE)
    state = await last_state(Endpoint(Side.SOURCE, plan.source))
    fence = await read_record(store, Side.SOURCE)
    gateways = [
        f"{beat.process} on {beat.host}" for beat in await registry.heartbeats(store, "gateway")
    ]
    there = ", ".join(
        f"{row['connections']} of {row['user']}@{row['host']} {row['name'] or row['kind']}".rstrip()
        for row in clients[:FINALISE_CLIENTS_SHOWN]
    )
    through = await who_is_connected(store)
    todo = [
        ("take a last dump of the source and keep it", await _dump(plan, fence)),
        ("write down what that dump is of", _text_of(state)),
        ("see that nobody is connected to the source any more", there or "nobody but Exodus"),
        (
            "point DNS names and configuration from the source to the target",
            f"{plan.source.url} → {plan.target.url}",
        ),
        (
            "point applications from the gateway to the target, one after the other",
            f"gateway {plan.gateway.host}:{plan.gateway.port}",
        ),
        (
            "send who is still connected through the gateways away, one by one: exodus redirect 2 "
            "--why …",
            _named(through) or "nobody",
        ),
        (
            "take the gateways out when their connections are 0 (exodus redirect)",
            ", ".join(gateways),
        ),
        ("remove Exodus's user on the target", plan.target.username or "default"),
        (
            "switch the source off; it stays fenced until then",
            f"fenced ({fence.kind})" if fence is not None else "NOT fenced",
        ),
    ]
    return {
        "checklist": [{"todo": what, "detail": detail} for what, detail in todo],
        "clients": clients,
        "through_gateways": through,
        "source": state,
    }


def _named(through: list[Json]) -> str:
    return ", ".join(
        f"{row['connections']} of {row['name'] or '(no name)'}@{row['host']} ({row['kind']})"
        for row in through[:FINALISE_CLIENTS_SHOWN]
    )


async def _dump(plan: Plan, fence: Record | None) -> str:
    """Say how a dump of the source is taken, by a command that its user may run."""
    if fence is not None and fence.kind == FenceKind.REPLICA:
        return (
            "the source is fenced as a replica and sends nobody its data: on its host, as an "
            "administrator, run BGSAVE, "
            "wait until LASTSAVE changes, then keep the file that CONFIG GET dir and CONFIG GET "
            f"dbfilename name, as {plan.name}-source.rdb"
        )
    address = plan.source
    user = address.username or "default"
    try:
        refused = await why_not(address, Side.SOURCE, "sync")
    except (SourceError, OperatorError) as exc:
        refused = f"whether it may is not known: {exc.why}"
    if refused is None:
        return _dump_command(plan, address.username)
    return (
        f"{_dump_command(plan, 'ADMINISTRATOR')} (as a user with +sync +replconf +ping; {user} "
        f"may not: {refused})"
    )


def _dump_command(plan: Plan, username: str | None) -> str:
    place, file = plan.source, f"{plan.name}-source.rdb"
    # Any server of a service has the data: the master's name is known once it was asked.
    server = "-h MASTER -p PORT"
    with contextlib.suppress(NoMaster):
        address = standing(place)
        server = f"-h {address.host} -p {address.port}"
    tls = f" --tls{f' --cacert {place.ca_file}' if place.ca_file else ''}" if place.tls else ""
    user = f" --user {username} --askpass" if username else ""
    return f"redis-cli {server}{user}{tls} --rdb {file} && sha256sum {file}"


def _text_of(state: Json) -> str:
    saved = (
        ""
        if state["saved_at"] is None
        else f"; on its disk: saved {state['saved_at']}, {state['changes_since_save']} changes "
        "since"
    )
    moved = "" if state["quiet"] else " (it moved while it was looked at)"
    return (
        f"run {state['run_id']}, offset {state['offset']}{moved}, {state['keys']} keys, digest "
        f"{state['digest']}{saved}"
    )
