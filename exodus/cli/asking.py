"""Asking the person at the terminal. A script, which has no terminal, is not asked."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

YesOption = Annotated[bool, typer.Option("--yes", help="do not ask again, also at a terminal")]


def at_a_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, *, yes: bool) -> None:
    """Ask for a yes where a person is there to give it; end the command, exit status 1, where the answer is no."""
    if not yes and at_a_terminal() and not typer.confirm(question, err=True):
        raise typer.Exit(1)
