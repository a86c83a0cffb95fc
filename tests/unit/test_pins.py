"""Everything that `make install` fetches is named with its version and the hashes of its files."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ["constraints.txt", "tests/support/jobs/requirements.txt", "benchmarks/requirements.txt"]


def _pins(path: str) -> dict[str, tuple[str, int]]:
    lines = "\n".join(
        line for line in (ROOT / path).read_text().splitlines() if not line.startswith("#")
    )
    found = {}
    for entry in re.split(r"\n(?=\S)", lines.replace("\\\n", " ")):
        name, _, rest = entry.strip().partition("==")
        assert rest, f"{path}: {entry!r} has no version"
        found[name] = (rest.split()[0], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", rest)))
    return found


@pytest.mark.parametrize("path", FILES)
def test_every_pin_has_hashes(path: str) -> None:
    pins = _pins(path)
    assert pins
    assert [name for name, (_, hashes) in pins.items() if not hashes] == []


def test_make_installs_nothing_without_its_hash() -> None:
    recipe = (ROOT / "Makefile").read_text()
    (pinned,) = re.findall(r"^PINNED := (.*)$", recipe, re.MULTILINE)
    assert {"--require-hashes", "--no-deps", "--only-binary"} <= set(pinned.split())
    for command in re.findall(r"pip install (.*)$", recipe, re.MULTILINE):
        assert "$(PINNED)" in command or {"--no-deps", "--no-build-isolation"} <= set(
            command.split()
        ), command


def test_what_builds_exodus_is_pinned_too_and_all_of_it_is_installed() -> None:
    pins = _pins("constraints.txt")
    for required in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"][
        "requires"
    ]:
        name, _, wanted = required.partition("==")
        assert pins[name][0] == wanted
    differ = {
        name: (wanted, version(name))
        for name, (wanted, _) in pins.items()
        if version(name) != wanted
    }
    assert differ == {}
