"""A rehearsal goes through a cutover's steps, so that its stall predicts the stall of one."""

from __future__ import annotations

from exodus.cutover import switch
from exodus.plan.address import Address
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.rehearsal.steps import steps

# They are of a whole side, or of what was checked before: a rehearsal has neither.
_OF_A_CUTOVER = {"readiness", "let in", "verify", "open", "kill strays", "flow back"}
_THE_SAME = {"hold", "switch", "release"}


def test_a_rehearsal_takes_the_steps_of_a_cutover_in_their_order() -> None:
    plan = Plan(
        name="shop",
        source=Address(host="127.0.0.1", port=1),
        target=Address(host="127.0.0.1", port=2),
    )
    whole = [step for step in switch.steps(plan, Side.TARGET) if step.name not in _OF_A_CUTOVER]
    mine = steps()
    assert [step.name for step in mine] == [step.name for step in whole]
    for one, other in zip(mine, whole, strict=True):
        assert (one.do is other.do) is (one.name in _THE_SAME), one.name
        assert one.bounded is other.bounded or one.name == "pre-drain", one.name
