"""Registering a migration's plan. Everything is checked before anything is written.

`examine` asks the servers and writes nothing, not even a key of Exodus's own: any server may turn
out to be production. It also compares the plan with the registered one. A change can void
decisions, such as the rehearsal of another fence. `register` records in the ledger what a change
voids; those decisions do not count any more (`ledger.approved_since`).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from exodus.control import ledger, registry
from exodus.control.approvers import PersonIdentity
from exodus.control.freshness import forget_pass
from exodus.control.ledger import REHEARSAL, VERIFICATION, LedgerEntry
from exodus.control.phase_order import text_of_end
from exodus.control.route import read_route
from exodus.control.store import ControlStore
from exodus.cutover.fence import read_record
from exodus.cutover.preflight import check_all
from exodus.errors import ExodusError
from exodus.net.client import answered
from exodus.plan.address import Address, Cluster, Place, place_of
from exodus.plan.migration_file import MigrationFile
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Phase, Side
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import Finding, check_control_store

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_COPY = (Phase.TEST, Phase.MIGRATE)
_ALL = (Phase.PRE_TEST, Phase.ANALYZE, Phase.COMPARE, *_COPY)
_REHEARSED = (Phase.TEST, REHEARSAL)
# Field of the plan → the decisions and proofs that a new value of it voids.
_VOIDS: dict[str, tuple[str, ...]] = {
    "source": (*_ALL, REHEARSAL, VERIFICATION),
    "target": (*_ALL, REHEARSAL, VERIFICATION),
    "filters": (Phase.COMPARE, *_COPY, VERIFICATION),
    "renames": (Phase.COMPARE, *_COPY, VERIFICATION),
    "partitions": (*_COPY, VERIFICATION),
    "strategy": _COPY,
    "feed": _COPY,
    "keep_usage": _COPY,
    "allow_nonempty": _COPY,
    "cutover": _COPY,
    "gateway": _REHEARSED,
    "fence": _REHEARSED,
    "logins": _REHEARSED,
    "users": _REHEARSED,
    "hold_seconds_max": _REHEARSED,
    "rehearsal_prefix": _REHEARSED,
}


@dataclass(frozen=True)
class Change:
    """One field of the plan that is another than in the registered one."""

    field: str
    before: object
    after: object


@dataclass
class Examined:
    """What is known of a plan before it is registered."""

    findings: list[Finding] = field(default_factory=list)
    registered: bool = False  # whether a plan of this name is there
    changes: list[Change] = field(default_factory=list)
    voids: list[str] = field(default_factory=list)

    @property
    def fatal(self) -> list[Finding]:
        """Return what forbids to register the plan."""
        return [finding for finding in self.findings if finding.severity == "fatal"]


def _places(place: Place) -> set[tuple[str, int, str]]:
    """Return where a place is reached: a server, the nodes of a cluster that the plan names, or the
    Sentinels with the name of the service.
    """
    return {
        ("loopback" if host.lower() in _LOOPBACK else host.lower(), port, service)
        for host, port, service in _reached(place)
    }


def _reached(place: Place) -> list[tuple[str, int, str]]:
    if isinstance(place, Address):
        return [(place.host, place.port, "")]
    if isinstance(place, Cluster):
        return [(each.host, each.port, "") for each in place.seeds]
    return [(each.host, each.port, place.service) for each in place.sentinel_addresses]


def _same_places(file: MigrationFile) -> list[Finding]:
    """Find servers that are given twice, and a gateway in the place of a server; asks nobody."""
    plan = file.plan
    named: dict[str, Place] = {
        "source": plan.source,
        "target": plan.target,
        "control_store": file.control_store,
    }
    found = []
    for first, second in (
        ("target", "source"),
        ("control_store", "source"),
        ("control_store", "target"),
    ):
        if _places(named[first]) & _places(named[second]):
            host, port, service = _reached(named[first])[0]
            shown = f"{place_of(host, port)}{f', {service}' if service else ''}"
            found.append(
                Finding(
                    "different servers",
                    "fatal",
                    f"{first} is the {second}: both are {shown}",
                    "source, target and control store are three servers",
                    f"correct {first}",
                )
            )
    for name, place in named.items():
        for host, port, _ in _reached(place):
            if plan.gateway.port == port and _is_here(plan.gateway.host, host):
                found.append(
                    Finding(
                        "gateway",
                        "fatal",
                        f"gateway.port is {port}, the port of the {name}",
                        "a gateway listens on a port of its own",
                        "choose another gateway.port, which applications then use",
                    )
                )
    return found


def _is_here(listen_host: str, host: str) -> bool:
    """Return whether a server can be in the place of a listening address: on the same host, or on
    this machine.
    """
    wildcard = listen_host in ("0.0.0.0", "::", "*", "")  # noqa: S104 - compared, never bound
    return listen_host == host or (host in _LOOPBACK and (wildcard or listen_host in _LOOPBACK))


async def _check_port(plan: Plan, store: ControlStore) -> Finding:
    """Check that the gateway's port is free here, or that a gateway of this migration has it."""
    host, port = plan.gateway.host, plan.gateway.port
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            return Finding(
                "gateway",
                "ok",
                f"{host}:{port} is no address of this machine; its port was not looked at",
            )
    else:
        return Finding("gateway", "ok", f"{host}:{port} is free")
    now_ms = await store.now_ms()
    beats = [beat for beat in await registry.heartbeats(store, "gateway") if not beat.stale(now_ms)]
    if any(beat.host == socket.gethostname() for beat in beats):
        return Finding("gateway", "ok", f"{host}:{port} is served by a gateway of this migration")
    return Finding(
        "gateway",
        "fatal",
        f"gateway.port {port} is in use on {host}",
        "another process listens there, and no gateway of this migration runs here",
        "choose another gateway.port, or stop that process",
    )


async def _ask_sides(plan: Plan) -> tuple[list[Finding], dict[str, str]]:
    """Log in to both sides: what went wrong, and the run id of each that answers."""
    found: list[Finding] = []
    run_ids: dict[str, str] = {}
    servers: list[set[str]] = []
    for side in Side:
        try:
            facts = await Endpoint(side, plan.address(side)).facts()
        except ExodusError as exc:
            found.append(_failed(str(side), exc))
        else:
            run_ids[side] = facts.run_id
            servers.append(facts.servers)
    if len(servers) == len(Side) and (both := set.intersection(*servers)):
        found.append(
            Finding(
                "different servers",
                "fatal",
                f"target {plan.target.url} is the source",
                f"both answer with run id {min(both)[:12]}…",
                "correct target",
            )
        )
    return found, run_ids


def _failed(check: str, exc: ExodusError) -> Finding:
    return Finding(check, "fatal", exc.what, exc.why, exc.next_step)


async def examine(file: MigrationFile) -> Examined:
    """Check everything without a write, and compare with the registered plan."""
    plan, found = file.plan, Examined(_same_places(file))
    if found.fatal:
        return found  # nobody is asked what a server is that has two roles
    asked, run_ids = await _ask_sides(plan)
    found.findings += asked
    try:
        async with await ControlStore.connect(file.control_store, plan.name) as store:
            await _with_store(plan, store, run_ids, found)
    except (RedisError, OSError) as exc:
        found.findings.append(
            Finding(
                "control store",
                "fatal",
                f"the control store {file.control_store.url} did not answer all questions",
                str(exc) or type(exc).__name__,
                "give its user +info, +config|get and the keys exodus:*; or start it",
            )
        )
    except ExodusError as exc:
        found.findings.append(_failed("control store", exc))
    return found


async def _with_store(
    plan: Plan, store: ControlStore, run_ids: dict[str, str], found: Examined
) -> None:
    found.findings += await check_control_store(store, run_ids)
    if found.fatal:
        return  # where it is a side, nothing more is asked there
    if (end := ledger.ending(await ledger.read(store))) is not None:
        found.findings.append(
            Finding(
                "migration",
                "fatal",
                f"the migration {plan.name} is done",
                f"{text_of_end(*end)}, and its name stands for that",
                "exodus archive (it keeps the evidence and frees the name), or choose another name",
            )
        )
        return
    found.findings.append(await _check_port(plan, store))
    # A fence refuses what the checks try
    if not any([await read_record(store, side) for side in Side]):
        found.findings += [
            finding for finding in await check_all(plan, store) if finding.check != "control store"
        ]
    if await answered(store.client.exists(store.keys.plan)):
        found.registered = True
        found.changes = changes(await store.plan(), plan)
        switched = (await read_route(store)).authority is Side.TARGET
        found.voids = voids((change.field for change in found.changes), switched=switched)


def changes(before: Plan, after: Plan) -> list[Change]:
    """Return the fields that differ, each with its values; passwords are in no plan."""
    ours, theirs = (plan.model_dump(mode="json") for plan in (before, after))
    found = []
    for name in ours:
        for inner in _inner(ours[name], theirs[name]):
            old, new = (each[name][inner] if inner else each[name] for each in (ours, theirs))
            if old != new:
                found.append(Change(f"{name}.{inner}" if inner else name, old, new))
    return found


def _inner(before: object, after: object) -> list[str]:
    """Return the fields of a field; one empty name where it has none."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        return list(before)
    return [""]


def voids(fields: Iterable[str], *, switched: bool) -> list[str]:
    """Return which phases' approvals, and what else, do not hold after these fields of the plan
    changed.

    After a cutover the phases before it are history. The way back is proved by the verification.
    """
    gone = {what for name in fields for what in _VOIDS.get(name.partition(".")[0], ())}
    kept = (REHEARSAL, VERIFICATION) if switched else (*_ALL, REHEARSAL, VERIFICATION)
    return [str(what) for what in kept if what in gone]


async def register(store: ControlStore, plan: Plan, examined: Examined, by: PersonIdentity) -> None:
    """Keep the plan where the data plane reads it; the ledger keeps who changed what, and what that
    voids.
    """
    if examined.registered and examined.changes:
        entry = LedgerEntry(
            at_ms=await store.now_ms(),
            phase=next(
                (Phase(what) for what in examined.voids if what in list(Phase)), Phase.COMMIT
            ),
            event="applied",
            decided_by=by.person,
            person=by.person,
            known_by=by.known_by,
            identity=by.detail,
            facts={
                "fields": ", ".join(change.field for change in examined.changes),
                "voids": ",".join(examined.voids),
            },
        )
        await ledger.record(store, entry)
        if VERIFICATION in examined.voids:
            await forget_pass(store)
    await store.save_plan(plan)
