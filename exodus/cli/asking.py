"""Ask the person at the terminal. A script has no terminal and is not asked."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

YesOption = Annotated[bool, typer.Option("--yes", help="do not ask for confirmation")]


def at_a_terminal() -> bool:
    """Return whether a person can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, *, yes: bool) -> None:
    """Ask for confirmation at a terminal. End with exit status 1 if the answer is no."""
    if not yes and at_a_terminal() and not typer.confirm(question, err=True):
        raise typer.Exit(1)
