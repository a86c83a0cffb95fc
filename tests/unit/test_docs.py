"""Documents name what exists: paths and symbols of the tour, make targets and files that pages point at."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
