"""`exodus start`, `status`, `verify`, `dry-run`, `repair`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Annotated, Any

import orjson
import typer

from exodus.backfill.forecast import forecast
from exodus.backfill.progress import REPORT, ProgressMeter
from exodus.backfill.progress_view import count_keys, look_at_verification
from exodus.cancellation import beside
from exodus.cli.attesting import ByOption, attest
from exodus.cli.context import (
    FileOption,
    HomeOption,
    JsonOption,
    home_at,
    migration_at,
    open_store,
    plan_of,
)
from exodus.cli.output import say, show, show_json, show_table
from exodus.cli.prefect_api import PrefectApi
from exodus.cli.runs import ANSWERED, OPEN, STARTING, overlaid, run_ms, unwritten
from exodus.cli.waiting import WaitOption, wait_asked
from exodus.closing.archive import archived
from exodus.closing.finalise_checks import BY_HAND
from exodus.closing.redirect import read_redirect
from exodus.control import freshness, journal, ledger, registry
from exodus.control.approvers import of_this_process
from exodus.control.changes import Key
from exodus.control.heartbeats import Heartbeat
from exodus.control.ledger import BACK, NEXT, PhaseEnd
from exodus.control.letters import accepted_letters
from exodus.control.phase_order import check_may_begin, due_phase, text_of_end
from exodus.control.route import read_route
from exodus.control.store import ControlStore
from exodus.control.topology import read_failovers, read_topologies
from exodus.copy.impact import read_paces
from exodus.cutover.canary_share import read_canary, text_of
from exodus.cutover.feed_choice import chosen_feed
from exodus.cutover.fence import read_record
from exodus.cutover.levers import NOW, postponed
from exodus.engine import open_engine
from exodus.errors import DecisionRefused, OperatorError, OrchestratorError
from exodus.live.costly_keys import text_of as text_of_heavy
from exodus.net.client import answered
from exodus.plan.bounds import (
    CLI_ENDS_WITHIN_S,
    CLI_FAILOVERS_SHOWN,
    CLI_PROGRESS_MS,
    FORECAST_SAMPLE_KEYS,
    PROGRESS_EVERY_S,
)
from exodus.plan.migration_file import MigrationFile
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Phase, Side, UserRole
from exodus.safe_text import when
from exodus.shadow.repairs import repair_divergences
from exodus.verify.comparison import Depth
from exodus.verify.reconcile import dead_letters, keys_of, reconcile
from exodus.verify.reconcile import repair as sync_again

Json = dict[str, Any]
_LIFECYCLE = "lifecycle"


def start(
    phase: Annotated[
        str,
        typer.Argument(
            help="pre-test, analyze, compare, test, migrate, rollback, commit, or lifecycle"
        ),
    ],
    seconds: Annotated[
        float | None, typer.Option(help="seconds to watch traffic (pre-test, analyze, compare)")
    ] = None,
    why: Annotated[
        str | None,
        typer.Option(
            "--why", help="rollback: return to the source without a question; kept in the ledger"
        ),
    ] = None,
    by: ByOption = None,
    wait: WaitOption = False,
    file: FileOption = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Start a phase through its deployment.

    Examples: exodus start pre-test --wait; exodus start rollback --why "orders fail"
    """
    names = [*Phase, _LIFECYCLE]
    if phase not in names:
        raise OperatorError(
            f"{phase!r} is not a phase",
            why="a migration has seven phases",
            next_step=f"one of {', '.join(names)}",
        )
    migration = migration_at(file, home)
    api = PrefectApi.find(home_at(home))
    parameters: Json = {"migration": migration.plan.name}
    if seconds is not None:
        if phase not in (Phase.PRE_TEST, Phase.ANALYZE, Phase.COMPARE):
            raise OperatorError(
                f"--seconds: {phase} does not watch traffic",
                why="pre-test, analyze and compare do",
                next_step="omit --seconds",
            )
        parameters["seconds"] = seconds
    if why is not None or by is not None:
        if phase != Phase.ROLLBACK or not why:
            raise OperatorError(
                "--why and --by require phase rollback and --why",
                why="other phases ask first",
                next_step="exodus approve, when the phase asks",
            )
        parameters.update(decided_by=by or of_this_process().person, why=why)
    asyncio.run(_check_start(migration, api, phase))
    run = api.start(phase, parameters)
    if "why" in parameters:
        attest(
            migration,
            {"flow_run_id": run["id"], "gate": BACK, "attempt": 1},
            {"decision": "approve", **parameters},
        )
    if json:
        show_json({"flow_run_id": run["id"], "name": run["name"], "url": api.run_url(run["id"])})
    else:
        show(f"started {run['name']}: {api.run_url(run['id'])}")
    if wait:
        wait_asked(migration, api, run["id"], read_status)


async def _check_start(migration: MigrationFile, api: PrefectApi, phase: str) -> None:
    """Check that a phase may begin, as its run will. An answered phase gets some seconds to end.

    Raises:
        DecisionRefused: it may not begin. No run was made.
    """
    deadline = time.monotonic() + CLI_ENDS_WITHIN_S
    while True:
        status = await read_status(migration, api)
        going_on = next(
            (name for name in status["phases"] if status["phases"][name].get("state") in OPEN), None
        )
        if going_on is None or (phase == Phase.ROLLBACK and going_on != Phase.ROLLBACK):
            break
        state = status["phases"][going_on]
        if time.monotonic() > deadline or (
            state["state"] != ANSWERED
            and (state["state"], "decision" in state) != ("running", True)
        ):
            raise DecisionRefused(
                f"{phase} may not begin: {going_on} is {state['state']}",
                why=f"{status['why_waiting']}; phases run one after the other",
                next_step=status["what_unblocks"],
            )
        await asyncio.sleep(1)
    async with await open_store(migration) as store:
        if phase != _LIFECYCLE:
            await check_may_begin(store, await store.plan(), Phase(phase))
        elif status["due"] is None or status["state"] == "done":
            raise DecisionRefused(
                "no phase is due", why=status["why_waiting"], next_step=status["what_unblocks"]
            )


# ---------------------------------------------------------------------- status


def _beat(beat: Heartbeat, now_ms: int) -> Json:
    return {
        "process": beat.process,
        "state": "gone" if beat.stale(now_ms) else beat.state,
        "why": beat.why,
        "epoch": beat.epoch,
        "age_s": max(0.0, round(beat.age_s(now_ms), 1)),
        **beat.shown_facts(),
    }


def _waiting(phases: dict[str, Json]) -> Json | None:
    for name, state in phases.items():
        if state.get("state") == "waiting":
            return {"phase": name, **state}
    return None


def _with_runs(
    phases: dict[str, Json], migration: str, api: PrefectApi | None, since_ms: int
) -> tuple[dict[str, Json], str]:
    """Return the phases' states with their runs in Prefect, and why Prefect was not asked.

    Runs before `since_ms` belong to an archived migration of the same name.
    """
    if api is None:
        return phases, "no Prefect server is known"
    try:
        newest = {
            name: run
            for name, run in api.newest_runs(migration).items()
            if run_ms(run["created"]) >= since_ms
        }
        by_id = {run["id"]: run for run in newest.values()}
        names = {name: str(state.get("flow_run_id")) for name, state in phases.items()}
        by_id |= api.runs(run_id for run_id in names.values() if run_id not in (*by_id, "None"))
    except OrchestratorError as exc:
        return phases, f"{exc.what}: {exc.why}"
    named = {name: by_id[run_id] for name, run_id in names.items() if run_id in by_id}
    found = overlaid(phases, newest, named)
    for state in found.values():
        if state.get("by_prefect") and (error := api.last_error(state["flow_run_id"])):
            state["why"] = f"{error} ({state['why']})"
    return found, ""


_SHOWN_OF_END = {"at_ms", "decided_by", "why", "flow_run_id"}
_AFTER = {
    PhaseEnd.FINALISED: "follow the checklist of commit's run (artifact checklist); then "
    "exodus archive",
    PhaseEnd.ABANDONED: "no action needed; exodus archive stores the evidence and frees the name",
}


def _not_registered(name: str, before: list[Json]) -> str:
    """Return the reason why the control store has no plan of this name."""
    if not before:
        return f"{name} is not registered in the control store"
    return f"{name} was archived at {when(before[-1]['archived_ms'])}: {before[-1]['folder']}"


def _not_taken_up(phases: dict[str, Json]) -> tuple[str, str, str] | None:
    """Return state, reason and remedy of a run that was started or answered and has not begun."""
    for name, state in phases.items():
        if state.get("state") not in (ANSWERED, STARTING):
            continue
        if state["run_state"] in ("Running", "Pending", "Submitting"):
            how, unblocks = f"its run begins ({state['run_state']})", "no action needed"
        else:
            how = f"no Prefect worker has taken its run yet (it is {state['run_state']})"
            unblocks = (
                "no action needed for some seconds; then start a worker of its work "
                "pool (local stack: exodus up)"
            )
        did = "is answered" if state["state"] == ANSWERED else "is started"
        return str(state["state"]), f"{name} {did}, and {how}", unblocks
    return None


async def read_status(migration: MigrationFile, api: PrefectApi | None = None) -> Json:
    """Return all that `status` shows, as JSON.

    With `api` it includes ends of runs that no phase recorded.

    Raises:
        ControlStoreError: the store does not answer.
    """
    async with await open_store(migration) as store:
        now_ms = await store.now_ms()
        route = await read_route(store)
        before = await archived(store, store.migration)
        since_ms = int(before[-1]["archived_ms"]) if before else 0
        phases, prefect_away = _with_runs(
            {name: state.as_json() for name, state in (await store.phases()).items()},
            migration.plan.name,
            api,
            since_ms,
        )
        waiting = _waiting(phases)
        lost = unwritten(phases)
        entries = await ledger.read(store)
        due, end = due_phase(entries, migration.plan), ledger.ending(entries)
        registered = bool(await answered(store.client.exists(store.keys.plan)))
        switching = await store.report(NOW)
        ended = sorted(phases.items(), key=lambda pair: int(pair[1].get("finished_ms", 0)))
        failed = {name: state for name, state in ended if state.get("state") == "failed"}
        if not registered:
            stands = "not registered"
            why, unblocks = _not_registered(store.migration, before), "exodus apply migration.yaml"
        elif end is not None:
            stands, why, unblocks = (
                "done",
                f"the migration is done: {text_of_end(*end)}",
                _AFTER[end[0]],
            )
            waiting = lost = None
        elif lost is not None:
            stands = "failed"
            name, state = lost
            why, unblocks = (
                f"{name} failed and could not record it: {state['why']}",
                f"correct the cause, then: exodus start {name}",
            )
            if waiting is not None:
                unblocks += (
                    f"; {waiting['phase']} still asks: answer it only if you do not "
                    f"want {name} any more"
                )
        elif waiting is not None:
            stands = "asks"
            words = (
                "answer retry, or exodus answer abandon"
                if waiting["gate"] == NEXT
                else "approve, or exodus reject"
            )
            why, unblocks = (
                f"{waiting['phase']} asks: {waiting['question']}",
                f"exodus {words} (or the form in the Prefect UI)",
            )
        elif (between := _not_taken_up(phases)) is not None:
            stands, why, unblocks = between
        elif running := [name for name, state in phases.items() if state.get("state") == "running"]:
            stands = "running"
            why, unblocks = (
                f"{running[0]} is running",
                "no action needed; you will be prompted when it finishes",
            )
            if switching is not None and switching["waits_for"]:
                why, unblocks = (
                    f"the switch waits: {switching['waits_for']}",
                    "exodus release if it is postponed; exodus abort to give it up",
                )
        elif failed:
            stands = "failed"
            name, state = list(failed.items())[-1]
            why, unblocks = (
                f"{name} failed: {state.get('why', '')}",
                f"look at its run, correct the cause, then: exodus start {name}",
            )
        else:
            stands = "idle"
            why, unblocks = (
                ("no phase is running", f"exodus start {due}")
                if due
                else ("no phase is due", "exodus start PHASE")
            )
        verification = await store.report(f"verification.{Phase.MIGRATE}")
        return {
            "migration": migration.plan.name,
            "state": stands,
            "ended": None
            if end is None
            else {"how": str(end[0]), **end[1].model_dump(mode="json", include=_SHOWN_OF_END)},
            "authority": str(route.authority),
            "route": route.model_dump(mode="json"),
            "phases": phases,
            "waiting": waiting,
            "why_waiting": why,
            "what_unblocks": unblocks,
            "failed_run": None if lost is None else {"phase": lost[0], **lost[1]},
            "failed": list(failed),
            "prefect_away": prefect_away,
            "due": due,
            "switch": switching,
            "canary": await read_canary(store),
            "redirect": await read_redirect(store),
            "postponed": await postponed(store),
            "fences": {
                str(side): record.kind
                for side in Side
                if (record := await read_record(store, side)) is not None
            },
            "gateways": [
                _beat(beat, now_ms) for beat in await registry.heartbeats(store, "gateway")
            ],
            "syncers": [_beat(beat, now_ms) for beat in await registry.heartbeats(store, "syncer")],
            "comparers": [
                _beat(beat, now_ms) for beat in await registry.heartbeats(store, "comparer")
            ],
            "lag_entries": await journal.lag_entries(store, migration.plan.partitions),
            "topology": {
                str(side): each.model_dump(mode="json")
                for side, each in (await read_topologies(store)).items()
            },
            "failovers": [
                {**each.model_dump(mode="json"), "text": each.text}
                for each in await read_failovers(store)
            ],
            "feeds": {
                str(side): (await chosen_feed(store, migration.plan, side)).text(side)
                for side in Side
            },
            "progress": await _progress(store),
            "pace": [report.model_dump() for report in await read_paces(store)],
            "freshness": await _freshness(store, migration.plan.partitions),
            "accepted_letters": list((await accepted_letters(store)).values()),
            "dead_letters": [
                orjson.loads(raw)
                for raw in (await answered(store.client.hgetall(store.keys.dead))).values()
            ],
            "open_gaps": [
                orjson.loads(raw)
                for raw in (await answered(store.client.hgetall(store.keys.gap))).values()
            ],
            "verified": None
            if verification is None
            else {
                key: verification[key]
                for key in ("keys_verified", "keys_authority", "divergences_total", "at_ms")
            },
        }


async def _progress(store: ControlStore) -> Json | None:
    """Return the progress of the running backfill or verification."""
    found = await store.report(REPORT)
    return (
        found
        if found is not None and await store.now_ms() - found["at_ms"] < CLI_PROGRESS_MS
        else None
    )


async def _freshness(store: ControlStore, partitions: int) -> Json:
    fresh = await freshness.read_freshness(store, partitions)
    return {**fresh.model_dump(), "share": fresh.share, "text": str(fresh)}


def _show(status: Json, api: PrefectApi | None) -> None:
    states = [(name, status["phases"].get(name, {})) for name in Phase]
    rows = [
        (name, state.get("state", "–"), state.get("decision", ""), state.get("decided_by", ""))
        for name, state in states
    ]
    show(f"migration {status['migration']}: {status['state']}")
    show_table("Phases", ["Phase", "State", "Decision", "Decided by"], rows)
    beats = [
        (kind, beat) for kind in ("gateway", "syncer", "comparer") for beat in status[f"{kind}s"]
    ]
    processes = [
        (kind, beat["process"], beat["state"], beat["epoch"], f"{beat['age_s']} s ago", beat["why"])
        for kind, beat in beats
    ]
    show_table("Processes", ["Kind", "Id", "State", "Epoch", "Last heartbeat", "Why"], processes)
    show(
        f"authority {status['authority']} · epoch {status['route']['epoch']} · journal "
        f"{status['route']['journal']} · "
        f"lag {status['lag_entries']} entries · dead letters {len(status['dead_letters'])} · "
        f"open gaps {len(status['open_gaps'])}"
        + "".join(f" · {side} fenced ({kind})" for side, kind in status["fences"].items())
    )
    for side, service in status["topology"].items():
        show(
            f"{side}: master {service['master']}, replicas {service['replicas'] or 'none'} "
            f"(topology epoch {service['epoch']})"
        )
    for failover in status["failovers"][-CLI_FAILOVERS_SHOWN:]:
        show(f"{when(failover['at_ms'])}: {failover['text']}")
    show(status["feeds"][status["authority"]])
    for gap in status["open_gaps"]:
        show(f"open gap: {gap.get('why', '')}")
    if status["progress"] is not None:
        show(status["progress"]["text"])
    for beat in status["syncers"]:
        for row in beat.get("heavy", []):
            show(f"warning: {text_of_heavy(row)}")
    for pace in status["pace"]:
        spent = (
            f"probe p99 {pace['probe_ms_p99']} ms (before: {pace['probe_ms_baseline']} "
            f"ms), {pace['server_cpu_share'] * 100:.0f} % of a core"
        )
        if pace["applications_cpu_share"] is not None:
            spent += f" ({pace['applications_cpu_share'] * 100:.0f} % without Exodus)"
        show(
            f"{pace['what']}: pause {pace['pause_ms']} ms a batch · "
            f"{spent}{' · ' + pace['why'] if pace['why'] else ''}"
        )
    for facts in (beat for beat in status["syncers"] if "probe_lag_ms_p50" in beat):
        why = f" · {facts['probe_why']}" if facts["probe_why"] else ""
        slowest = f" (slowest: {facts['probe_slowest']})" if facts.get("probe_slowest") else ""
        show(
            f"write to follower{slowest}: p50 {facts['probe_lag_ms_p50']} ms, p99 "
            f"{facts['probe_lag_ms_p99']} ms{why}"
        )
    show(f"freshness: {status['freshness']['text']}")
    if status["canary"]["percent"] or status["canary"]["gave_up"]:
        show(f"canary: {status['canary']['percent']:g} % of the keys, {text_of(status['canary'])}")
    waiting: Any = status["waiting"] if status["failed_run"] is None else None
    show(f"waiting: {status['why_waiting']}", f"next:    {status['what_unblocks']}")
    failed = [status["phases"][name] for name in status["failed"]]
    if api is not None and status["state"] == "failed" and failed and failed[-1].get("flow_run_id"):
        at_fault = status["failed_run"] or failed[-1]
        show(f"run:     {api.run_url(at_fault['flow_run_id'])}")
    if waiting is not None and api is not None:
        show(
            f"form:    {api.run_url(waiting['flow_run_id'])}"
            + (
                f" ({status['prefect_away']}; local stack: exodus up restarts it)"
                if status["prefect_away"]
                else ""
            )
        )


def status(
    file: FileOption = None,
    home: HomeOption = None,
    json: JsonOption = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="repeat every second until Ctrl-C")
    ] = False,
) -> None:
    """Show the state of the migration, what it waits for, and what unblocks it.

    Example: exodus status --watch
    """
    migration = migration_at(file, home)
    api = PrefectApi.known(home_at(home)) if json else PrefectApi.find(home_at(home))
    while True:
        found = asyncio.run(read_status(migration, api))
        if json:
            show_json(found)
        else:
            _show(found, api)
        if not watch:
            return
        time.sleep(1)


# ---------------------------------------------------------------------- verification


async def _tell_verification(store: ControlStore, plan: Plan) -> None:
    """Print the progress of the verification on standard error, every few seconds."""
    total, meter = (
        await count_keys(plan.acting(UserRole.VERIFIER), *Side),
        ProgressMeter("verification"),
    )
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        if (found := await look_at_verification(store, BY_HAND, total)) is not None:
            say(meter.look(time.monotonic(), found).text)


async def _verify(
    store: ControlStore,
    plan: Plan,
    *,
    fix: bool,
    depth: Depth = Depth.FULL,
    share: float = 1.0,
    remove_extra: bool = False,
) -> Json:
    engine = await open_engine(store, plan.acting(UserRole.VERIFIER))
    async with beside(_tell_verification(store, plan)):
        report = await reconcile(engine, BY_HAND, depth=depth, share=share)
    if fix and report["divergences"]:
        left = await sync_again(
            await open_engine(store, plan), keys_of(report), remove_extra=remove_extra
        )
        report = await reconcile(engine, BY_HAND, depth=depth, share=share)
        report["not_repaired"] = _reasons(left)
    return report


def _reasons(left: Mapping[Key, str]) -> list[Json]:
    return [
        {"db": db, "key": key.decode("utf-8", "backslashreplace"), "why": why}
        for (db, key), why in left.items()
    ]


def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="copy what differs, then verify again")
    ] = False,
    depth: Annotated[
        Depth,
        typer.Option(help="count: names; outline: also type, length and expiry; full: also values"),
    ] = Depth.FULL,
    sample: Annotated[
        float,
        typer.Option(
            min=0.0001, max=1, help="share of keys to compare, by the hash of their names"
        ),
    ] = 1.0,
    file: FileOption = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Compare keys of both sides in both directions; exit status 1 if any differs.

    Example: exodus verify --depth outline --sample 0.1
    """
    migration = migration_at(file, home)

    async def work() -> Json:
        async with await open_store(migration) as store:
            plan = await plan_of(store, migration)
            return await _verify(store, plan, fix=repair, depth=depth, share=sample)

    report = asyncio.run(work())
    if json:
        show_json(report)
    else:
        show(
            f"{report['keys_verified']} of {report['keys_authority']} keys verified, "
            f"{report['divergences_total']} divergences, {report['seconds']} s"
        )
        for rule, count in report["excluded"].items():
            show(f"  {count} filtered keys: {rule}")
        for row in report["divergences"][:20]:
            show(f"  db{row['db']} {row['key']}: {row['kind']} ({row['detail']})")
        for row in report.get("not_repaired", ())[:20]:
            show(f"  db{row['db']} {row['key']} not repaired: {row['why']}")
    if report["divergences_total"]:
        raise typer.Exit(1)


def dry_run(
    sample: Annotated[int, typer.Option(min=1, help="keys to sample")] = FORECAST_SAMPLE_KEYS,
    file: FileOption = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Show for a sample how keys would be copied, and why. Copy nothing.

    Example: exodus dry-run --sample 10000
    """
    migration = migration_at(file, home)

    async def work() -> list[Json]:
        async with await open_store(migration) as store:
            engine = await open_engine(store, await plan_of(store, migration))
            return await forecast(engine, sample)

    rows = asyncio.run(work())
    if json:
        show_json(rows)
    else:
        columns = ["strategy", "reason", "type", "size", "keys_sampled", "keys_estimated"]
        show_table("Dry run", columns, [[row[column] for column in columns] for row in rows])


def repair(
    remove_extra: Annotated[
        bool,
        typer.Option(
            "--remove-extra", help="compare both sides and remove keys that only the follower has"
        ),
    ] = False,
    file: FileOption = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Copy dead letters again, accepted ones too, and keys of confirmed divergences.

    Keys that only the follower has stay, unless you give --remove-extra. Example: exodus repair
    """
    migration = migration_at(file, home)

    async def work() -> Json:
        async with await open_store(migration) as store:
            plan = await plan_of(store, migration)
            engine = await open_engine(store, plan)
            keys = await dead_letters(store)
            if engine.route.authority is Side.SOURCE:
                # After a cutover a copy would remove what stayed behind there
                keys += await accepted_letters(store)
            failed = await sync_again(engine, keys, remove_extra=remove_extra)
            done: Json = {
                "tried": len(keys),
                "carried": len(keys) - len(failed),
                "failed": _reasons(failed),
            }
            ledger = await repair_divergences(engine, remove_extra=remove_extra)
            done["divergences"] = ledger
            if remove_extra:
                report = await _verify(store, plan, fix=True, remove_extra=True)
                done |= {
                    "divergences_total": report["divergences_total"],
                    "failed": done["failed"] + report.get("not_repaired", []),
                }
            return done

    done = asyncio.run(work())
    if json:
        show_json(done)
    else:
        show(
            f"{done['carried']} of {done['tried']} dead letters copied"
            + (
                f"; still failing: {', '.join(row['key'] for row in done['failed'][:20])}"
                if done["failed"]
                else ""
            )
        )
        ledger = done["divergences"]
        if ledger["tried"]:
            show(f"{ledger['healed']} of {ledger['tried']} divergences healed")
        for row in ledger["left"][:20]:
            show(f"  {row['name']}: {row['why']}")
        if remove_extra:
            show(f"{done['divergences_total']} divergences left")
    if done["failed"] or done["divergences"]["left"]:
        raise typer.Exit(1)
