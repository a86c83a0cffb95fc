"""A row of a check."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Checked:
    """One thing that holds or not. `why` and `next_step` say what it means that it does not."""

    check: str
    ok: bool
    detail: str = ""
    why: str = ""
    next_step: str = ""
    judged: bool = True  # False: it is only shown, whatever it says
    line: str = ""  # of the form, where a person has to see it in any case


def told(check: str, detail: str, *, line: str = "") -> Checked:
    """Return a row that is only shown."""
    return Checked(check, True, detail, judged=False, line=line)
