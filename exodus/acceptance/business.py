"""Business checks: what the owner of the data knows to be true of it, asked of both sides.

A file of the folder has a function `check(source, target)` that returns a pandas.DataFrame. Each
row that is not `ok`, or that an expectation of the file finds, is shown. The clients are read-only
(`read_only.py`), and the checks run in a process of their own (`business_runner.py`).

The code is an operator's. Folder and webhook are taken only where the migration's block names them
too, so whoever can write to the control store cannot name others. Nobody but its owner may be able
to change the folder. Its digest is in the evidence.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import orjson

from exodus.acceptance.rows import Checked, told
from exodus.acceptance.trial_copy import REPORT as TRIAL
from exodus.control.store import ControlStore
from exodus.errors import OperatorError
from exodus.net.masters import located
from exodus.plan.address import Cluster, Place
from exodus.plan.bounds import (
    BUSINESS_ANSWER_BYTES_MAX,
    BUSINESS_ROWS_MAX,
    BUSINESS_SHOWN,
    BUSINESS_TIMEOUT_S,
)
from exodus.plan.plan import Plan

REPORT = "test.business"
_OTHERS_WRITE = 0o022
_REFUSED = "the business checks are not run"


async def check_business(plan: Plan, proposed: Plan, store: ControlStore) -> list[Checked]:
    """Run the folder's checks and the webhook; the rows that are wrong are kept as a report.

    Args:
        plan: the registered plan.
        proposed: the plan of the migration's block, which names the code that may run here.
        store: the control store.
    """
    checks = plan.test_checks
    folder, webhook = checks.business_folder, checks.business_webhook
    if folder is None and webhook is None:
        return [told("business checks", "test_checks names none")]
    copy = await _copy(store)
    verdicts: list[dict[str, Any]] = []
    rows: list[Checked] = []
    if folder is not None:
        files, digest = _trusted(folder, proposed.test_checks.business_folder)
        line = f"{len(files)} business checks of {folder}, digest {digest[:12]}"
        rows.append(told("business checks: code", f"{folder}: sha256 {digest}", line=line))
        verdicts += await _run(plan, files, copy, checks.business_seconds_max)
    if webhook is not None:
        _agreed("business_webhook", webhook, proposed.test_checks.business_webhook)
        verdicts.append(await _ask(plan, webhook, copy, checks.business_seconds_max))
    await store.save_report(
        REPORT,
        {
            "at_ms": await store.now_ms(),
            "verdicts": verdicts,
            "rows": [
                {"check": verdict["name"], **row}
                for verdict in verdicts
                for row in verdict["rows"][:BUSINESS_ROWS_MAX]
            ],
        },
    )
    return [*rows, *map(_judged, verdicts)]


def _judged(verdict: dict[str, Any]) -> Checked:
    shown = "; ".join(
        ", ".join(f"{name}={value}" for name, value in row.items())
        for row in verdict["rows"][:BUSINESS_SHOWN]
    )
    ok = bool(verdict["ok"])
    why = str(verdict["why"])
    return Checked(
        f"business: {verdict['name']}",
        ok,
        f"{verdict['row_count']} rows" if ok else f"{why}: {shown}" if shown else why,
        "what must be true of the data is not, or could not be asked",
        "see the rows in the artifact business; correct the data, or the check",
    )


def _agreed(field: str, registered: object, here: object) -> None:
    """Refuse what only the control store names.

    Raises:
        OperatorError: the migration's block names another, or none.
    """
    if here != registered:
        raise OperatorError(
            _REFUSED,
            why=f"test_checks.{field} of the registered plan is not that of the migration's block: "
            "code runs, and services are asked, only where both agree",
            next_step="exodus apply migration.yaml, then exodus start test",
        )


def _trusted(folder: Path, named_here: Path | None) -> tuple[list[Path], str]:
    """Return the files of a folder whose code may run here, and their digest.

    Raises:
        OperatorError: it may not.
    """
    _agreed("business_folder", folder, named_here)
    refuse = _REFUSED
    files = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))
    if not files:
        raise OperatorError(
            refuse,
            why=f"{folder} has no file NAME.py on this machine",
            next_step="put the checks there, on the machine of the worker, or correct "
            "test_checks.business_folder",
        )
    digest = hashlib.sha256()
    for path in (folder, *files):
        found = path.stat()
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & _OTHERS_WRITE:
            raise OperatorError(
                refuse,
                why=f"others than this worker's user may change {path}",
                next_step=f"chown {os.geteuid()} {path}; chmod go-w {path}",
            )
        if path is not folder:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return files, digest.hexdigest()


class _Copy(NamedTuple):
    """Where the trial copy is on the target; without one, the target's own keys."""

    database: int = 0
    prefix: str = ""


async def _copy(store: ControlStore) -> _Copy:
    trial = await store.report(TRIAL)
    return _Copy() if trial is None else _Copy(int(trial["database"]), str(trial.get("prefix", "")))


async def _told(place: Place, field: str, copy: _Copy) -> dict[str, Any]:
    if not isinstance(place, Cluster):
        place = await located(place)
    # A password goes through the pipe: neither arguments nor variables of a process are secret.
    told_of = place.model_dump(mode="json", exclude={"password_env", "password_file"})
    more = {"secret": place.secret(field), "db": copy.database, "prefix": copy.prefix}
    return {**told_of, **more}


async def _run(plan: Plan, files: list[Path], copy: _Copy, seconds: float) -> list[dict[str, Any]]:
    job = {
        "files": [str(path.absolute()) for path in files],
        "source": await _told(plan.source, "source", _Copy()),
        "target": await _told(plan.target, "target", copy),
        "rows_max": BUSINESS_ROWS_MAX,
        "timeout_s": BUSINESS_TIMEOUT_S,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "exodus.acceptance.business_runner",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds):
            out, said = await process.communicate(orjson.dumps(job))
    except TimeoutError:
        process.kill()
        await process.wait()
        why = f"they took longer than {seconds:g} s (test_checks.business_seconds_max)"
        return [_failed("checks of the folder", why)]
    if process.returncode:
        lines = said.decode("utf-8", "replace").strip().splitlines()
        return [_failed("checks of the folder", lines[-1] if lines else "their process died")]
    try:
        found: list[dict[str, Any]] = orjson.loads(out.splitlines()[-1])
    except (IndexError, orjson.JSONDecodeError):
        return [_failed("checks of the folder", "their process ended without a verdict")]
    return found


def _failed(name: str, why: str) -> dict[str, Any]:
    return {"name": name, "ok": False, "why": why, "rows": [], "row_count": 0}


async def _ask(plan: Plan, url: str, copy: _Copy, seconds: float) -> dict[str, Any]:
    """Ask a service: it gets where both sides are, and answers `ok` and `rows`."""
    question = {
        "migration": plan.name,
        "phase": "test",
        "source": {"url": plan.source.url, "database": 0},
        "target": {"url": plan.target.url, "database": copy.database, "prefix": copy.prefix},
    }
    name = "webhook"
    asked = httpx.URL(url)
    url = f"{asked.scheme}://{asked.host}{asked.path}"  # the rest may hold a secret
    try:
        async with httpx.AsyncClient(timeout=seconds, follow_redirects=False) as client:
            answer = await client.post(asked, json=question)
    except httpx.HTTPError as exc:
        return _failed(name, f"{url} did not answer: {str(exc) or type(exc).__name__}")
    if answer.status_code != httpx.codes.OK:
        return _failed(name, f"{url} answered {answer.status_code}")
    if len(answer.content) > BUSINESS_ANSWER_BYTES_MAX:
        return _failed(name, f"{url} answered {len(answer.content):,} bytes")
    try:
        found = orjson.loads(answer.content)
    except orjson.JSONDecodeError as exc:
        return _failed(name, f"{url} did not answer JSON: {exc}")
    rows = found.get("rows", []) if isinstance(found, dict) else None
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("ok"), bool)
        or not isinstance(rows, list)
        or not all(isinstance(row, dict) for row in rows)
    ):
        return _failed(name, f'{url} must answer {{"ok": true or false, "rows": [{{…}}, …]}}')
    ok, why = found["ok"], str(found.get("why", ""))
    return {
        "name": name,
        "ok": ok,
        "why": why or ("" if ok else "it said no"),
        "rows": rows,
        "row_count": len(rows),
    }
