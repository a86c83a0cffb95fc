"""The structure holds: formatter, linter, types, import contract; and every error is fit to be
shown and sent.
"""

from __future__ import annotations

import ast
import pickle
import re
import subprocess
import sys
from collections import Counter
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


def test_a_room_with_logic_has_unit_tests() -> None:
    """Rooms whose every module awaits something are tested on real servers, in `tests/fault`."""
    rooms = {
        path.relative_to(ROOT / "exodus").parts[0]
        for path in (ROOT / "exodus").glob("*/**/*.py")
        if _is_logic(ast.parse(path.read_text()))
    }
    tests = ROOT / "tests/unit/exodus"
    assert [room for room in sorted(rooms) if not list((tests / room).glob("test_*.py"))] == []


def _is_logic(tree: ast.Module) -> bool:
    nodes = list(ast.walk(tree))
    waits = any(isinstance(node, (ast.AsyncFunctionDef, ast.Await)) for node in nodes)
    return not waits and any(isinstance(node, ast.FunctionDef) for node in nodes)


def test_lua_is_in_files_of_a_hundred_columns() -> None:
    """A probe of one line may stand where it is used."""
    for path in (ROOT / "exodus").rglob("*.lua"):
        long = [line for line in path.read_text().splitlines() if len(line) > 100]
        assert long == [], path
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text())):
            text = node.value if isinstance(node, ast.Constant) else None
            lua = isinstance(text, str) and "redis.call(" in text and text.count("\n") > 1
            assert not lua, f"{path}: {node.lineno}"


def test_a_line_that_the_formatter_leaves_says_why() -> None:
    bare = [
        path
        for path in _sources()
        if re.search(r"# fmt: (skip|off)$", path.read_text(), re.MULTILINE)
    ]
    assert bare == []


def test_nothing_of_the_product_is_there_for_tests_alone() -> None:
    """A constant or function that nothing but its own line names, in each module that has it."""
    words: Counter[str] = Counter()
    for path in (*_sources(), *(ROOT / "examples").rglob("*.py"), *ROOT.glob("*.toml")):
        words.update(re.findall(r"\w+", path.read_text()))
    for path in (ROOT / "exodus").rglob("*.j2"):
        words.update(re.findall(r"\w+", path.read_text()))
    defined = [
        (path, name)
        for path in _sources()
        for node in ast.parse(path.read_text()).body
        for name in _names_of(node)
    ]
    modules = Counter(name for _, name in defined)
    unused = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, name in defined
        if words[name] == modules[name] and name != "__all__"
    ]
    assert unused == []


def test_a_class_name_stands_for_one_thing() -> None:
    """A reader who meets a class name in two modules must not have to ask which one is meant."""
    modules: dict[str, list[str]] = {}
    for path in (*_sources(), *_scripts()):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                modules.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: places for name, places in modules.items() if len(places) > 1} == {}


# Numbers outside the bounds module with a limit's or a time's name, and why they are there
_LIMIT = re.compile(r"_(S|MS|US|MIN|MAX|BYTES|DAYS|EVERY|KEPT|STEPS|ATTEMPTS|RETRIES|KEYS)$")
_NOT_BOUNDS = {
    "_NO_KEYS": "none",
    "_DAY_S": "a unit",
    "_DAY_MIN": "a unit",
    "_MS": "a unit",
    "_MONTH_DAYS": "a unit",
    "_EPOCH_MS": "tells a time from a duration",
    "_SCRIPT_MS": "the servers' own default",
    "_DATABASES_MAX": "the servers' own limit",
    "_BULK_BYTES_MAX": "what a length can say in RESP",
    "_ARGS_MAX": "what a length can say in RESP",
    "_DIGITS_MAX": "what a length can say in RESP",
    "_FOOT_BYTES": "of a payload of DUMP",
    "FOOTER_BYTES": "of a payload of DUMP",
    "_ID_BYTES": "of a stream's entry",
    "_LZF_RATIO_MAX": "of the format",
    "_HEAD_BYTES": "of a format of ours",
    "_CURSOR_HEAD_BYTES": "a frame's beginning",
    "VALUE_MAX": "of the histogram's buckets",
    "_STEPS": "more than a double can tell apart",
    "_HEADS_MAX": "compiled: how many lengths are encoded beforehand",
    "_SHORT_BYTES": "compiled: from where on a copy costs more than a look",
    "_FIRST_BYTES_MAX": "compiled: how much of a first element is kept",
    "_SHORT_LINE_BYTES": "compiled: how far a line's end is looked for byte by byte",
    "_REQUEST_S": "the fork server imports nothing of the product",
    "_REMEMBERED_MIN": "the lowest room, which imports nothing of the product",
}


def test_bounds_stand_in_the_bounds_module() -> None:
    """A queue, buffer, wait, or retry has its bound where all are read together."""
    found: dict[str, str] = {}
    for path in _sources():
        if path == ROOT / "exodus/plan/bounds.py":
            continue
        for node in ast.parse(path.read_text()).body:
            for name, value in _assigned(node):
                if _is_bound(name, value):
                    found[name] = f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
    assert [place for name, place in found.items() if name not in _NOT_BOUNDS] == []
    assert _NOT_BOUNDS.keys() <= found.keys()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("_WAIT_S = 2.5", True),
        ("_WAIT_S: Final = 60 * 5", True),
        ("QUEUE_MAX = 1 << 20", True),
        ("_WAITS_S = (0.1, 1)", True),
        ("_NAMES_MAX = SEEN_MAX", False),  # another one's value
        ("_NO_SHARD = -1", False),
        ("_FIELD_MS = 'at_ms'", False),
    ],
)
def test_a_bound_elsewhere_is_seen(line: str, expected: bool) -> None:
    (node,) = ast.parse(line).body
    ((name, value),) = _assigned(node)
    assert _is_bound(name, value) is expected


def _assigned(node: ast.stmt) -> list[tuple[str, ast.expr]]:
    """Return the names that a statement gives values, with these."""
    if isinstance(node, ast.Assign):
        return [(each.id, node.value) for each in node.targets if isinstance(each, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
        return [(node.target.id, node.value)]
    return []


def _is_bound(name: str, value: ast.expr) -> bool:
    """Return whether a limit's name has a number, several, or arithmetic of numbers alone."""
    leaves = [each for each in ast.walk(value) if isinstance(each, ast.Constant | ast.Name)]
    return bool(_LIMIT.search(name) and leaves) and all(
        isinstance(leaf, ast.Constant) and type(leaf.value) in (int, float) for leaf in leaves
    )


def _names_of(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Assign):
        return [each.id for each in node.targets if isinstance(each, ast.Name)]
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = isinstance(node, functions) and not node.decorator_list
    return [node.name] if found else []


def _sources() -> list[Path]:
    folders = ("exodus", "flows", "tasks", "blocks")
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def _scripts() -> list[Path]:
    return [path for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]


def test_a_command_does_not_load_what_only_flows_need() -> None:
    """Gateways are commands, too: pandas costs each 30 MB, and time to start."""
    code = "import exodus.cli.app, sys; print(*{'pandas', 'prefect', 'dask'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
