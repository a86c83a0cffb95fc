"""Evidence: frames, the gates over them (Great Expectations), and the artifacts that show both.

One task evaluates all gates of a phase, because importing Great Expectations takes seconds. An
empty frame or a null passes most expectations, so every gate begins with a row count and not-null
columns (docs/decisions/0008-evidence-gates.md).
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from exodus.control.phases import PhaseState, PhaseStatus
from exodus.errors import EvidenceFailed
from exodus.plan.bounds import (
    LETTERS_ACCEPTED_MAX,
    TASKS_EVIDENCE_NAMED,
    TASKS_EVIDENCE_REASONS_MAX,
    TASKS_EVIDENCE_ROWS_MAX,
)
from exodus.safe_text import markdown
from tasks.artifacts import (
    create_markdown_artifact,
    create_plot_artifact,
    create_table_artifact,
)
from tasks.context import Json, opened, run
from tasks.kept import kept_task
from tasks.plots import draw

if TYPE_CHECKING:
    import pandas as pd


def prepare() -> None:
    """Start importing what the gates need. It takes six seconds while a phase watches or copies."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    threading.Thread(
        target=importlib.import_module,
        args=("great_expectations",),
        name="import great_expectations",
        daemon=True,
    ).start()


def expectations(name: str) -> list[Any]:
    """Return new expectations of a gate: an expectation belongs to one suite only."""
    import great_expectations.expectations as gxe

    checks: dict[str, Callable[[], list[Any]]] = {
        "checks": lambda: [
            gxe.ExpectColumnValuesToNotBeNull(column="check"),
            gxe.ExpectColumnValuesToNotBeNull(column="ok"),
            gxe.ExpectColumnValuesToBeInSet(column="ok", value_set=[True]),
        ],
        "gate": lambda: [
            # A required check that fails keeps the decision from being approved (tasks/checks.py).
            gxe.ExpectColumnValuesToNotBeNull(column="check"),
            gxe.ExpectColumnValuesToNotBeNull(column="ok"),
            gxe.ExpectColumnValuesToBeInSet(column="level", value_set=["must", "should", "info"]),
        ],
        "advice": lambda: [
            # What should hold and does not is a finding. The decision accepts findings by name.
            gxe.ExpectColumnValuesToNotBeNull(column="check"),
            gxe.ExpectColumnValuesToNotBeNull(column="ok"),
            gxe.ExpectColumnValuesToBeInSet(column="level", value_set=["should", "info"]),
        ],
        "commands": lambda: [
            gxe.ExpectColumnValuesToNotBeNull(column="command"),
            gxe.ExpectColumnValuesToNotBeNull(column="calls"),
            gxe.ExpectColumnSumToBeBetween(column="calls", min_value=1),
            gxe.ExpectColumnValuesToBeInSet(column="target_has_it", value_set=[True]),
        ],
        "shapes": lambda: [
            gxe.ExpectColumnValuesToNotBeNull(column="shape"),
            gxe.ExpectColumnSumToBeBetween(column="calls", min_value=1),
            gxe.ExpectColumnValuesToBeInSet(
                column="verdict", value_set=["same", "accepted", "differs", "not provable"]
            ),
        ],
        "sizing": lambda: [
            gxe.ExpectColumnValuesToNotBeNull(column="type"),
            gxe.ExpectColumnValuesToBeBetween(column="keys_sampled", min_value=1),
            # Far from 1 the sample was not the same keys on both sides
            gxe.ExpectColumnValuesToBeBetween(column="ratio", min_value=0.05, max_value=20),
        ],
        "comparison": lambda: [
            # Each divergence is a finding, and so is an empty comparison. The decision accepts
            # findings by name.
            gxe.ExpectColumnValuesToNotBeNull(column="compared"),
            gxe.ExpectColumnValuesToNotBeNull(column="divergences"),
        ],
        "reconciliation": lambda: [
            gxe.ExpectColumnValuesToNotBeNull(column="keys_authority"),
            gxe.ExpectColumnMaxToBeBetween(column="divergences", min_value=0, max_value=0),
            # The decision accepts each by name; nobody reviews more than this.
            gxe.ExpectColumnMaxToBeBetween(
                column="dead_letters", min_value=0, max_value=LETTERS_ACCEPTED_MAX
            ),
            gxe.ExpectColumnMaxToBeBetween(column="open_gaps", min_value=0, max_value=0),
            gxe.ExpectColumnValuesToBeInSet(column="caught_up", value_set=[True]),
            gxe.ExpectColumnPairValuesToBeEqual(column_A="keys_accounted", column_B="keys_seen"),
        ],
    }
    return [gxe.ExpectTableRowCountToBeBetween(min_value=1), *checks[name]()]


def _run_gate(name: str, frame: pd.DataFrame) -> list[Json]:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    batch = (
        context.data_sources.add_pandas("evidence")
        .add_dataframe_asset(name)
        .add_batch_definition_whole_dataframe("all")
    )
    # An empty frame has no columns to judge; its row count fails.
    wanted = expectations(name)[:1] if frame.empty else expectations(name)
    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=wanted))
    validation = context.validation_definitions.add(
        gx.ValidationDefinition(name=name, data=batch, suite=suite)
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=name,
            validation_definitions=[validation],
            actions=[],
            result_format={
                "result_format": "COMPLETE",
                "unexpected_index_column_names": list(frame.columns[:1]),
            },
        )
    )
    outcome = checkpoint.run(batch_parameters={"dataframe": frame})
    rows: list[Json] = []
    for result in next(iter(outcome.run_results.values())).to_json_dict()["results"]:
        config = result["expectation_config"]
        kwargs = {key: value for key, value in config["kwargs"].items() if key != "batch_id"}
        # An expectation that could not be evaluated (a missing column) is an error, not a failure.
        broke = any(
            isinstance(info, dict) and info.get("raised_exception")
            for info in _infos(result["exception_info"])
        )
        rows.append(
            {
                "gate": name,
                "expectation": config["type"].removeprefix("expect_").replace("_", " "),
                "on": ", ".join(f"{key}={value}" for key, value in kwargs.items()),
                "outcome": "ERROR" if broke else "pass" if result["success"] else "FAIL",
                "observed": str(
                    result["result"].get(
                        "observed_value", result["result"].get("unexpected_count", "")
                    )
                ),
                "rows": _rows_that_failed(result["result"]),
            }
        )
    return rows


def _rows_that_failed(result: Json) -> str:
    """Return the rows that an expectation found wrong, by the first column of their frame."""
    found = result.get("unexpected_index_list") or []
    names = [str(next(iter(row.values()))) for row in found[:TASKS_EVIDENCE_NAMED]]
    more = len(found) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def _infos(info: Any) -> list[Any]:
    if not isinstance(info, dict):
        return []
    return [info] if "raised_exception" in info else list(info.values())


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

    gates: list[Json] = []
    for name, rows in frames.items():
        create_table_artifact(
            key=artifact_key(migration, phase, name),
            table=rows[:TASKS_EVIDENCE_ROWS_MAX],
            description=f"{phase}: {name}",
        )
        gates += _run_gate(name, pd.DataFrame(rows))
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
        *(f"| {markdown(key)} | {markdown(value)} |" for key, value in summary.items()),
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
        "passed": passed,
    }
    named = [
        f"{row['check']}: {row['detail'] or 'no'}" + (f" ({row['why']})" if row.get("why") else "")
        for row in frames.get("checks", [])
        if not row["ok"]
    ]
    judged = [
        f"{row['gate']}: {row['expectation']} ({row['on']}): {row['outcome']}, observed "
        f"{row['observed']}" + (f": {row['rows']}" if row["rows"] else "")
        for row in failed
    ]
    why = "; ".join([*named, *judged][:TASKS_EVIDENCE_REASONS_MAX])

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
