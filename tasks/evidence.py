"""Evidence: the frames of a phase, what the gates found in them, and the artifacts that show both.

One task evaluates all gates of a phase, because importing Great Expectations takes seconds.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from exodus.control.phases import PhaseState, PhaseStatus
from exodus.errors import EvidenceFailed
from exodus.plan.bounds import TASKS_EVIDENCE_REASONS_MAX, TASKS_EVIDENCE_ROWS_MAX
from exodus.safe_text import markdown
from tasks.artifacts import (
    create_markdown_artifact,
    create_plot_artifact,
    create_table_artifact,
)
from tasks.context import Json, opened, run
from tasks.data_docs import write_data_docs
from tasks.gates import Judged, judge
from tasks.kept import kept_task
from tasks.plots import draw

log = logging.getLogger(__name__)


def artifact_key(*parts: str) -> str:
    """Return a key as Prefect requires it: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


@kept_task("Evaluate the evidence")
def evaluate(
    migration: str,
    phase: str,
    frames: dict[str, list[Json]],
    summary: dict[str, Any],
    lists: dict[str, list[Json]] | None = None,
) -> Json:
    """Show the frames, run each gate over its frame, and keep both as the phase's report.

    Args:
        migration: name of the Migration block.
        phase: the phase.
        frames: gate name → rows. `expectations` has the gates.
        summary: single figures of the phase.
        lists: rows that are shown and kept, without a gate.

    Raises:
        EvidenceFailed: a gate did not pass. The artifacts show which, and why.
    """
    import pandas as pd

    judged = judge({name: pd.DataFrame(rows) for name, rows in frames.items()})
    gates = judged.rows
    docs = _data_docs(judged, migration, phase)
    for name, rows in frames.items():
        create_table_artifact(
            key=artifact_key(migration, phase, name),
            table=rows[:TASKS_EVIDENCE_ROWS_MAX],
            description=f"{phase}: {name}",
        )
    for name, rows in (lists or {}).items():
        if rows:
            create_table_artifact(
                key=artifact_key(migration, phase, name),
                table=rows[:TASKS_EVIDENCE_ROWS_MAX],
                description=f"{phase}: {name}",
            )
    plots = draw(frames, lists or {})
    for name, svg in plots.items():
        create_plot_artifact(
            key=artifact_key(migration, phase, name), svg=svg, description=f"{phase}: {name}"
        )
    create_table_artifact(
        key=artifact_key(migration, phase, "gates"),
        table=gates,
        description=f"{phase}: gates over the evidence",
    )
    lines = [
        f"# {phase}: evidence",
        "",
        "| What | Value |",
        "|---|---|",
        *(
            f"| {markdown(key)} | {markdown(value)} |"
            for key, value in {**summary, "data docs": docs.get("index") or docs["why"]}.items()
        ),
    ]
    create_markdown_artifact(
        key=artifact_key(migration, phase, "summary"),
        text="\n".join(lines),
        description=f"{phase}: summary",
    )
    failed = [row for row in gates if row["outcome"] != "pass"]
    passed = not failed
    report = {
        "phase": phase,
        "summary": summary,
        "frames": frames,
        "lists": lists or {},
        "plots": plots,
        "gates": gates,
        "data_docs": docs,
        "passed": passed,
    }
    named = [
        f"{row['check']}: {row['detail'] or 'no'}" + (f" ({row['why']})" if row.get("why") else "")
        for row in frames.get("checks", [])
        if not row["ok"]
    ]
    reasons = [
        f"{row['gate']}: {row['expectation']} ({row['on']}): {row['outcome']}, observed "
        f"{row['observed']}" + (f": {row['rows']}" if row["rows"] else "")
        for row in failed
    ]
    why = "; ".join([*named, *reasons][:TASKS_EVIDENCE_REASONS_MAX])

    async def keep() -> None:
        async with opened(migration) as it:
            await it.store.save_report(f"evidence.{phase}", report)
            if not passed:
                failed_one = PhaseState(state=PhaseStatus.FAILED)
                state = (await it.store.phases()).get(phase, failed_one)
                await it.store.save_phase(phase, state.now(PhaseStatus.FAILED, why=why))

    run(keep())
    if not passed:
        raise EvidenceFailed(
            f"{phase}: {len(failed)} of {len(gates)} expectations did not pass",
            why=why,
            next_step="read the artifacts of this run, correct the cause, then: exodus "
            f"start {phase}",
        )
    return {"passed": passed, "gates": len(gates), "report": f"evidence.{phase}"}


def _data_docs(judged: Judged, migration: str, phase: str) -> Json:
    """Return where the pages are and their digest, or why there are none.

    The evidence does not depend on them.
    """
    try:
        return write_data_docs(judged, migration, phase)
    except Exception as exc:  # a library renders them, and may raise anything
        log.warning("the data docs of %s could not be written", phase, exc_info=True)
        return {"why": f"not written: {exc}"}
