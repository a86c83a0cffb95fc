"""`exodus demo`: run a whole migration and check every invariant."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import orjson
import redis

from exodus.acceptance.load import NOT_JUDGED
from exodus.cli.context import plan_of
from exodus.cli.decisions import answer_open_decision
from exodus.cli.demo_failover import fail_over
from exodus.cli.output import say, show_table
from exodus.cli.phases import read_status
from exodus.cli.prefect_api import PrefectApi
from exodus.control import ledger
from exodus.control.ledger import FINALISE, NEXT
from exodus.control.phase_order import due_phase
from exodus.control.store import ControlStore
from exodus.engine import open_engine
from exodus.errors import OperatorError, StackError
from exodus.net.masters import located
from exodus.plan.address import Address, Cluster, Place, Service
from exodus.plan.bounds import (
    DEMO_APP_CONNECTIONS,
    DEMO_APP_S_MAX,
    DEMO_OBSERVE_S,
    DEMO_PHASE_S,
    DEMO_SHORT_TTL_S,
)
from exodus.plan.migration_file import MigrationFile, load_migration
from exodus.plan.vocabulary import Phase, Side
from exodus.stack.home import Home
from exodus.stack.prefect import project_root
from exodus.stack.processes import Started, last_lines, start
from exodus.stack.up import StackOptions, TopologyKind, down, up
from exodus.verify.reconcile import verify

Json = dict[str, Any]
_DECIDED_BY = "demo"


class PathTaken(StrEnum):
    """The demo's way through the lifecycle."""

    COMMIT = "commit"
    ROLLBACK = "rollback"


@dataclass
class Demo:
    """One run and its findings."""

    home: Home
    out: Path
    keys: int
    writes: int
    path_taken: PathTaken
    seed: int
    keep: bool
    ask: bool
    tamper: bool
    topology: TopologyKind = TopologyKind.STANDALONE
    phases: list[Json] = field(default_factory=list)
    summary: Json = field(default_factory=dict)
    rolled_back: bool = False


def run_demo(demo: Demo) -> bool:
    """Run the demo and write its summary. Return whether every invariant held.

    Raises:
        ExodusError: a part failed.
    """
    if demo.home.running():
        raise StackError(
            "an earlier demo is still running",
            why=f"its stack is in {demo.home.root}",
            next_step=f"exodus down --home {demo.home.root}",
        )
    if demo.tamper and demo.topology.is_cluster(Side.TARGET):
        raise OperatorError(
            f"--tamper with --topology {demo.topology} cannot be",
            why="it damages keys of one server",
            next_step="leave one of them away",
        )
    shutil.rmtree(demo.out, ignore_errors=True)
    (demo.out / "evidence").mkdir(parents=True)
    began = time.monotonic()
    apps: list[Started] = []

    def serving() -> None:
        apps.append(_start_app(demo, load_migration(demo.home.migration_file)))

    try:
        up(
            demo.home,
            StackOptions(
                options={"advance": "auto", "observe_seconds": DEMO_OBSERVE_S},
                topology=demo.topology,
            ),
            say,
            serving=serving,
        )
        file = load_migration(demo.home.migration_file)
        api = PrefectApi.find(demo.home)
        say(f"Prefect UI: {api.ui} (login: cat {demo.home.prefect_login_file})")
        _wait(
            lambda: _path(demo, "ready").exists(),
            apps[0],
            "the application did not preload its keys",
            180,
        )
        _run_phases(demo, file, api, apps[0])
        ok = _judge(demo)
    finally:
        for app in apps:
            if app.process.poll() is None:
                app.process.terminate()
                app.process.wait(timeout=30)
        if demo.keep:
            say(
                f"still running in {demo.home.root}: exodus status --home {demo.home.root}; "
                f"exodus down --home {demo.home.root}"
            )
        else:
            down(demo.home)
    demo.summary["seconds"] = round(time.monotonic() - began, 1)
    _write(demo)
    return ok


def _url_of(place: Place, *, login: bool = False) -> str:
    """Return a side as the application is told it; with Exodus's login where it is to be read."""
    address = place.seeds[0] if isinstance(place, Cluster) else asyncio.run(located(place))
    scheme = "redis-cluster" if isinstance(place, Cluster) else "redis"
    user = f"{address.username}:{address.secret('demo')}@" if login else ""
    return f"{scheme}://{user}{address.host}:{address.port}"


def _gateway_url(demo: Demo, file: MigrationFile) -> str:
    """Return the gateway as the application is told it."""
    scheme = "redis-cluster" if demo.topology.is_cluster(Side.TARGET) else "redis"
    return f"{scheme}://{file.plan.gateway.host}:{file.plan.gateway.port}"


def _start_app(demo: Demo, file: MigrationFile) -> Started:
    # Only the gateway lets a cluster client in to a single server.
    source = _gateway_url(demo, file) if demo.topology.has_facade else _url_of(file.plan.source)
    _path(demo, "address").write_text(source)
    command = [
        sys.executable,
        "-m",
        "examples.shop",
        "--url",
        source,
        "--url-file",
        str(_path(demo, "address")),
        "--keys",
        str(demo.keys),
        "--writes",
        str(demo.writes),
        "--seed",
        str(demo.seed),
        "--stop-file",
        str(_path(demo, "stop")),
        "--report",
        str(_path(demo, "app.json")),
        "--ready-file",
        str(_path(demo, "ready")),
        "--seconds-max",
        str(DEMO_APP_S_MAX),
        *(["--ride-failovers"] if demo.topology.is_service(Side.SOURCE) else []),
    ]
    app = start("application", command, log=demo.home.log("application"), cwd=project_root())
    say(f"application: preload {demo.keys:,} keys, then {demo.writes:,} writes a second")
    return app


def _move_app(demo: Demo, file: MigrationFile, app: Started) -> None:
    """Give the application the gateway's address; it goes on there."""
    gateway = _gateway_url(demo, file)
    if _path(demo, "address").read_text() == gateway:
        return
    _path(demo, "address").write_text(gateway)

    def moved() -> bool:
        status = asyncio.run(read_status(file))
        connections = sum(int(row["connections"]) for row in status["gateways"])
        return connections >= DEMO_APP_CONNECTIONS

    _wait(moved, app, "the application did not move to the gateway", 60)
    say("application: it uses the gateway now")


def _path(demo: Demo, name: str) -> Path:
    return (demo.out / name).absolute()


def _wait(condition: Callable[[], bool], app: Started, otherwise: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        ended = app.process.poll()
        if time.monotonic() > deadline or (ended is not None and not condition()):
            raise StackError(
                otherwise,
                why=f"the last lines of {app.log}:\n{last_lines(app.log)}",
                next_step="read the log",
            )
        time.sleep(0.1)


# ---------------------------------------------------------------------- the phases


def _run_phases(demo: Demo, file: MigrationFile, api: PrefectApi, app: Started) -> None:
    began = time.monotonic()
    first = due_phase([], file.plan) or Phase.PRE_TEST
    if first is not Phase.PRE_TEST:
        _move_app(demo, file, app)
    api.start(first, {"migration": file.plan.name})
    answered: set[tuple[str, str, int]] = set()
    changed = time.monotonic()
    fails_over = isinstance(file.plan.source, Service)
    while True:
        status = asyncio.run(read_status(file))
        if fails_over and status["phases"].get(Phase.MIGRATE, {}).get("state") == "running":
            fails_over = False
            fail_over(file, demo.home)
        waiting = status["waiting"]
        if (
            waiting is not None
            and (key := (waiting["flow_run_id"], waiting["gate"], waiting["attempt"]))
            not in answered
        ):
            say(f"{waiting['phase']} ({time.monotonic() - began:.0f} s): {waiting['question']}")
            if (
                waiting["phase"] == Phase.COMMIT
                and waiting["gate"] == FINALISE
                and (demo.rolled_back or demo.path_taken is PathTaken.COMMIT)
            ):
                _reconcile(demo, file, app)
            if waiting["attempt"] > 1 and not demo.ask:
                raise StackError(
                    f"{waiting['phase']} asks again",
                    why=str(status["why_waiting"]),
                    next_step=f"see {api.run_url(waiting['flow_run_id'])}",
                )
            if waiting["phase"] == Phase.PRE_TEST:
                _move_app(demo, file, app)
            if waiting["phase"] == Phase.ROLLBACK and waiting["gate"] == NEXT:
                demo.rolled_back = True  # what comes next is asked once the source has authority
            if demo.ask:
                say(f"  answer here: {api.run_url(waiting['flow_run_id'])}")
                _wait_answered(file, waiting)
            else:
                verdict = _verdict(demo, waiting)
                fields = _accepted(file, waiting)
                answer_open_decision(
                    file, api, verdict, by=_DECIDED_BY, why="demo script", fields=fields
                )
                say(f"  → {verdict}" + "".join(f", accepted: {names}" for names in fields.values()))
            answered.add(key)
            changed = time.monotonic()
        if status["phases"].get(Phase.COMMIT, {}).get("state") == "approved":
            break
        _stop_where_it_ends(demo, status, api, file)
        if time.monotonic() - changed > DEMO_PHASE_S and not demo.ask:
            raise StackError(
                f"no progress for {DEMO_PHASE_S:.0f} s",
                why=str(status["why_waiting"]),
                next_step=f"look at {api.ui} and {demo.home.logs}",
            )
        time.sleep(0.3)
    demo.phases = asyncio.run(_phase_rows(file))


# Findings of a move with a cluster that concern the demo's own application. A cluster has one
# database, and the shop uses one. Nobody can play the scripts that the shop calls.
# The demo's clusters have no replicas, and its services behind Sentinel have one.
_DEMO_ACCEPTS = frozenset(
    {"databases", "replicas of the target", "the trial is like the observed traffic"}
)


# Servers, gateways, the application and the load's player share this machine.
_BUSY_MACHINE = frozenset({NOT_JUDGED})


def _accepted(file: MigrationFile, waiting: Json) -> dict[str, object]:
    """Return the fields by which the demo accepts the open findings of a phase that it knows."""
    known = _BUSY_MACHINE | (_DEMO_ACCEPTS if file.plan.has_cluster else set())
    found = asyncio.run(open_findings(file, waiting["phase"])) & known
    return {"accept_findings": "\n".join(sorted(found))} if found else {}


async def open_findings(file: MigrationFile, phase: str) -> set[str]:
    """Return the names of the checks that a phase asks a person to accept."""
    async with await ControlStore.connect(file.control_store, file.plan.name) as store:
        report = await store.report(f"evidence.{phase}") or {}
    rows = [row for rows in report.get("frames", {}).values() for row in rows if "level" in row]
    return {row["check"] for row in rows if row["level"] == "should" and not row["ok"]}


def _verdict(demo: Demo, waiting: Json) -> str:
    """Approve everything. On the rollback path reject the finalise once."""
    finalise = waiting["phase"] == Phase.COMMIT and waiting["gate"] == FINALISE
    rejects = demo.path_taken is PathTaken.ROLLBACK and not demo.rolled_back
    return "reject" if finalise and rejects else "approve"


def _wait_answered(file: MigrationFile, waiting: Json) -> None:
    while True:
        now = asyncio.run(read_status(file))["waiting"]
        if now is None or (now["flow_run_id"], now["gate"], now["attempt"]) != (
            waiting["flow_run_id"],
            waiting["gate"],
            waiting["attempt"],
        ):
            return
        time.sleep(1)


def _stop_where_it_ends(demo: Demo, status: Json, api: PrefectApi, file: MigrationFile) -> None:
    for name, state in status["phases"].items():
        if state.get("state") == "failed":
            raise StackError(
                f"{name} failed",
                why=str(state.get("why", "")),
                next_step=f"look at {api.run_url(state['flow_run_id'])}",
            )
        if state.get("state") == "running" and (run := api.run(state["flow_run_id"]))["state"][
            "type"
        ] in ("FAILED", "CRASHED"):
            raise StackError(
                f"{name} failed: {run['state']['message']}",
                why=last_lines(demo.home.log("prefect-worker"), 40),
                next_step="read the log",
            )
        if state.get("state") == "rejected" and status["due"] is None:
            raise StackError(
                f"{name} was rejected",
                why="the demo cannot continue",
                next_step=f"exodus start {name}, in {file.plan.name}",
            )


async def _phase_rows(file: MigrationFile) -> list[Json]:
    rows: list[Json] = []
    async with await ControlStore.connect(file.control_store, file.plan.name) as store:
        started: dict[str, int] = {}
        for entry in await ledger.read(store):
            if entry.event == "started":
                started[entry.phase] = entry.at_ms
            elif entry.event == "decided":
                rows.append(
                    {
                        "name": entry.phase.value
                        + (
                            f" ({entry.gate})"
                            if entry.phase in (Phase.COMMIT, Phase.ROLLBACK)
                            else ""
                        ),
                        "state": "decided",
                        "decision": entry.verdict,
                        "decided_by": entry.decided_by,
                        "seconds": round(
                            (entry.at_ms - started.get(entry.phase, entry.at_ms)) / 1000, 1
                        ),
                    }
                )
    return rows


# ---------------------------------------------------------------------- reconciliation


def _reconcile(demo: Demo, file: MigrationFile, app: Started) -> None:
    """Stop the application. Compare the authority with its model, and the two sides."""
    _path(demo, "stop").touch()
    _wait(lambda: app.process.poll() is not None, app, "the application did not stop", 60)
    told = cast("Json", orjson.loads(_path(demo, "app.json").read_bytes()))
    if demo.tamper:
        tamper(asyncio.run(located(file.plan.target)))
    with ThreadPoolExecutor(1) as pool:  # both only read
        target = _url_of(file.plan.target, login=True)
        checking = pool.submit(_check_model, target, told["model"])
        # The shop's shortest expiries end, so that both counts include the same keys.
        time.sleep(DEMO_SHORT_TTL_S)
        found = asyncio.run(_compare(file))
        model = checking.result()
    demo.summary.update(
        keys_source=found["keys_follower"],
        keys_target=found["keys_authority"],
        divergences=found["divergences_total"],
        acknowledged_writes=told["acknowledged_writes"],
        lost_writes=model["lost_writes"],
        duplicated=model["duplicated"],
        resurrected_keys=model["resurrected_keys"],
        app_errors=told["app_errors"],
        **_failovers(file, told),
        max_write_stall_ms=told["max_write_stall_ms"],
        ttl_drift_ms_max=found["ttl_drift_ms_max"],
        unknown_writes=told["unknown_writes"],
    )
    _evidence(demo, "verification", found)
    _evidence(demo, "model", model)
    _evidence(demo, "application", told)
    for row in found["divergences"][:20]:
        say(f"  divergence: db{row['db']} {row['key']}: {row['kind']} ({row['detail']})")
    for text in model["problems"][:20]:
        say(f"  model: {text}")


def _failovers(file: MigrationFile, told: Json) -> Json:
    """Return what the source's failover did to the application, where the source is a service."""
    if not isinstance(file.plan.source, Service):
        return {}
    failovers = asyncio.run(read_status(file))["failovers"]
    return {
        "failovers": len(failovers),
        "failover": "; ".join(each["text"] for each in failovers),
        "lost_connections": told["lost_connections"],
    }


def _check_model(url: str, model: str) -> Json:
    """Compare the target with the application's model, in a process of the application."""
    checked = subprocess.run(  # noqa: S603 - a module of Exodus
        [sys.executable, "-m", "examples.shop", "check", "--model", model, "--url", url, "--json"],
        cwd=project_root(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if checked.returncode not in (0, 1) or not checked.stdout:
        raise StackError(
            "the application's model cannot be checked",
            why=checked.stderr[-2000:],
            next_step="look at examples/shop",
        )
    return cast("Json", orjson.loads(checked.stdout))


def tamper(address: Address) -> None:
    """Damage one side in each way that a verification must find.

    The damaged keys are keys that the shop does not write.
    """
    client = redis.Redis(
        host=address.host,
        port=address.port,
        username=address.username,
        password=address.secret("target"),
    )
    plain: list[bytes] = []
    timed: bytes | None = None
    for key in client.scan_iter(match="cold:*", count=1000, _type="string"):
        left_ms = client.pttl(key)
        if left_ms == -1:
            plain.append(key)
        elif left_ms > 60_000:
            timed = key
        if timed is not None and len(plain) >= 2:
            break
    else:
        raise OperatorError(
            "--tamper: too few keys to damage",
            why="it needs two keys without an expiry and one with an expiry",
            next_step="raise --keys",
        )
    value = cast("bytes", client.get(plain[0]))
    client.setrange(plain[0], 0, bytes([value[0] ^ 1]))
    client.delete(plain[1])
    client.set("spoiled:extra", "1")
    client.pexpire(timed, client.pttl(timed) + 1000)
    client.close()


async def _compare(file: MigrationFile) -> Json:
    """Compare both sides after the application has stopped and the journal is drained."""
    async with await ControlStore.connect(file.control_store, file.plan.name) as store:
        engine = await open_engine(store, await plan_of(store, file))
        deadline = time.monotonic() + 30
        while not await engine.feed.drained() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        report = (await verify(engine)).as_json()
        return {**report, "authority": str(engine.route.authority)}


def _evidence(demo: Demo, name: str, document: object) -> None:
    (demo.out / "evidence" / f"{name}.json").write_bytes(
        orjson.dumps(document, option=orjson.OPT_INDENT_2, default=str)
    )


def _judge(demo: Demo) -> bool:
    summary = demo.summary
    file = load_migration(demo.home.migration_file)
    reports = asyncio.run(_reports(file))
    for name, report in reports.items():
        _evidence(demo, name, report)
    migrated = (reports.get(f"evidence.{Phase.MIGRATE}") or {}).get("summary", {})
    summary["backfill_keys_per_s"] = migrated.get("keys_per_s")
    summary["phases"] = demo.phases
    summary["path_taken"] = demo.path_taken
    zero = ("divergences", "lost_writes", "duplicated", "resurrected_keys", "app_errors")
    summary["ok"] = (
        all(summary.get(name) == 0 for name in zero)
        and summary["acknowledged_writes"] > 0
        and summary.get("failovers", 1) == 1
        and asyncio.run(read_status(file))["authority"] == Side.TARGET
        and (demo.path_taken is PathTaken.COMMIT or demo.rolled_back)
    )
    return bool(summary["ok"])


async def _reports(file: MigrationFile) -> dict[str, Json]:
    async with await ControlStore.connect(file.control_store, file.plan.name) as store:
        names = [f"evidence.{phase}" for phase in Phase] + [
            "switch.commit",
            "switch.rollback",
            "rehearsal",
            "finalised",
            "profile.pre-test",
            "profile.analyze",
        ]
        found = {name: report for name in names if (report := await store.report(name)) is not None}
        found["ledger"] = {"entries": await ledger.read_stored(store)}
        return found


def _write(demo: Demo) -> None:
    (demo.out / "summary.json").write_bytes(
        orjson.dumps(demo.summary, option=orjson.OPT_INDENT_2, default=str)
    )
    show_table(
        "Phases",
        ["Phase", "Decision", "Decided by", "Seconds"],
        [(row["name"], row["decision"], row["decided_by"], row["seconds"]) for row in demo.phases],
    )
    show_table(
        "summary",
        ["what", "value"],
        [(key, value) for key, value in demo.summary.items() if key != "phases"],
    )
