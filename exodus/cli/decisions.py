"""`exodus answer`, `approve`, `reject`: show the open decision as its form does, and answer it.

Most forms have the words `approve` and `reject`. After a rollback the words are `retry` and
`abandon`, and `abandon` ends the migration. There `reject` means `abandon` only if a person
confirms it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import typer

from exodus.cli.asking import YesOption, at_a_terminal, confirm
from exodus.cli.attesting import ByOption, WhyOption, attest
from exodus.cli.context import FileOption, HomeOption, JsonOption, home_at, migration_at, open_store
from exodus.cli.output import show, show_json
from exodus.cli.phases import read_status
from exodus.cli.prefect_api import PrefectApi
from exodus.cli.waiting import WaitOption, wait_asked
from exodus.control.approvers import of_this_process
from exodus.control.ledger import NEXT, digest
from exodus.errors import DecisionRefused, OperatorError
from exodus.plan.bounds import DECISIONS_SUSPENDS_WITHIN_S
from exodus.plan.migration_file import MigrationFile
from exodus.plan.vocabulary import Phase

Json = dict[str, Any]
_APPROVE, _REJECT = "approve", "reject"
_AFTER_ROLLBACK = {_APPROVE: "retry", _REJECT: "abandon"}
_MEANS = {
    "retry": "continue with Migrate and keep the copy",
    "abandon": "end the migration for good: live sync off, fences lifted, Exodus's keys "
    "removed; the source stays the authority",
}


def open_decision(
    migration: MigrationFile, api: PrefectApi, *, verdict: str = "", phase: str | None = None
) -> Json:
    """Return the open decision.

    Raises:
        DecisionRefused: no decision is open, or a failed rollback forbids this verdict.
    """
    found = asyncio.run(read_status(migration, api))
    waiting: Json | None = found["waiting"]
    failed = found["failed_run"]
    if (
        failed is not None
        and failed["phase"] == Phase.ROLLBACK
        and verdict == _APPROVE
        and waiting is not None
        and waiting["phase"] != Phase.ROLLBACK
    ):
        raise DecisionRefused(
            f"{waiting['phase']} cannot be approved: a rollback was requested and failed",
            why=found["why_waiting"],
            next_step="exodus start rollback again; or exodus reject, or the form at "
            f"{api.run_url(waiting['flow_run_id'])}",
        )
    if waiting is None or (phase is not None and waiting["phase"] != phase):
        raise DecisionRefused(
            "no decision is open", why=found["why_waiting"], next_step=found["what_unblocks"]
        )
    return waiting


def answer_open_decision(
    migration: MigrationFile,
    api: PrefectApi,
    verdict: str,
    *,
    by: str,
    why: str,
    fields: Json,
    phase: str | None = None,
) -> Json:
    """Answer the open decision through the call that the UI uses, and return that decision.

    Raises:
        DecisionRefused: no decision is open.
        OperatorError: the answer does not fit the form.
    """
    waiting = open_decision(migration, api, verdict=verdict, phase=phase)
    if waiting["gate"] == NEXT:
        verdict = _AFTER_ROLLBACK.get(verdict, verdict)
        fields = {"clean_target": False, **fields}
    _wait_suspended(api, waiting["flow_run_id"])
    answer = {"decision": verdict, "decided_by": by, "why": why, **fields}
    attest(migration, waiting, answer)
    api.resume(waiting["flow_run_id"], answer)
    return {**waiting, "answer": verdict}


def _wait_suspended(api: PrefectApi, run_id: str) -> None:
    """Wait for the run's suspension: a decision is announced a moment before it."""
    deadline = time.monotonic() + DECISIONS_SUSPENDS_WITHIN_S
    while not api.asks(run_id):
        state = api.run(run_id)["state"]
        if (
            state["type"] in ("FAILED", "CRASHED", "CANCELLED", "COMPLETED")
            or time.monotonic() > deadline
        ):
            raise DecisionRefused(
                "no decision is open",
                why=f"the run is {state['name']}",
                next_step=f"look at {api.run_url(run_id)}",
            )
        time.sleep(0.2)


def _fields(given: list[str]) -> Json:
    fields: Json = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise OperatorError(
                f"--field: {text!r} is not NAME=VALUE",
                why="a field of the form has a name and a value",
                next_step="--field clean_target=true",
            )
        known = {"true": True, "false": False}.get(value.lower(), value)
        # A field with several values has one a line.
        fields[name] = f"{fields[name]}\n{value}" if name in fields else known
    return fields


FieldOption = Annotated[
    list[str] | None,
    typer.Option("--field", help="another field of the form, NAME=VALUE; may be repeated"),
]


def answer(
    word: Annotated[
        str | None,
        typer.Argument(
            help="answer: approve, reject, retry, abandon; without it the decision is shown"
        ),
    ] = None,
    why: Annotated[str, typer.Option("--why", help="reason, kept in the ledger")] = "",
    by: ByOption = None,
    field: FieldOption = None,
    yes: YesOption = False,
    wait: WaitOption = False,
    file: FileOption = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Show the open decision with its evidence, or answer it with a word of its form.

    Example: exodus answer retry --why "the cause is corrected"
    """
    migration, api = migration_at(file, home), PrefectApi.find(home_at(home))
    asked = _form(migration, api, open_decision(migration, api, verdict=word or ""))
    if word is None:
        if json:
            show_json(asked)
        else:
            _show(asked)
        return
    if word not in asked["words"]:
        raise OperatorError(
            f"{word!r} is no answer to {asked['phase']}, {asked['gate']}",
            why=f"the form has the words {', '.join(asked['words'])}",
            next_step=f"exodus answer {asked['words'][0]} --why …",
        )
    if not why:
        raise OperatorError(
            "--why is missing",
            why="the ledger keeps a reason with every decision",
            next_step=f'exodus answer {word} --why "…"',
        )
    _answer(migration, api, asked, word, why, by, field, yes=yes, wait=wait)


def approve(
    why: WhyOption,
    by: ByOption = None,
    field: FieldOption = None,
    yes: YesOption = False,
    wait: WaitOption = False,
    file: FileOption = None,
    home: HomeOption = None,
) -> None:
    """Show the open decision and approve it (after a rollback: retry).

    Example: exodus approve --why "every key is verified"
    """
    migration, api = migration_at(file, home), PrefectApi.find(home_at(home))
    asked = _form(migration, api, open_decision(migration, api, verdict=_APPROVE))
    _answer(migration, api, asked, _word(asked, _APPROVE), why, by, field, yes=yes, wait=wait)


def reject(
    why: WhyOption,
    by: ByOption = None,
    field: FieldOption = None,
    yes: YesOption = False,
    wait: WaitOption = False,
    file: FileOption = None,
    home: HomeOption = None,
) -> None:
    """Show the open decision and reject it. After a rollback this ends the migration: use answer.

    Example: exodus reject --why "wait for the batch job"
    """
    migration, api = migration_at(file, home), PrefectApi.find(home_at(home))
    asked = _form(migration, api, open_decision(migration, api, verdict=_REJECT))
    word = _word(asked, _REJECT)
    if word != _REJECT and not yes and not at_a_terminal():
        raise DecisionRefused(
            f"reject would mean {word} here: {_MEANS[word]}",
            why="after a rollback the question is whether to retry or to abandon the migration",
            next_step=f"exodus answer retry --why …, or exodus answer {word} --why …",
        )
    _answer(migration, api, asked, word, why, by, field, yes=yes, wait=wait)


def _word(asked: Json, verdict: str) -> str:
    return _AFTER_ROLLBACK[verdict] if asked["gate"] == NEXT else verdict


def _form(migration: MigrationFile, api: PrefectApi, waiting: Json) -> Json:
    """Return the open decision as its form shows it: summary, evidence and possible answers."""
    _wait_suspended(api, waiting["flow_run_id"])

    async def shown() -> Json:
        async with await open_store(migration) as store:
            return await store.report(f"shown.{waiting['phase']}.{waiting['gate']}") or {}

    report = asyncio.run(shown())
    fields = api.form(waiting["flow_run_id"])
    return {
        "phase": waiting["phase"],
        "gate": waiting["gate"],
        "question": waiting["question"],
        "asked_again": waiting.get("asked_again"),
        "summary": report.get("summary", []),
        "evidence": waiting.get("evidence", ""),
        "digest": digest(report),
        "words": fields.get("decision", {}).get("enum", []),
        "fields": {
            name: row.get("description", "")
            for name, row in fields.items()
            if name not in ("decision", "decided_by", "why")
        },
        "url": api.run_url(waiting["flow_run_id"]),
    }


def _show(asked: Json) -> None:
    show(f"{asked['phase']} asks: {asked['question']}")
    if asked["asked_again"]:
        show(f"  asked again: {asked['asked_again']}")
    for line in asked["summary"]:
        show(f"  - {line}")
    show(
        f"evidence: report {asked['evidence']}, digest {asked['digest'][:12]}; artifacts and "
        f"form: {asked['url']}"
    )
    for word in asked["words"]:
        show(f"answer {word}" + (f": {_MEANS[word]}" if word in _MEANS else ""))
    for name, text in asked["fields"].items():
        show(f"field {name}: {text}")


def _answer(
    migration: MigrationFile,
    api: PrefectApi,
    asked: Json,
    word: str,
    why: str,
    by: str | None,
    field: list[str] | None,
    *,
    yes: bool,
    wait: bool,
) -> None:
    _show(asked)
    means = f", which means: {_MEANS[word]}" if word in _MEANS else ""
    confirm(f"{word}{means}?", yes=yes)
    done = answer_open_decision(
        migration,
        api,
        word,
        by=by or of_this_process().person,
        why=why,
        fields=_fields(field or []),
        phase=asked["phase"],
    )
    show(f"{done['phase']}, {done['gate']}: {done['answer']}{means}")
    if wait:
        wait_asked(
            migration,
            api,
            done["flow_run_id"],
            read_status,
            after=(done["gate"], int(done["attempt"])),
        )
