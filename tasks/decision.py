"""Decisions: typed forms that a person answers while nothing runs.

A decision suspends the flow run. The form's description shows the evidence in short (Prefect clips it after a few lines) and where all of it is;
its own constraints are checked by Prefect, and once more here, since Prefect drops some (facts: `with_initial_data`). An answer that
does not hold asks again, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from prefect.client.schemas.objects import State
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.states import Completed
from pydantic import Field

from exodus.config import FenceKind, Fencing, Side
from exodus.cutover.window import Window
from exodus.shown import markdown
from tasks.context import Json, plan_of
from tasks.ledger import announce, finish_phase, record_decision, who_answered

_TEXT_MAX = 2_000
_FENCE_CONFIRMED = Field(
    default=False,
    title="The way is closed",
    description="only with a fence of kind provider: you did what is asked above, and nobody else writes there",
)


class PhaseDecision(RunInput):
    """Go on, or not."""

    decision: Literal["approve", "reject"] = Field(title="Decision", description="reject holds the migration where it is")
    decided_by: str = Field(title="Decided by", description="your name", min_length=1, max_length=200)
    why: str = Field(title="Why", description="kept in the ledger", min_length=1, max_length=_TEXT_MAX)


class MigrateDecision(PhaseDecision):
    """Go on; with keys that could not be carried only where each is accepted by its name."""

    accept_dead_letters: str = Field(
        default="",
        title="Accept dead letters",
        description="one name a line, as listed: DATABASE:KEY; these keys are not on the target",
        max_length=100_000,
    )


class CutoverDecision(PhaseDecision):
    """Cut over: now, or by itself in a window."""

    when: Literal["now", "window"] = Field(default="now", title="When", description="window: by itself, under the conditions below")
    opens: str = Field(default="02:00", title="Window opens", description="HH:MM, UTC")
    closes: str = Field(default="04:00", title="Window closes", description="HH:MM, UTC")
    lag_ms_max: int = Field(default=100, title="Lag at most (ms)", description="live sync may be this far behind")
    quiet_seconds: float = Field(default=300.0, title="For (s)", description="for how long it must have been no further behind")
    leave_behind: bool = Field(
        default=False, title="Leave keys behind", description="only where the plan has filters: what they leave out stays on the source"
    )
    fence_confirmed: bool = _FENCE_CONFIRMED


class BackDecision(PhaseDecision):
    """Back to the source."""

    accept_loss: bool = Field(
        default=False, title="Accept the loss", description="only where the target is dead: what had not flowed back stays there, as listed"
    )
    fence_confirmed: bool = _FENCE_CONFIRMED


class NextDecision(RunInput):
    """After a rollback: once more, or not at all."""

    decision: Literal["retry", "abandon"] = Field(title="Decision", description="retry goes on with Migrate; abandon ends the migration")
    decided_by: str = Field(title="Decided by", description="your name", min_length=1, max_length=200)
    why: str = Field(title="Why", description="kept in the ledger", min_length=1, max_length=_TEXT_MAX)
    clean_target: bool = Field(title="Clean the target", description="abandon only: remove the keys that Exodus copied there")


def provider_instruction(plan: Json, side: Side) -> str | None:
    """What the plan asks a person to do before `side` stops being the authority; None: a server refuses writes by itself."""
    fencing = Fencing.model_validate(plan["fence"])
    return fencing.instruction(side) if fencing.of(side) is FenceKind.PROVIDER else None


def why_not_closed(answer: Json, instruction: str | None) -> str | None:
    """Why an approval cannot be, where it needs a person's word; or None."""
    if instruction is None or answer["decision"] != "approve" or answer["fence_confirmed"]:
        return None
    return f"nothing refuses writes by itself: {instruction}, and say fence_confirmed"


def why_not_left(answer: Json, *, filtered: bool) -> str | None:
    """Why a cutover cannot be approved while the plan's filters leave keys behind that nobody has said may stay; or None."""
    if not filtered or answer["decision"] != "approve" or answer["leave_behind"]:
        return None
    return "the plan's filters leave keys behind: say leave_behind, having looked at which"


def window_of(answer: Json) -> Json | None:
    """The window that a cutover was approved for, or None: now.

    Raises:
        ValueError: its hours are none.
    """
    if answer.get("when") != "window":
        return None
    return Window.model_validate({name: answer[name] for name in Window.model_fields}).model_dump()


def _problem(answer: Json) -> str | None:
    for field in ("decided_by", "why"):
        text = str(answer.get(field) or "").strip()
        if not text:
            return f"{field} is empty: say who decides, and why"
        if len(text) > _TEXT_MAX:
            return f"{field} has {len(text)} characters, {_TEXT_MAX} at most are kept"
    if answer.get("when") == "window":
        try:
            window_of(answer)
        except ValueError as exc:
            return f"the window cannot be: {exc}"
    if answer.get("clean_target") and answer["decision"] == "retry":
        return "clean_target goes with abandon only: a retry keeps what is verified"
    return None


def _no_refusal(answer: Json, attempt: int) -> None:
    del answer, attempt


def ask(
    form: type[PhaseDecision | MigrateDecision | CutoverDecision | BackDecision | NextDecision],
    *,
    migration: str,
    phase: str,
    gate: str,
    question: str,
    summary: list[str],
    evidence: str,
    refuse: Callable[[Json, int], str | None] = _no_refusal,
    beforehand: Json | None = None,
) -> Json:
    """Wait for a person, for days if need be; returns the ledger's entry.

    Call it from a flow, not from a task: the flow ends here and runs again from the top when somebody has answered.

    Args:
        refuse: looks at an answer and its number, and says why it cannot be; it must say the same of the same answer for ever (a task whose
            result is kept), since the flow asks it anew each time it runs from the top.
        beforehand: what whoever started the run has answered already. Where it does not hold, it is asked as ever, with the reason.
    """
    days = plan_of(migration).decision_days_max
    attempt, problem = 1, None
    while True:
        shown = announce(migration, phase, gate, question, summary, evidence, attempt)
        lines = [f"### {markdown(question)}"]
        if problem is not None:
            lines.append(f"**Asked again: {markdown(problem)}**")
        lines += [
            *(f"- {markdown(line)}" for line in summary),
            "",
            f"Evidence in full: the Artifacts tab of this run · report `{shown['report']}` · digest `{shown['digest'][:12]}`",
        ]
        if beforehand is not None and attempt == 1:
            given = {name: field.default for name, field in form.model_fields.items() if not field.is_required()} | beforehand
        else:
            answer = suspend_flow_run(
                wait_for_input=form.with_initial_data(description="\n".join(lines)),
                key=f"{gate}-{attempt}",
                timeout=int(days * 86_400),
            )
            given = answer.model_dump(exclude={"description"})
        who = who_answered(migration, gate, given, attempt)
        given["identity"] = who["identity"]
        problem = _problem(given) or who["refused"] or refuse(given, attempt)
        if problem is None:
            return record_decision(migration, phase, gate, given, shown["report"], shown["digest"])
        attempt += 1


def close_phase(migration: str, phase: str, decision: Json, *, approved: str = "approve") -> State[str]:
    """End the phase as decided; a rejection ends the run in a state of that name."""
    yes = decision["verdict"] == approved
    outcome = "approved" if yes else "rejected"
    finish_phase(migration, phase, outcome)
    return Completed(name=None if yes else "Rejected", message=f"{phase}: {decision['verdict']} by {decision['decided_by']}: {decision['why']}")
