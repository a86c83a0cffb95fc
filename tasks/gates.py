"""The gates over a phase's evidence: suites of Great Expectations, by name.

An empty frame or a null passes most expectations, so every gate begins with a row count and
not-null columns (docs/decisions/0008-evidence-gates.md). Importing the library takes seconds.
"""

from __future__ import annotations

import html
import importlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exodus.acceptance.expectations import forbid_analytics, new_context
from exodus.plan.bounds import LETTERS_ACCEPTED_MAX, TASKS_EVIDENCE_NAMED
from exodus.safe_text import markup
from tasks.context import Json

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.data_context import EphemeralDataContext


@dataclass(frozen=True)
class Judged:
    """What the gates of a phase found."""

    rows: list[Json]  # one an expectation
    context: EphemeralDataContext  # the library's own results, from which it renders its pages


# What each gate says if it passes. Its name is that of the frame, and of the artifact.
SAYS = {
    "checks": "each required check was done and holds",
    "gate": "each check of Test was done and has a level",
    "advice": "each other check was done; the decision accepts open findings by name",
    "observed": "Pre-test saw requests, and knows how often each kind came",
    "keyspace": "each estimate of the keys comes from sampled keys and is within its interval",
    "rates": "the rate is known for each period, and no percentile is below a lower one",
    "commands": "the target has every observed command",
    "shapes": "the target lacks no observed kind of request",
    "sizing": "the sampled keys take a plausible size on the target",
    "comparison": "Compare counted what it compared, and each divergence",
    "reconciliation": "every key is accounted for, and no gap is open",
}


def prepare() -> None:
    """Start importing what the gates need. It takes six seconds while a phase watches or copies."""
    forbid_analytics()
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
        "observed": lambda: [
            gxe.ExpectColumnValuesToNotBeNull(column="shape"),
            gxe.ExpectColumnValuesToBeBetween(column="calls", min_value=1),
        ],
        "keyspace": lambda: [
            gxe.ExpectColumnValuesToNotBeNull(column="pattern"),
            gxe.ExpectColumnValuesToBeBetween(column="sampled", min_value=1),
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A="keys_high", column_B="keys", or_equal=True
            ),
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A="keys", column_B="keys_low", or_equal=True
            ),
        ],
        "rates": lambda: [
            gxe.ExpectColumnValuesToNotBeNull(column="at_s"),
            gxe.ExpectColumnValuesToBeBetween(column="requests_per_s", min_value=0),
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A="latency_us_p99", column_B="latency_us_p50", or_equal=True
            ),
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


def judge(frames: Mapping[str, pd.DataFrame]) -> Judged:
    """Run each gate over its frame.

    Args:
        frames: gate name → frame. `expectations` has the gates.
    """
    context = new_context()
    import great_expectations as gx

    source = context.data_sources.add_pandas("evidence")
    rows: list[Json] = []
    for name, frame in frames.items():
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
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
        # The library's pages put values into HTML as they are, and clients choose some of them.
        outcome = checkpoint.run(batch_parameters={"dataframe": frame.map(_escaped)})
        results = next(iter(outcome.run_results.values())).to_json_dict()["results"]
        rows += [_row(name, result, named_by=next(iter(frame.columns), "")) for result in results]
    return Judged(rows, context)


def _escaped(value: object) -> object:
    return markup(value) if isinstance(value, str) else value


def _row(gate: str, result: Json, *, named_by: str) -> Json:
    config = result["expectation_config"]
    kwargs = {key: value for key, value in config["kwargs"].items() if key != "batch_id"}
    # An expectation that could not be evaluated (a missing column) is an error, not a failure.
    broke = any(
        isinstance(info, dict) and info.get("raised_exception")
        for info in _infos(result["exception_info"])
    )
    found = result["result"]
    return {
        "gate": gate,
        "expectation": config["type"].removeprefix("expect_").replace("_", " "),
        "on": ", ".join(f"{key}={_shown(value)}" for key, value in kwargs.items()),
        "outcome": "ERROR" if broke else "pass" if result["success"] else "FAIL",
        "observed": html.unescape(
            str(found.get("observed_value", found.get("unexpected_count", "")))
        ),
        "rows": html.unescape(_rows_that_failed(found, named_by)),
        "says": SAYS[gate],
    }


def _shown(value: object) -> str:
    """Return an argument without brackets: one of Prefect's two UIs shows them with backslashes."""
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def _rows_that_failed(result: Json, named_by: str) -> str:
    """Return the rows that an expectation found wrong: their names, and the values judged."""
    found = result.get("unexpected_index_list") or []
    names = [
        f"{row[named_by]}"
        + "".join(f" ({column} {value})" for column, value in row.items() if column != named_by)
        for row in found[:TASKS_EVIDENCE_NAMED]
    ]
    more = len(found) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def _infos(info: Any) -> list[Any]:
    if not isinstance(info, dict):
        return []
    return [info] if "raised_exception" in info else list(info.values())
