"""Documents name what exists: paths and symbols of the tour, make targets and files that pages point at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from exodus.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").rglob("*.md"))


def test_every_stop_of_the_tour_exists() -> None:
    stops = re.findall(r"`([\w/]+\.py):(\w+)`", (ROOT / "docs/tour.md").read_text())
    assert len(stops) > 10
    for path, symbol in stops:
        assert re.search(rf"^(async )?(def|class) {symbol}\b", (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {symbol}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), f"{page.name} points at {target}"
    for path in re.findall(r"`((?:exodus|flows|tasks|blocks|tests|docs|examples|benchmarks)/[\w/.-]+)`", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL):
            for named in re.findall(r"^make ([a-z0-9]+)", block, re.MULTILINE):
                assert named in targets, f"{page.name}: make {named}"


def _commands(page: Path) -> Iterator[list[str]]:
    """What a page gives to `exodus` in its blocks, in words."""
    for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for found in re.findall(r"(?:^\s*|ExecStart=|\$\(|until )(?:\S*/)?exodus ([a-z-][^#|;)&>]*)", line):
                yield found.split()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_that_a_page_shows_exists(page: Path) -> None:
    """With each of its options."""
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for words in _commands(page):
        verb = words[0]
        assert verb.startswith("-") or verb in verbs, f"{page.name}: exodus {verb}"
        if verb.startswith("-"):
            continue
        command = verbs[verb]
        if hasattr(command, "commands"):
            assert words[1] in command.commands, f"{page.name}: exodus {verb} {words[1]}"
            command = command.commands[words[1]]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - known - {"--help"}
        assert not unknown, f"{page.name}: exodus {verb}: {unknown}"
