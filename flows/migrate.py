"""Migrate: is progress healthy enough to continue? Copy under writes, then compare."""

from __future__ import annotations

from typing import Any

from prefect import unmapped
from prefect.client.schemas.objects import State

from exodus.control.letters import name_of
from exodus.plan.vocabulary import Phase
from flows.lifecycle import go_on
from flows.phase import MIGRATION, MigrationName, phase_flow
from tasks.artifacts import create_table_artifact
from tasks.backfill import backfill_look, copy_one_slice, count_backfill, slice_keyspace
from tasks.context import Json
from tasks.decision import ask, close_phase, migrate_form
from tasks.evidence import artifact_key, evaluate
from tasks.functions import carry_libraries
from tasks.ledger import open_phase
from tasks.live_sync import (
    accept_letters,
    mark_changed_meanwhile,
    repair_divergences,
    say_heavy_keys,
    start_live_sync,
    verify_all,
    wait_caught_up,
    why_letters_stand,
)
from tasks.native import count_filled, filling_look, watch_filling
from tasks.probe import check_sides
from tasks.progress import watched
from tasks.workers import workers_of

PHASE = Phase.MIGRATE


def copy_all(migration: str, live: Json) -> Json:
    """Copy all slices in rounds until each is done; continue from the checkpoints."""
    slices = slice_keyspace(migration)
    look = backfill_look(migration, live["run"])
    copy: Any = copy_one_slice
    left, attempt = slices, 0
    with workers_of(migration) as workers, watched(migration, PHASE, "backfill", look):
        while left:
            attempt += 1
            given = {
                "migration": migration,
                "backfill": live["run"],
                "writer_epoch": live["writer_epoch"],
                "attempt": attempt,
            }
            futures = workers.map(
                copy, {"slice_id": left, **{name: unmapped(value) for name, value in given.items()}}
            )
            done = {
                row["slice_id"] for row in (future.result() for future in futures) if row["done"]
            }
            left = [slice_id for slice_id in left if slice_id not in done]
    return count_backfill(migration, live["run"])


def _replicate(migration: str, live: Json) -> Json:
    """Let the servers fill the target, and show the progress."""
    attempt, done = 0, False
    with watched(migration, PHASE, "backfill", filling_look(migration)):
        while not done:
            attempt += 1
            done = watch_filling(migration, live["writer_epoch"], attempt)["done"]
    return count_filled(migration)


@phase_flow(PHASE)
def migrate(migration: MigrationName = MIGRATION) -> State[str]:
    """Copy everything while applications write, and prove that both sides are equal."""
    open_phase(migration, PHASE)
    check_sides(migration)
    live = start_live_sync(migration)  # before the first copy, so that no write falls between
    backfill = _replicate(migration, live) if live["native"] else copy_all(migration, live)
    changed = mark_changed_meanwhile(migration)
    live_now = wait_caught_up(migration)
    found = verify_all(migration, PHASE)
    if found["divergences_total"] or found["dead_letters"]:
        found = repair_divergences(migration, PHASE)
    row = {
        **{name: value for name, value in backfill.items() if not isinstance(value, dict)},
        "keys_authority": found["keys_authority"],
        "keys_follower": found["keys_follower"],
        "keys_verified": found["keys_verified"],
        "keys_left_out": found["keys_excluded"],
        "keys_dirty": found["keys_dirty"],
        "divergences": found["divergences_total"],
        "dead_letters": len(found["dead_letters"]),
        "open_gaps": len(found["open_gaps"]),
        "lag_entries": live_now["lag_entries"],
        "caught_up": live_now["caught_up"],
        "ttl_drift_ms_max": found["ttl_drift_ms_max"],
    }
    named = {"copied": "strategies", "not by MIGRATE": "not_sent", "filtered": "excluded"}
    how = [
        {"what": what, "how": how, "keys": count}
        for what, name in named.items()
        for how, count in backfill[name].items()
    ]
    how = how or [{"what": "copied", "how": "no key was seen", "keys": 0}]
    create_table_artifact(
        key=artifact_key(migration, PHASE, "strategies"),
        table=how,
        description="Copy strategies of the backfill, and filtered keys",
    )
    evaluate(migration, PHASE, {"reconciliation": [row]}, row)
    summary = [
        f"backfill: {backfill['keys_copied']:,} keys at {backfill['keys_per_s']:,.0f} keys/s; "
        f"seen {backfill['keys_seen']:,} = accounted {backfill['keys_accounted']:,}",
        f"verified {found['keys_verified']:,} of {found['keys_authority']:,} keys: "
        f"{found['divergences_total']} divergences, "
        f"{found['keys_dirty']} dirty; lag {live_now['lag_entries']} entries",
    ]
    summary += live["feeds"]
    summary += carry_libraries(migration, PHASE)
    if live["kept"]:
        summary.append(
            f"copy of an earlier attempt kept; {changed:,} keys changed while live sync was "
            "off and were copied again"
        )
    summary += say_heavy_keys(migration)
    if found["dead_letters"]:
        rows = [
            {"name": name_of(letter), "reason": letter["reason"], "attempts": letter["attempts"]}
            for letter in found["dead_letters"]
        ]
        create_table_artifact(
            key=artifact_key(migration, PHASE, "dead-letters"),
            table=rows,
            description="Keys that failed to copy",
        )
        summary.insert(
            0,
            f"{len(rows)} KEYS FAILED TO COPY: accept each by name, or repair: "
            + ", ".join(row["name"] for row in rows[:10]),
        )
    decision = ask(
        migrate_form(dead_letters=bool(found["dead_letters"])),
        migration=migration,
        phase=PHASE,
        gate="continue",
        question="Is progress healthy enough to continue?",
        summary=summary,
        evidence=f"evidence.{PHASE}",
        refuse=lambda answer, attempt: (
            why_letters_stand(migration, answer.get("accept_dead_letters", ""), attempt)
            if answer["decision"] == "approve"
            else None
        ),
    )
    if decision["verdict"] == "approve":
        accept_letters(
            migration, decision["facts"].get("accept_dead_letters", ""), decision["decided_by"]
        )
    ended = close_phase(migration, PHASE, decision)
    go_on(migration)
    return ended
