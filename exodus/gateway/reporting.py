"""Reports of a gateway process: heartbeat, telemetry, metrics, health, log lines.

The facts of the heartbeat, the keys of the snapshot and the names of metrics are API.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from exodus import compiled
from exodus.control.heartbeats import GatewayFacts, GatewayHeartbeat, ProcessState
from exodus.gateway.authority_probe import NOT_ASKED
from exodus.gateway.client_names import ClusterClients, name_of
from exodus.gateway.orders import Orders
from exodus.gateway.redirect import kind_of
from exodus.observe.shapes import hashed_words
from exodus.plan.bounds import REPORTING_LOG_EVERY_S, REPORTING_NAMES_MAX
from exodus.telemetry.counters import OTHER
from exodus.telemetry.sample import Sample
from exodus.telemetry.states import States

if TYPE_CHECKING:
    from exodus.gateway.hub import Gateway
    from exodus.gateway.relay import Connection

log = logging.getLogger(__name__)


def _left_out(orders: Orders) -> dict[str, dict[str, int]]:
    """Return command → reason → requests of sampled keys that the comparer is not offered."""
    found: dict[str, dict[str, int]] = {}
    for (command, why), count in list(orders.left_out.items()):
        found.setdefault(command.decode("ascii", "replace"), {})[why] = count
    return found


def heartbeat(gateway: Gateway, at_ms: int) -> GatewayHeartbeat:
    """Return the heartbeat at a time of the control store."""
    main, journaler = gateway.groups.main, gateway.journaler
    return GatewayHeartbeat(
        process=gateway.heartbeats.registered,
        at_ms=at_ms,
        epoch=gateway.route_follower.applied,
        state=_state(gateway),
        why=gateway.store_state.why_away or gateway.topology.why or gateway.nodes.why,
        facts=GatewayFacts(
            authority=str(main.orders.authority),
            connections=len(gateway.connections),
            connections_ever=gateway.connections_ever,
            writes_in_flight=sum(
                connection.session.writes_in_flight for connection in gateway.connections
            ),
            unflushed=gateway.unflushed,
            spooled=journaler.spooled,
            intent_segments=journaler.segments,
            rehearsal_held=gateway.groups.rehearsal.held,
            legs_ready=gateway.spare_legs.ready,
            requests=gateway.telemetry.calls,
            errors=gateway.telemetry.errors,
            sessions_closed=dict(gateway.sessions_closed),
            risks=dict(main.orders.risks),
            renamed_commands=gateway.undescribed.renamed,
            scripts_unseen=len(main.orders.scripts.asked) + main.orders.scripts.left_out,
            gaps={why: gap.count for why, gap in journaler.gaps.items()},
            room=gateway.room_why,
            canary=gateway.canary.facts(),
            redirect=gateway.redirects.facts(),
            latency=gateway.probe.latency,
            shadow_dropped=gateway.shadow_stream.dropped,
            shadow_left_out=_left_out(main.orders),
            task_failures=gateway.tasks.failures,
            listeners=gateway.nodes.versions,
            nodes_without_listener=sum(gateway.nodes.missing.values()),
        ),
    )


def _state(gateway: Gateway) -> ProcessState:
    main = gateway.groups.main
    if main.released_alone:
        return ProcessState.RELEASED_ALONE
    if main.orders.hold:
        return ProcessState.HELD if main.held else ProcessState.HOLDING
    return ProcessState.DRAINING if gateway.draining else ProcessState.SERVING


def snapshot(gateway: Gateway) -> dict[str, object]:
    """Return the telemetry as JSON, for the phases."""
    telemetry = gateway.telemetry
    return {
        "process": gateway.options.process,
        "commands": telemetry.snapshot(),
        "requests": telemetry.calls,
        "errors": telemetry.errors,
        "connections": len(gateway.connections),
        "connections_by_name": _names(gateway.connections),
        "clients": _clients(gateway.connections, gateway.nodes.clients),
        "in_flight": in_flight(gateway),
        "risks": dict(gateway.groups.main.orders.risks),
        "misfits": _misfits(gateway.groups.main.orders),
        "prefixes": telemetry.prefixes_snapshot(),
        "hot_keys": telemetry.hot_keys(),
        "distinct_keys": telemetry.distinct_keys(),
    }


def in_flight(gateway: Gateway) -> int:
    """Return the number of requests that were forwarded and not answered."""
    return sum(len(connection.session.pending) for connection in gateway.connections)


def _names(connections: Iterable[Connection]) -> dict[str, int]:
    """Count connections by client name: the most frequent names, and the rest together."""
    found = Counter(name_of(connection).name for connection in connections)
    named = dict(found.most_common(REPORTING_NAMES_MAX))
    rest = found.total() - sum(named.values())
    return {**named, OTHER: rest} if rest else named


def _clients(
    connections: Iterable[Connection], cluster_clients: ClusterClients
) -> list[dict[str, object]]:
    """Count connections by name, library, host and kind: the most frequent ones."""
    found = Counter((name_of(each), kind_of(each.session)) for each in connections)
    return [
        {
            **client._asdict(),
            "kind": kind,
            "cluster": cluster_clients.has(client),
            "connections": count,
        }
        for (client, kind), count in found.most_common(REPORTING_NAMES_MAX)
    ]


def clients_now(gateway: Gateway) -> list[dict[str, object]]:
    """Count connections by name and library, for a window: the most frequent ones."""
    found = Counter(name_of(each)[:2] for each in gateway.connections)
    return [
        {"name": name, "library": library, "connections": count}
        for (name, library), count in found.most_common(REPORTING_NAMES_MAX)
    ]


def _misfits(orders: Orders) -> list[dict[str, object]] | None:
    """Return the requests that a cluster would refuse; None: they are not counted."""
    if orders.misfits is None:
        return None
    return [
        {"command": command.decode("ascii", "replace"), "why": why, "calls": calls}
        for (command, why), calls in orders.misfits.most_common()
    ]


def metrics(gateway: Gateway) -> Iterable[Sample]:
    """Return the samples for Prometheus."""
    yield from _process_metrics(gateway)
    yield from _journal_metrics(gateway)
    yield from _canary_metrics(gateway)
    yield from _redirect_metrics(gateway)
    yield from _face_metrics(gateway)
    yield from _node_metrics(gateway)
    for name, count in _names(gateway.connections).items():
        yield (
            "exodus_gateway_named_connections",
            "open client connections by client name",
            {"client": name},
            count,
        )
    for risk, count in gateway.groups.main.orders.risks.items():
        yield (
            "exodus_gateway_risks_total",
            "requests that may write what no journal covers",
            {"risk": risk},
            count,
        )
    yield from gateway.telemetry.samples(hashed_words if gateway.plan.hash_names else str)


def _process_metrics(gateway: Gateway) -> Iterable[Sample]:
    figures = [
        ("connections", "open client connections", len(gateway.connections)),
        ("epoch", "route epoch acted on", gateway.route_follower.applied),
        (
            "in_flight_requests",
            "requests that the authority has not answered",
            in_flight(gateway),
        ),
        ("connections_total", "client connections ever accepted", gateway.connections_ever),
        (
            "store_away",
            "1 while the control store is away",
            int(bool(gateway.store_state.why_away)),
        ),
        ("authority_away", "1 while the authority does not answer", int(bool(gateway.probe.why))),
        ("compiled", "1 where the hot path runs compiled", int(compiled.why_not() is None)),
        (
            "task_failures_total",
            "tasks of the process that failed and were started again",
            gateway.tasks.failures,
        ),
        (
            "tls_reload_failures_total",
            "certificates that could not be read again",
            gateway.tls_contexts.reload_failures,
        ),
        (
            "shadow_dropped_total",
            "sampled pairs that were not published",
            gateway.shadow_stream.dropped,
        ),
    ]
    for name, meaning, value in figures:
        yield f"exodus_gateway_{name}", meaning, {}, value
    for why, count in gateway.sessions_closed.items():
        yield (
            "exodus_gateway_sessions_closed_total",
            "sessions that could not be carried over",
            {"why": why},
            count,
        )


def _node_metrics(gateway: Gateway) -> Iterable[Sample]:
    nodes = gateway.nodes
    for kind, count in nodes.redirects.items():
        yield (
            "exodus_gateway_cluster_redirects_total",
            "redirects of a cluster's nodes that clients were given",
            {"kind": kind},
            count,
        )
    yield (
        "exodus_gateway_cluster_clients_left_out_total",
        "cluster clients that were not noted, since the list was full",
        {},
        nodes.clients.left_out,
    )
    for why, count in nodes.untold.items():
        yield (
            "exodus_gateway_untold_nodes_total",
            "replies in which a node of a cluster could not be named",
            {"why": why},
            count,
        )
    for side, missing in nodes.missing.items():
        yield (
            "exodus_gateway_nodes_without_listener",
            "nodes of a cluster for which no listener is left",
            {"side": str(side)},
            missing,
        )


def _journal_metrics(gateway: Gateway) -> Iterable[Sample]:
    journaler = gateway.journaler
    figures = [
        (
            "journal_unflushed_keys",
            "written keys not yet in the control store",
            journaler.unflushed,
        ),
        (
            "journal_spooled_keys",
            "written keys on disk because the control store is away",
            journaler.spooled,
        ),
        (
            "journal_coalesced_total",
            "marks of keys that were marked already",
            journaler.coalesced,
        ),
        ("intent_segments", "files of the intent log", journaler.segments),
    ]
    for name, meaning, value in figures:
        yield f"exodus_gateway_{name}", meaning, {}, value
    for why, gap in list(journaler.gaps.items()):
        yield (
            "exodus_gateway_gaps_total",
            "writes that no journal covers",
            {"why": why},
            gap.count,
        )


def _canary_metrics(gateway: Gateway) -> Iterable[Sample]:
    canary = gateway.canary.canary
    yield (
        "exodus_gateway_canary_share",
        "share of key hashes whose reads the follower is asked, too",
        {},
        gateway.canary.share,
    )
    for outcome, count in canary.counts.items():
        yield (
            "exodus_gateway_canary_reads",
            "canary reads since the share was chosen, by what became of them",
            {"outcome": str(outcome)},
            count,
        )
    yield (
        "exodus_gateway_canary_answer_us_p99",
        "99th percentile of the time to the follower's answer",
        {},
        canary.answer_us.quantile(0.99),
    )


def _redirect_metrics(gateway: Gateway) -> Iterable[Sample]:
    last = gateway.redirects.last
    if last is not None:
        yield (
            "exodus_gateway_redirect_returns",
            "connections that came since clients are sent away",
            {},
            last.came_back,
        )
        for kind, count in last.closed.items():
            yield (
                "exodus_gateway_redirected_sessions",
                "sessions ended so that their clients go elsewhere",
                {"kind": kind},
                count,
            )
    yield (
        "exodus_gateway_refused_total",
        "connections closed at once, since clients are sent away",
        {},
        gateway.refused,
    )


def _face_metrics(gateway: Gateway) -> Iterable[Sample]:
    face = gateway.face
    if face is None:
        return
    figures = [
        ("sentinel_clients", "connections to the Sentinel face", len(face.clients)),
        ("sentinel_questions_total", "requests that the Sentinel face answered", face.questions),
        ("sentinel_refused_total", "its clients that were too many", face.refused),
        ("sentinel_ended_total", "its clients ended for what they sent or left unread", face.ended),
        ("sentinel_delayed_total", "times that its clients waited, asking too often", face.delayed),
    ]
    for name, meaning, value in figures:
        yield f"exodus_gateway_{name}", meaning, {}, value


def health(gateway: Gateway) -> tuple[bool, str]:
    """Return whether the process is ready, and its state in words.

    It is ready while the authority answers and the gateway accepts connections. A store that is
    away, or too little room, only degrades it.
    """
    if gateway.draining or gateway.refuses:
        why = "draining" if gateway.draining else "clients are sent away"
        return False, f"{why}: no new connections are accepted"
    if gateway.probe.why:
        return False, gateway.probe.why
    reasons = [why for why in (gateway.store_state.why_away, gateway.room_why) if why]
    return True, f"degraded: {'; '.join(reasons)}" if reasons else "serving"


async def log_states(gateway: Gateway) -> None:
    """Log each change of what this process depends on, once, with its reason."""
    states = States(log)
    while True:
        away = ""
        if gateway.store_state.why_away:
            away = gateway.store_state.error or "it does not take the journal"
        states.away(
            "the control store",
            away and f"{away}; keys are spooled, applications are not affected",
            kind="away" if away else "",
        )
        if gateway.probe.why != NOT_ASKED:
            states.away(f"the {gateway.groups.main.orders.authority}", gateway.probe.why)
        if gateway.route_follower.applied >= 0:
            states.now("route", gateway.route_follower.route.text)
        for why in list(gateway.journaler.gaps):
            states.once(f"a gap is open until a verification closes it: {why}")
        await asyncio.sleep(REPORTING_LOG_EVERY_S)
