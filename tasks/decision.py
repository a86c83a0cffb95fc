"""Decisions: typed forms that a person answers while no process runs.

A decision suspends the flow run. The form's description shows a summary of the evidence, because
Prefect cuts it after a few lines, and names the place of the rest. Prefect checks the form's
constraints, and this module checks them again: `with_initial_data` drops some
(docs/decisions/0009-prefect-suspend.md). An invalid answer is asked again, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from prefect.client.schemas.objects import State
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.states import Completed
from pydantic import ConfigDict, Field, create_model

from exodus.plan.bounds import TASKS_DECISION_FIELDS_MAX, TASKS_DECISION_TEXT_MAX
from exodus.plan.settings import Fencing
from exodus.plan.vocabulary import FenceKind, Side
from exodus.plan.window import Window
from exodus.safe_text import markdown
from tasks.context import Json, plan_of
from tasks.ledger import announce, finish_phase, record_decision, who_answered

APPROVE, REJECT = "approve", "reject"
IN_WINDOW = "approve in window"
RETRY, ABANDON = "retry", "abandon"


def form(words: tuple[str, ...], means: str, **more: Any) -> type[RunInput]:
    """Return the form of a decision: its words, who decides, why, and at most one more field.

    Args:
        words: the possible answers.
        means: the meaning of each word, in one line under the drop-down.
        more: name of the other field → its type and `Field`.
    """
    fields: dict[str, Any] = {
        "decision": (Literal[words], Field(title="Decision", description=means)),
        "decided_by": (str, Field(title="Decided by (your name)", min_length=1, max_length=200)),
        "why": (
            str,
            Field(
                title="Why (kept in the ledger)", min_length=1, max_length=TASKS_DECISION_TEXT_MAX
            ),
        ),
        **more,
    }
    if len(fields) > TASKS_DECISION_FIELDS_MAX:
        raise ValueError(
            f"a form has {len(fields)} fields, {TASKS_DECISION_FIELDS_MAX} at most: "
            + ", ".join(fields)
        )
    made: type[RunInput] = create_model("Decision", __base__=_Strict, **fields)
    return made


class _Strict(RunInput):
    """Refuse unknown fields: the sender means something by them."""

    model_config = ConfigDict(extra="forbid")


def phase_form(
    means: str = "approve: the next phase may begin; reject: it may not",
) -> type[RunInput]:
    """Return a form that asks only for approve or reject."""
    return form((APPROVE, REJECT), means)


def _accepting(means: str, *, field: str, title: str, description: str) -> type[RunInput]:
    """Return a form that takes, beside approve or reject, names to accept, one a line."""
    listed = Field(default="", title=title, description=description, max_length=100_000)
    return form((APPROVE, REJECT), means, **{field: (str, listed)})


def findings_form(*, findings: bool) -> type[RunInput]:
    """Return the form of a phase whose open findings are accepted by name."""
    if not findings:
        return phase_form()
    return _accepting(
        "approve: the next phase may begin, with the findings accepted; reject: it may not",
        field="accept_findings",
        title="Accept findings",
        description="One name a line, as in the artifact advice.",
    )


def migrate_form(*, dead_letters: bool) -> type[RunInput]:
    """Return Migrate's form. Keys that failed to copy are accepted by name."""
    means = "approve: Commit may begin; reject: it may not"
    if not dead_letters:
        return phase_form(means)
    return _accepting(
        means,
        field="accept_dead_letters",
        title="Accept dead letters",
        description="One name a line, as listed. These keys are not on the target.",
    )


def compare_form(*, findings: bool) -> type[RunInput]:
    """Return Compare's form. Findings are accepted by name."""
    if not findings:
        return phase_form()
    return _accepting(
        "approve: Test may begin, with the findings accepted by name; reject: it may not",
        field="accept_findings",
        title="Accept findings",
        description="One name a line, as in the artifact findings.",
    )


def _tick(title: str, description: str) -> Any:
    return bool, Field(default=False, title=title, description=description)


_CLOSED = "Direct access is blocked as described above."
_LEFT = "Filtered keys may stay on the source."


def cutover_form(plan: Json, *, filtered: bool, provider: bool) -> type[RunInput]:
    """Return the form of a cutover, with at most one confirmation that this plan requires."""
    windowed = plan.get("window") is not None
    means = "approve: switch to the target now; "
    means += "approve in window: switch by itself in the plan's hours; " if windowed else ""
    means += "reject: the source stays the authority"
    words = (APPROVE, IN_WINDOW, REJECT) if windowed else (APPROVE, REJECT)
    if provider:
        return form(
            words,
            means,
            fence_confirmed=_tick("Fence confirmed", f"{_CLOSED} {_LEFT}" if filtered else _CLOSED),
        )
    if filtered:
        return form(words, means, leave_behind=_tick("Leave keys behind", _LEFT))
    return form(words, means)


def back_form(*, dead: bool, provider: bool) -> type[RunInput]:
    """Return the form that asks whether to go back to the source."""
    means = "approve: the source is the authority again; reject: nothing changes"
    if dead:
        return form(
            (APPROVE, REJECT),
            means,
            accept_loss=_tick("Accept the loss", "The listed keys stay on the dead target."),
        )
    if provider:
        return form((APPROVE, REJECT), means, fence_confirmed=_tick("Fence confirmed", _CLOSED))
    return form((APPROVE, REJECT), means)


def next_form() -> type[RunInput]:
    """Return the form after a rollback: retry or abandon."""
    clean = (
        bool,
        Field(
            title="Clean the target",
            description="Only with abandon: remove the keys that Exodus copied to the target.",
        ),
    )
    return form(
        (RETRY, ABANDON),
        "retry: continue with Migrate; abandon: end the migration for good",
        clean_target=clean,
    )


def completed(given: Json, plan: Json, *, filtered: bool = False) -> Json:
    """Return an answer as the ledger keeps it.

    It has a plain verdict, its window, and each confirmation by name.
    """
    answer = dict(given)
    if filtered and "leave_behind" not in answer:  # confirmed together with the fence
        answer["leave_behind"] = answer.get("fence_confirmed", False)
    if answer["decision"] == IN_WINDOW:
        answer.update(decision=APPROVE, when="window", **plan["window"])
    return answer


def provider_instruction(plan: Json, side: Side) -> str | None:
    """Return what a person must do before `side` stops being the authority.

    None: the server refuses writes itself.
    """
    fencing = Fencing.model_validate(plan["fence"])
    return fencing.instruction(side) if fencing.of(side) is FenceKind.PROVIDER else None


def why_not_closed(answer: Json, instruction: str | None) -> str | None:
    """Return why an approval without the fence's confirmation is invalid, or None."""
    if instruction is None or answer["decision"] != APPROVE or answer.get("fence_confirmed"):
        return None
    return (
        f"no server refuses writes here: {instruction}, then tick Fence confirmed (fence_confirmed)"
    )


def why_not_left(answer: Json, *, filtered: bool) -> str | None:
    """Return why a cutover that leaves filtered keys behind needs a confirmation, or None."""
    if not filtered or answer["decision"] != APPROVE or answer.get("leave_behind"):
        return None
    return (
        "the plan's filters leave keys behind: review them, then tick Leave keys behind "
        "(leave_behind)"
    )


def window_of(answer: Json) -> Json | None:
    """Return the window for which a cutover was approved; None: now."""
    if answer.get("when") != "window":
        return None
    return Window.model_validate({name: answer[name] for name in Window.model_fields}).model_dump()


def _problem(answer: Json) -> str | None:
    for field in ("decided_by", "why"):
        text = str(answer.get(field) or "").strip()
        if not text:
            return f"{field} is empty: enter who decides, and why"
        if len(text) > TASKS_DECISION_TEXT_MAX:
            return f"{field} has {len(text)} characters; the limit is {TASKS_DECISION_TEXT_MAX}"
    if answer.get("clean_target") and answer["decision"] == RETRY:
        return "clean_target requires abandon: a retry keeps the copy"
    return None


def _no_refusal(answer: Json, attempt: int) -> None:
    del answer, attempt


def ask(
    asks: type[RunInput],
    *,
    migration: str,
    phase: str,
    gate: str,
    question: str,
    summary: list[str],
    evidence: str,
    refuse: Callable[[Json, int], str | None] = _no_refusal,
    beforehand: Json | None = None,
    complete: Callable[[Json], Json] = dict,
) -> Json:
    """Wait for a person's answer, for days if necessary, and return the ledger's entry.

    Call it from a flow, not from a task: the flow ends here, and runs again from the top after an
    answer.

    Args:
        asks: the form.
        migration: name of the Migration block.
        phase: the phase that asks.
        gate: name of the decision.
        question: the question.
        summary: lines of the form.
        evidence: report with the evidence.
        refuse: returns why an answer is invalid, given the answer and its number. It must return
            the same for the same answer for ever (a task whose result is kept), because the flow
            calls it each time it runs from the top.
        complete: turns the form's fields into what the ledger keeps.
        beforehand: the answer that the starter of the run has given. If it is invalid, the form is
            asked.
    """
    days = plan_of(migration).decision_days_max
    attempt, problem = 1, None
    while True:
        shown = announce(migration, phase, gate, question, summary, evidence, attempt, problem)
        lines = [f"### {markdown(question)}"]
        if problem is not None:
            lines.append(f"**Asked again: {markdown(problem)}**")
        lines += [
            *(f"- {markdown(line)}" for line in summary),
            "",
            f"Evidence in full: the Artifacts tab of this run · report `{shown['report']}` · "
            f"digest `{shown['digest'][:12]}`",
        ]
        if beforehand is not None and attempt == 1:
            given = {
                name: field.default
                for name, field in asks.model_fields.items()
                if not field.is_required()
            } | beforehand
        else:
            answer = suspend_flow_run(
                wait_for_input=asks.with_initial_data(description="\n".join(lines)),
                key=f"{gate}-{attempt}",
                timeout=int(days * 86_400),
            )
            given = answer.model_dump(exclude={"description"})
        who = who_answered(migration, gate, given, attempt)
        given = complete(given)
        given["identity"] = who["identity"]
        problem = _problem(given) or who["refused"] or refuse(given, attempt)
        if problem is None:
            return record_decision(migration, phase, gate, given, shown["report"], shown["digest"])
        attempt += 1


def close_phase(
    migration: str, phase: str, decision: Json, *, approved: str = "approve"
) -> State[str]:
    """End the phase as decided. A rejection ends the run in the state Rejected."""
    yes = decision["verdict"] == approved
    outcome = "approved" if yes else "rejected"
    finish_phase(migration, phase, outcome)
    return Completed(
        name=None if yes else "Rejected",
        message=f"{phase}: {decision['verdict']} by {decision['decided_by']}: {decision['why']}",
    )
