"""`python -m exodus.acceptance.business_runner`: runs business checks in a process of their own.

A job as JSON on standard input, the verdicts as JSON on the last line of standard output. What a
check prints goes to standard error. The caller ends the process when its time is over.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
from pydantic import SecretStr

from exodus.acceptance.expectations import new_context
from exodus.acceptance.read_only import ReadOnlyClient, ReadOnlyCluster, open_read_only
from exodus.plan.address import Address, Cluster

OK = "ok"  # the column that says it, where a file has no expectations


def main() -> None:
    """Run the job."""
    job = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        verdicts = [_verdict(Path(file), job) for file in job["files"]]
    sys.stdout.write("\n" + json.dumps(verdicts, default=str) + "\n")


def _verdict(file: Path, job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": file.stem, "ok": False, "why": "", "rows": [], "row_count": 0}
    try:
        module = _load(file)
        check: Callable[..., pd.DataFrame] = module.check
        with _side(job, "source") as source, _side(job, "target") as target:
            frame = check(source, target)
        bad, why = _judge(module, frame)
        shown = bad.head(job["rows_max"]).map(_text)
        rows = json.loads(shown.to_json(orient="records", date_format="iso"))
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - whatever a check raises is its verdict
        line = traceback.extract_tb(exc.__traceback__)[-1]
        return {**found, "why": f"{type(exc).__name__}: {exc} ({line.filename}:{line.lineno})"}
    return {**found, "ok": not why, "why": why, "rows": rows, "row_count": len(frame)}


def _text(value: object) -> object:
    """Return a value as JSON can have it: keys and values of a server may be any bytes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _is_true(value: object) -> bool:
    """Return whether a value of the column `ok` says so. A text does not, as "False" of a CSV."""
    return isinstance(value, (bool, int, float)) and value == 1


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"business_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _side(job: dict[str, Any], side: str) -> ReadOnlyClient | ReadOnlyCluster:
    told = dict(job[side])
    password, db, prefix = told.pop("secret"), told.pop("db"), told.pop("prefix")
    kind = Cluster if "cluster" in told else Address
    place = kind.model_validate(
        {**told, "password": SecretStr(password) if password is not None else None}
    )
    return open_read_only(place, side, db=db, timeout_s=job["timeout_s"], prefix=prefix)


def _judge(module: ModuleType, frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the rows that are wrong, and why; an empty text: none is."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"check returned {type(frame).__name__}, not a pandas.DataFrame")
    frame = frame.reset_index(drop=True)
    if frame.empty:
        return frame, "the check returned no rows: it has looked at nothing"
    wanted = getattr(module, "expectations", None)
    if wanted is not None:
        return _expected(wanted(), frame)
    if OK not in frame.columns:
        return frame, f"the frame has no column {OK!r}, and the file no expectations()"
    bad = frame[[not _is_true(value) for value in frame[OK].tolist()]]
    return bad, f"{len(bad)} of {len(frame)} rows are not ok" if len(bad) else ""


def _expected(wanted: Sequence[Any], frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    asset = new_context().data_sources.add_pandas("business").add_dataframe_asset("frame")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    bad: set[int] = set()
    why = [] if wanted else ["expectations() returned none: nothing was judged"]
    for expectation in wanted:
        result = batch.validate(expectation, result_format="COMPLETE")
        if result.success:
            continue
        bad |= set(result.result.get("unexpected_index_list") or [])
        observed = result.result.get("observed_value", result.result.get("unexpected_count", ""))
        name = expectation.expectation_type.removeprefix("expect_").replace("_", " ")
        why.append(f"{name} ({getattr(expectation, 'column', 'the frame')}): observed {observed}")
    return (frame.loc[sorted(bad)] if bad else frame if why else frame.head(0)), "; ".join(why)


if __name__ == "__main__":
    main()
