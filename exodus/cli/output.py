"""Print data on standard output and messages on standard error, legible without colour.

All output passes `exodus/safe_text.py`, which masks secrets.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import orjson
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from exodus.errors import ExodusError
from exodus.plan.bounds import CLI_TABLE_COLUMNS_MAX
from exodus.safe_text import cleaned, lines, plain


def say(*texts: str) -> None:
    """Print lines for a person on standard error.

    Each text is one line: a line end in a key or a name would begin a line that Exodus never wrote.
    """
    for text in texts:
        print(plain(text), file=sys.stderr, flush=True)


def show(*texts: str) -> None:
    """Print lines for a person on standard output, as `say`."""
    for text in texts:
        print(plain(text))


def show_error(error: ExodusError) -> None:
    """Print what happened, why, and what to do next."""
    print(lines(f"error: {error}"), file=sys.stderr, flush=True)


def show_json(document: object) -> None:
    """Print data for a program."""
    sys.stdout.write(
        orjson.dumps(cleaned(document), option=orjson.OPT_INDENT_2, default=str).decode() + "\n"
    )


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table for a person. Where the output is no terminal, each row is one line: a file, or
    `less -S`.
    """
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*[Text(plain(cell)) for cell in row])
    console = Console()
    if not console.is_terminal:
        wide = console.options.update(max_width=CLI_TABLE_COLUMNS_MAX)
        console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)
