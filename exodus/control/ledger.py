"""The ledger: who decided what, when, why and on which evidence. Entries are appended and never changed.

A phase may begin when the ledger says that what it builds on was approved and that the evidence for it is fresh.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from exodus.config import Phase
from exodus.control.store import ControlStore, answered


class LedgerEntry(BaseModel):
    """One decision, or the end of a phase."""

    model_config = ConfigDict(extra="forbid")

    at_ms: int  # by the control store's clock
    phase: Phase
    event: Literal["decided", "started", "finished", "failed", "switched", "noted"]
    gate: str = ""  # which decision of the phase
    verdict: str = ""  # approve, reject, retry, abandon …
    decided_by: str = ""
    why: str = ""
    evidence: str = ""  # name of the report
    evidence_digest: str = ""  # SHA-256 of the evidence as it was shown
    flow_run_id: str = ""
    facts: dict[str, str | int | float | bool | None] = Field(default_factory=dict)


def digest(evidence: object) -> str:
    """SHA-256 of a piece of evidence in canonical JSON."""
    return hashlib.sha256(orjson.dumps(evidence, default=str, option=orjson.OPT_SORT_KEYS)).hexdigest()


async def record(store: ControlStore, entry: LedgerEntry) -> None:
    """Append an entry, once: a flow that runs again from the top after a resume must not decide twice.

    Two entries are the same when phase, event, gate, verdict and flow run are.
    """
    for earlier in await read(store):
        same = (earlier.phase, earlier.event, earlier.gate, earlier.verdict, earlier.flow_run_id)
        if entry.flow_run_id and same == (entry.phase, entry.event, entry.gate, entry.verdict, entry.flow_run_id):
            return
    await answered(store.client.xadd(store.keys.ledger, {"entry": entry.model_dump_json()}))


async def read(store: ControlStore) -> list[LedgerEntry]:
    """Every entry, oldest first."""
    raw = await answered(store.client.xrange(store.keys.ledger))
    return [LedgerEntry.model_validate_json(fields[b"entry"]) for _, fields in raw]


def last_decision(entries: list[LedgerEntry], phase: Phase, gate: str = "") -> LedgerEntry | None:
    """The newest decision of a phase (of one of its gates, where named)."""
    for entry in reversed(entries):
        if entry.event == "decided" and entry.phase is phase and gate in ("", entry.gate):
            return entry
    return None


FORWARD = (Phase.PRE_TEST, Phase.ANALYZE, Phase.COMPARE, Phase.TEST, Phase.MIGRATE, Phase.COMMIT)
CUTOVER = "cutover"  # the first gate of Commit
FINALISE = "finalise"  # the second gate of Commit
CANARY = "canary-"  # with the percentage: gates of Commit before CUTOVER, which decide nothing but their share
NEXT = "next"  # the second gate of Rollback: retry or abandon


def next_due(entries: list[LedgerEntry]) -> Phase | None:
    """The phase that the decisions so far call for, or None where a person has to decide first (or nothing is left).

    A rejection holds the migration where it is. After a cutover that is not to be finalised comes Rollback; after Rollback, Migrate once
    more, or nothing where it was abandoned.
    """
    due: Phase | None = Phase.PRE_TEST
    for entry in entries:
        if entry.event != "decided":
            continue
        if entry.phase is Phase.ROLLBACK:
            if entry.gate == NEXT:
                due = Phase.MIGRATE if entry.verdict == "retry" else None
            else:
                due = Phase.ROLLBACK if entry.verdict == "approve" else None
        elif entry.phase is Phase.COMMIT:
            if entry.gate.startswith(CANARY):
                continue
            if entry.gate == FINALISE:
                due = None if entry.verdict == "approve" else Phase.ROLLBACK
            else:
                due = Phase.COMMIT if entry.verdict == "approve" else None
        elif entry.verdict == "approve":
            due = FORWARD[FORWARD.index(entry.phase) + 1]
        else:
            due = None
    return due


def approved_since(entries: list[LedgerEntry], phase: Phase) -> LedgerEntry | None:
    """The newest decision of a phase where it is an approval; None where it was rejected or never taken."""
    decision = last_decision(entries, phase)
    return decision if decision is not None and decision.verdict == "approve" else None
