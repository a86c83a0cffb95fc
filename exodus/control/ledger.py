"""The ledger: who decided what, when, why, and on which evidence. Entries are appended and never
changed.

Each entry has the digest of the entry before (`before`), so an edit, a removal, or a new order
shows (`broken`). Whoever can write to the control store can write a whole new chain. The head of a
bundle, kept elsewhere, reveals that (`exodus/closing/bundle.py`).

A phase may begin if the ledger holds the approvals it builds on, with fresh evidence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import WatchError

from exodus.control.store import ControlStore, Json
from exodus.net.client import answered
from exodus.plan.vocabulary import Phase

FIRST = "0" * 64  # what the first entry carries


class LedgerEntry(BaseModel):
    """One decision, or the end of a phase."""

    model_config = ConfigDict(extra="forbid")

    at_ms: int  # by the control store's clock
    phase: Phase
    event: Literal["decided", "started", "finished", "failed", "switched", "noted", "applied"]
    gate: str = ""  # which decision of the phase
    verdict: str = ""  # approve, reject, retry, abandon …
    decided_by: str = ""  # as typed
    person: str = ""  # who the rules take it for
    known_by: str = ""  # how that is known: typed, or the operating system
    identity: str = ""  # what else that source says, such as a uid and a host
    why: str = ""
    evidence: str = ""  # name of the report
    evidence_digest: str = ""  # SHA-256 of the evidence as it was shown
    flow_run_id: str = ""
    facts: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    before: str = ""  # digest of the entry before, as it is stored


def digest(evidence: object) -> str:
    """SHA-256 of a piece of evidence in canonical JSON."""
    return hashlib.sha256(
        orjson.dumps(evidence, default=str, option=orjson.OPT_SORT_KEYS)
    ).hexdigest()


async def record(store: ControlStore, entry: LedgerEntry) -> None:
    """Append an entry, once: a flow that runs again from the top after a resume must not decide
    twice.

    Two entries are the same when phase, event, gate, verdict and flow run are. Where another writer
    appends meanwhile, this begins anew, so the chain has no fork.
    """
    while True:
        async with store.client.pipeline(transaction=True) as pipe:
            await pipe.watch(store.keys.ledger)
            entries = await read_stored(store)
            for earlier in map(LedgerEntry.model_validate, entries):
                same = (
                    earlier.phase,
                    earlier.event,
                    earlier.gate,
                    earlier.verdict,
                    earlier.flow_run_id,
                )
                if entry.flow_run_id and same == (
                    entry.phase,
                    entry.event,
                    entry.gate,
                    entry.verdict,
                    entry.flow_run_id,
                ):
                    return
            chained = entry.model_copy(update={"before": digest(entries[-1]) if entries else FIRST})
            pipe.multi()
            pipe.xadd(store.keys.ledger, {"entry": chained.model_dump_json()})
            try:
                await pipe.execute()
            except WatchError:
                continue
            return


async def read(store: ControlStore) -> list[LedgerEntry]:
    """Return every entry, oldest first."""
    return [LedgerEntry.model_validate(entry) for entry in await read_stored(store)]


async def read_stored(store: ControlStore) -> list[Json]:
    """Return every entry as it is stored, oldest first: the links of the chain."""
    raw = await answered(store.client.xrange(store.keys.ledger))
    return [orjson.loads(fields[b"entry"]) for _, fields in raw]


def broken(entries: Sequence[Json]) -> list[str]:
    """Return where the chain of stored entries does not hold; empty where it does."""
    chain = [FIRST, *(digest(entry) for entry in entries)]
    return [
        f"ledger: entry {number} does not follow the one before it; an entry was changed, "
        "removed, added or moved"
        for number, (entry, before) in enumerate(zip(entries, chain, strict=False), 1)
        if entry.get("before") != before
    ]


def last_decision(entries: list[LedgerEntry], phase: Phase, gate: str = "") -> LedgerEntry | None:
    """Return the newest decision of a phase (of one of its gates, where named)."""
    for entry in reversed(entries):
        if entry.event == "decided" and entry.phase is phase and gate in ("", entry.gate):
            return entry
    return None


class PhaseEnd(StrEnum):
    """How a migration ended for good."""

    FINALISED = "finalised"  # the target is the authority, and there is no way back
    ABANDONED = "abandoned"  # the source is the authority, and Exodus has left both sides


def ending(entries: Sequence[LedgerEntry]) -> tuple[PhaseEnd, LedgerEntry] | None:
    """Return how a migration ended, and the decision that ended it; None where it goes on.

    The decision alone is not the end: its run has to have done what was decided. Nothing that
    stands in the ledger after that takes the end back.
    """
    finished = {(entry.phase, entry.flow_run_id) for entry in entries if entry.event == "finished"}
    for entry in entries:
        if entry.event != "decided" or (entry.phase, entry.flow_run_id) not in finished:
            continue
        decided = (entry.phase, entry.gate, entry.verdict)
        if decided == (Phase.COMMIT, FINALISE, "approve"):
            return PhaseEnd.FINALISED, entry
        if decided == (Phase.ROLLBACK, NEXT, "abandon"):
            return PhaseEnd.ABANDONED, entry
    return None


FORWARD = (Phase.PRE_TEST, Phase.ANALYZE, Phase.COMPARE, Phase.TEST, Phase.MIGRATE, Phase.COMMIT)
CUTOVER = "cutover"  # the first gate of Commit
FINALISE = "finalise"  # the second gate of Commit
# With the percentage: gates of Commit before CUTOVER, which decide nothing but their share
CANARY = "canary-"
BACK = "back"  # the first gate of Rollback
NEXT = "next"  # the second gate of Rollback: retry or abandon
REHEARSAL = "rehearsal"  # what a changed plan can void beside phases' approvals
VERIFICATION = "verification"


def next_due(entries: list[LedgerEntry]) -> Phase | None:
    """Return the phase that the decisions call for; None where a person decides first, or nothing
    is left.

    A rejection holds the migration where it is. After a cutover that is not to be finalised comes
    Rollback; after Rollback, Migrate once more, or nothing where it was abandoned.
    """
    due: Phase | None = Phase.PRE_TEST
    for entry in entries:
        voided = [phase for phase in FORWARD if phase in voided_by(entry)]
        if (
            voided
            and due is not None
            and due in FORWARD
            and FORWARD.index(due) > FORWARD.index(voided[0])
        ):
            due = voided[0]
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


def voided_by(entry: LedgerEntry) -> frozenset[str]:
    """Return what a plan that was applied voids: names of phases, `REHEARSAL`, `VERIFICATION`."""
    if entry.event != "applied":
        return frozenset()
    return frozenset(str(entry.facts.get("voids", "")).split(",")) - {""}


def voided_ms(entries: Sequence[LedgerEntry], what: str) -> int | None:
    """Return when a changed plan voided something last, or None."""
    return next((entry.at_ms for entry in reversed(entries) if what in voided_by(entry)), None)


def approved_since(entries: list[LedgerEntry], phase: Phase) -> LedgerEntry | None:
    """Return the newest decision of a phase if it is an approval that no newer plan voided; else
    None.
    """
    for entry in reversed(entries):
        if phase in voided_by(entry):
            return None
        if entry.event == "decided" and entry.phase is phase:
            return entry if entry.verdict == "approve" else None
    return None
