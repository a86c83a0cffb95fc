"""Names that a person accepts in a form, one a line. No I/O."""

from __future__ import annotations

from collections.abc import Set

from exodus.plan.bounds import ACCEPTED_NAMES_SHOWN


def names_in(text: str, there: Set[str]) -> list[str]:
    """Return the names of a form's field, one a line; `there` are those that may be meant.

    A key's name may begin or end with a space, and so may a line that somebody pasted.
    """
    return [line if line in there else line.strip() for line in text.splitlines() if line.strip()]


def why_not_all(
    text: str, there: Set[str], *, field: str, noun: str, resolved: str, resolve: str
) -> str | None:
    """Return why the names in a field are not exactly those that are there; None if they are.

    Args:
        field: the form's field.
        noun: what a name stands for: "dead letter".
        resolved: how one goes away by itself: "repaired"; `resolve` is the same as a request.
    """
    names = names_in(text, there)
    unknown = next((name for name in names if name not in there), None)
    if unknown is not None:
        return f"{field}: {unknown!r} is no {noun}; write names as they are listed, one a line"
    missing = sorted(there - set(names))
    if not missing:
        return None
    shown = ", ".join(missing[:ACCEPTED_NAMES_SHOWN])
    return (
        f"{len(missing)} {noun}(s) are neither {resolved} nor accepted: {shown}; name them in "
        f"{field}, or reject and {resolve}"
    )
