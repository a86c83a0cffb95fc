"""Printing: data on standard output, words on standard error; legible without colour. All of it through `exodus/safe_text.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exodus.errors import ExodusError
from exodus.safe_text import cleaned, lines, plain


def say(text: str) -> None:
    """A line for a person, on standard error."""
    print(lines(text), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Lines for a person, on standard output."""
    print(lines(text))


def show_error(error: ExodusError) -> None:
    """What happened, why, and what to do next."""
    say(f"error: {error}")


def show_json(document: object) -> None:
    """Data for a program."""
    sys.stdout.write(orjson.dumps(cleaned(document), option=orjson.OPT_INDENT_2, default=str).decode() + "\n")


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Data for a person."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*[Text(plain(cell)) for cell in row])
    Console().print(table)
