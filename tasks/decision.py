"""Decisions: typed forms that a person answers while nothing runs.

A decision suspends the flow run. The form's description shows the evidence in short (Prefect clips it after a few lines) and where all of it is;
its own constraints are checked by Prefect, and once more here, since Prefect drops some (facts: `with_initial_data`). An answer that
does not hold asks again, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from prefect.client.schemas.objects import State
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.states import Completed
from pydantic import ConfigDict, Field, create_model

from exodus.plan.settings import Fencing
from exodus.plan.vocabulary import FenceKind, Side
from exodus.plan.window import Window
from exodus.safe_text import markdown
from tasks.context import Json, plan_of
from tasks.ledger import announce, finish_phase, record_decision, who_answered

_TEXT_MAX = 2_000
APPROVE, REJECT = "approve", "reject"
IN_WINDOW = "approve in window"
RETRY, ABANDON = "retry", "abandon"
FIELDS_MAX = 4  # more of them leave no room for the summary in Prefect's dialog (1440 × 900)


def form(words: tuple[str, ...], means: str, **more: Any) -> type[RunInput]:
    """Return the form of a decision: its words, who decides, why, and at most one field more.

    Args:
        means: what each word means, in one line under the drop-down.
        more: name of the further field → its type and `Field`.
    """
    fields: dict[str, Any] = {
        "decision": (Literal[words], Field(title="Decision", description=means)),
        "decided_by": (str, Field(title="Decided by: your name", min_length=1, max_length=200)),
        "why": (str, Field(title="Why: kept in the ledger", min_length=1, max_length=_TEXT_MAX)),
        **more,
    }
    if len(fields) > FIELDS_MAX:
        raise ValueError(f"a form has {len(fields)} fields, {FIELDS_MAX} at most: {', '.join(fields)}")
    made: type[RunInput] = create_model("Decision", __base__=_Strict, **fields)
    return made


class _Strict(RunInput):
    """A field that the form does not have is refused: whoever sends it means something by it."""

    model_config = ConfigDict(extra="forbid")


def phase_form(means: str = "approve: the next phase may begin; reject: it may not") -> type[RunInput]:
    """Return a form that asks for nothing more than yes or no."""
    return form((APPROVE, REJECT), means)


def migrate_form(*, dead_letters: bool) -> type[RunInput]:
    """Return Migrate's form; keys that could not be carried are accepted by their names only."""
    means = "approve: Commit may begin; reject: it may not"
    if not dead_letters:
        return phase_form(means)
    listed = Field(
        default="", title="Accept dead letters", description="one name a line, as listed; these keys are not on the target", max_length=100_000
    )
    return form((APPROVE, REJECT), means, accept_dead_letters=(str, listed))


def compare_form(*, findings: bool) -> type[RunInput]:
    """Return Compare's form; findings are accepted by their names only."""
    if not findings:
        return phase_form()
    listed = Field(default="", title="Accept findings", description="one name a line, as in the artifact findings", max_length=100_000)
    means = "approve: Test may begin, the findings are accepted by name; reject: it may not"
    return form((APPROVE, REJECT), means, accept_findings=(str, listed))


def _tick(title: str, description: str) -> Any:
    return bool, Field(default=False, title=title, description=description)


_CLOSED = "you did what is asked above, and nobody else writes there"
_LEFT = "the keys that the plan's filters leave out may stay on the source"


def cutover_form(plan: Json, *, filtered: bool, provider: bool) -> type[RunInput]:
    """Return the form of a cutover, with what this plan makes a person confirm, in one field at most."""
    windowed = plan.get("window") is not None
    means = "approve: switch to the target now; "
    means += "approve in window: in the plan's hours, by itself; " if windowed else ""
    means += "reject: the source stays the authority"
    words = (APPROVE, IN_WINDOW, REJECT) if windowed else (APPROVE, REJECT)
    if provider:
        return form(words, means, fence_confirmed=_tick("Fence confirmed", f"{_CLOSED}; {_LEFT}" if filtered else _CLOSED))
    if filtered:
        return form(words, means, leave_behind=_tick("Leave keys behind", _LEFT))
    return form(words, means)


def back_form(*, dead: bool, provider: bool) -> type[RunInput]:
    """Return the form that asks whether to go back to the source."""
    means = "approve: the source is the authority again; reject: nothing changes"
    if dead:
        return form((APPROVE, REJECT), means, accept_loss=_tick("Accept the loss", "what had not flowed back stays on the dead target, as listed"))
    if provider:
        return form((APPROVE, REJECT), means, fence_confirmed=_tick("Fence confirmed", _CLOSED))
    return form((APPROVE, REJECT), means)


def next_form() -> type[RunInput]:
    """Return the form after a rollback: once more, or not at all."""
    clean = bool, Field(title="Clean the target", description="abandon only: remove the keys that Exodus copied there")
    return form((RETRY, ABANDON), "retry: go on with Migrate; abandon: the migration ends for good", clean_target=clean)


def completed(given: Json, plan: Json, *, filtered: bool = False) -> Json:
    """Return an answer as the ledger keeps it: with the verdict alone, the window it is for, and every confirmation by its name."""
    answer = dict(given)
    if filtered and "leave_behind" not in answer:  # confirmed together with the fence
        answer["leave_behind"] = answer.get("fence_confirmed", False)
    if answer["decision"] == IN_WINDOW:
        answer.update(decision=APPROVE, when="window", **plan["window"])
    return answer


def provider_instruction(plan: Json, side: Side) -> str | None:
    """What the plan asks a person to do before `side` stops being the authority; None: a server refuses writes by itself."""
    fencing = Fencing.model_validate(plan["fence"])
    return fencing.instruction(side) if fencing.of(side) is FenceKind.PROVIDER else None


def why_not_closed(answer: Json, instruction: str | None) -> str | None:
    """Why an approval cannot be, where it needs a person's word; or None."""
    if instruction is None or answer["decision"] != APPROVE or answer.get("fence_confirmed"):
        return None
    return f"nothing refuses writes by itself: {instruction}, then tick Fence confirmed (fence_confirmed)"


def why_not_left(answer: Json, *, filtered: bool) -> str | None:
    """Why a cutover cannot be approved while the plan's filters leave keys behind that nobody has said may stay; or None."""
    if not filtered or answer["decision"] != APPROVE or answer.get("leave_behind"):
        return None
    return "the plan's filters leave keys behind: look at which, then tick Leave keys behind (leave_behind)"


def window_of(answer: Json) -> Json | None:
    """The window that a cutover was approved for, or None: now."""
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
    if answer.get("clean_target") and answer["decision"] == RETRY:
        return "clean_target goes with abandon only: a retry keeps what is verified"
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
    """Wait for a person, for days if need be; returns the ledger's entry.

    Call it from a flow, not from a task: the flow ends here and runs again from the top when somebody has answered.

    Args:
        refuse: looks at an answer and its number, and says why it cannot be; it must say the same of the same answer for ever (a task whose
            result is kept), since the flow asks it anew each time it runs from the top.
        complete: makes of the form's fields what the ledger keeps.
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
            given = {name: field.default for name, field in asks.model_fields.items() if not field.is_required()} | beforehand
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


def close_phase(migration: str, phase: str, decision: Json, *, approved: str = "approve") -> State[str]:
    """End the phase as decided; a rejection ends the run in a state of that name."""
    yes = decision["verdict"] == approved
    outcome = "approved" if yes else "rejected"
    finish_phase(migration, phase, outcome)
    return Completed(name=None if yes else "Rejected", message=f"{phase}: {decision['verdict']} by {decision['decided_by']}: {decision['why']}")
