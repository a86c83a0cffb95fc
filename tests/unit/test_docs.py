"""Documents name only what exists: files, headings, symbols, make targets, commands, options,
metrics. Generated pages are up to date.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import typer
from pydantic import BaseModel

from exodus.cli.app import app
from exodus.plan.migration_file import MigrationFile

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
] + sorted((ROOT / "docs").rglob("*.md"))
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "docs_reference", ROOT / "docs/reference/generate.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "migration-file.md", "metrics.md", "errors.md"])
def test_generated_pages_are_what_the_code_says(name: str) -> None:
    pages = _generator().pages()
    assert len(pages) == 4
    assert (ROOT / "docs/reference" / name).read_text() == pages[name], "run `make docs`"


def _fields(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[tuple[str, str | None]]:
    seen.add(model)
    for name, field in model.model_fields.items():
        if not field.exclude and name != "plan":
            yield f"{model.__name__}.{name}", field.description
        for inner in re.findall(r"exodus[.\w]*\.(\w+)", repr(field.annotation)):
            found = [
                each for each in _models(BaseModel) if each.__name__ == inner and each not in seen
            ]
            for each in found:
                yield from _fields(each, seen)


def _models(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for inner in kind.__subclasses__():
        yield inner
        yield from _models(inner)


def test_every_field_of_the_migration_file_is_described() -> None:
    fields = dict(_fields(MigrationFile, set()))
    assert len(fields) > 80
    assert not [name for name, description in fields.items() if not description]


def test_every_stop_of_the_tour_exists() -> None:
    stops = re.findall(r"`([\w/]+\.py):(\w+)`", (ROOT / "docs/design/tour.md").read_text())
    assert len(stops) > 10


@EACH_PAGE
def test_every_symbol_that_a_page_names_exists(page: Path) -> None:
    for path, symbol in re.findall(r"`([\w/]+\.py):(\w+)`", page.read_text()):
        assert re.search(
            rf"^(async )?(def|class) {symbol}\b", (ROOT / path).read_text(), re.MULTILINE
        ), f"{path} has no {symbol}"


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub derives them from its headings."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@EACH_PAGE
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name} points at {target}"
        assert not anchor or anchor in _anchors(there), f"{page.name} points at {target}"


@EACH_PAGE
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    paths = re.findall(
        r"`((?:exodus|flows|tasks|blocks|tests|docs|examples|benchmarks)/[\w/.-]+)`", text
    )
    for path in paths + re.findall(r"\bdocs/[\w/-]+\.md\b", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_every_page_that_the_code_names_exists() -> None:
    for folder in ("exodus", "flows", "tasks", "blocks", "tests", "benchmarks", "examples"):
        for module in (ROOT / folder).rglob("*.py"):
            for path in re.findall(r"\bdocs/[\w/-]+\.md\b", module.read_text()):
                assert (ROOT / path).exists(), f"{module} names {path}"


@EACH_PAGE
def test_every_metric_that_a_page_names_exists(page: Path) -> None:
    known = {name for name, _, _ in _generator().metrics()}
    assert len(known) > 50
    named = set(re.findall(r"`(exodus_(?:gateway|syncer|comparer)_\w+)`", page.read_text()))
    assert named <= known, f"{page.name}: {named - known}"


def test_every_page_is_in_the_index() -> None:
    linked = {
        (ROOT / "docs" / target).resolve()
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs/README.md").read_text())
    }
    unlisted = [
        page
        for page in (ROOT / "docs").rglob("*.md")
        if page not in linked and page.parent.name != "decisions"
    ]
    assert unlisted == [ROOT / "docs/README.md"]
    records = {
        (ROOT / "docs/decisions" / target)
        for target in re.findall(
            r"\]\((\d[^)]+)\)", (ROOT / "docs/decisions/README.md").read_text()
        )
    }
    assert records == set((ROOT / "docs/decisions").glob("0*.md"))


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL):
            for named in re.findall(r"^make ([a-z0-9]+)", block, re.MULTILINE):
                assert named in targets, f"{page.name}: make {named}"


def _commands(page: Path) -> Iterator[list[str]]:
    """Return what a page passes to `exodus` in its code blocks, as words."""
    for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for found in re.findall(
                r"(?:^\s*|ExecStart=|\$\(|until )(?:\S*/)?exodus ([a-z-][^#|;)&>]*)", line
            ):
                yield found.split()


@EACH_PAGE
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
        known = {
            option
            for parameter in command.params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        unknown = (
            {word.partition("=")[0] for word in words if word.startswith("--")} - known - {"--help"}
        )
        assert not unknown, f"{page.name}: exodus {verb}: {unknown}"
