"""The structure holds: formatter, linter, types, import contract; and every error is fit to be
shown and sent.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from exodus import errors

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        ["lint-imports"],
        ["pylint", "exodus", "flows", "tasks", "blocks", "examples", "benchmarks"],
        ["mypy", "exodus", "flows", "tasks", "blocks", "examples", "benchmarks"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_lint(command: list[str]) -> None:
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def _kinds(kind: type[errors.ExodusError]):
    yield kind
    for inner in kind.__subclasses__():
        yield from _kinds(inner)


@pytest.mark.parametrize("kind", sorted(_kinds(errors.ExodusError), key=lambda kind: kind.__name__))
def test_every_error_is_told_in_three_lines_and_survives_a_process_boundary(
    kind: type[errors.ExodusError],
) -> None:
    error = kind("what", why="why", next_step="next")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error) == f"what [{kind.code}]\n  why:  why\n  next: next"
    assert kind.exit_status in (1, 2, 70)
    headings = (ROOT / "docs/operating/errors.md").read_text()
    assert f"## {kind.code}\n" in headings, f"docs/operating/errors.md has no heading '{kind.code}'"


def test_unit_tests_mirror_the_tree() -> None:
    """A unit test of `exodus/ROOM/` is in `tests/unit/exodus/ROOM/`."""
    folder = ROOT / "tests/unit/exodus"
    rooms = {path.relative_to(folder) for path in folder.rglob("*") if path.is_dir()}
    missing = [
        room
        for room in rooms
        if room.name != "__pycache__" and not (ROOT / "exodus" / room).is_dir()
    ]
    assert missing == []
