"""The evidence bundle: everything that was decided and proved, in a folder, hash-chained, checkable without any server.

    manifest.jsonl   one line a file: its name, size and SHA-256, and the chain: SHA-256 of the line before and of this line's facts
    head.txt         the last link of the chain; it is also written into the ledger, where whoever edits the folder does not reach
    *.json           the documents, canonical JSON
    report.html      the same for a person

`check` finds any byte that was changed, any file that was added, removed or renamed, and any line that was moved. Somebody who writes
a whole new bundle has another head: compare it with the ledger's, or with the one that was printed (`--head`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from exodus.cutover.report import render
from exodus.errors import OperatorError

_MANIFEST, _HEAD = "manifest.jsonl", "head.txt"
_FIRST = "0" * 64
_CANONICAL = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2
Json = dict[str, Any]


def _link(before: str, facts: Json) -> str:
    return hashlib.sha256(before.encode() + orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _facts(name: str, raw: bytes) -> Json:
    return {"file": name, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def write(folder: Path, documents: Mapping[str, object]) -> str:
    """Write a bundle into a new folder; returns its head.

    Raises:
        OperatorError: the folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise OperatorError(f"{folder} is not empty", why="a bundle is written once and never changed", next_step="name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{name}.json": orjson.dumps(document, option=_CANONICAL, default=str) for name, document in sorted(documents.items())}
    files["report.html"] = render(documents).encode()
    chain, lines = _FIRST, []
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
        facts = _facts(name, raw)
        chain = _link(chain, facts)
        lines.append(orjson.dumps({**facts, "chain": chain}, option=orjson.OPT_SORT_KEYS))
    (folder / _MANIFEST).write_bytes(b"\n".join(lines) + b"\n")
    (folder / _HEAD).write_text(chain + "\n")
    return chain


@dataclass
class Checked:
    """What a check found."""

    files: int = 0
    head: str = ""
    problems: list[str] = field(default_factory=list)


def check(folder: Path, *, head: str | None = None) -> Checked:
    """Hold every file of a bundle against its chain; nothing is asked of any server.

    Raises:
        OperatorError: there is no bundle.
    """
    manifest = folder / _MANIFEST
    if not manifest.is_file():
        raise OperatorError(f"{folder} holds no evidence bundle", why=f"there is no {_MANIFEST}", next_step="name the folder of a bundle")
    found = Checked(head=_FIRST)
    named: set[str] = set()
    raw_lines = manifest.read_bytes().split(b"\n")
    if raw_lines.pop() != b"":
        found.problems.append(f"{_MANIFEST}: its end was changed")
    for number, raw in enumerate(raw_lines, 1):
        name = _check_line(folder, number, raw, found)
        if name is not None:
            named.add(name)
    said = (folder / _HEAD).read_bytes() if (folder / _HEAD).is_file() else b""
    if said != found.head.encode() + b"\n":
        found.problems.append(f"{_HEAD}: it is not the chain's last link")
    if head is not None and head != found.head:
        found.problems.append(f"the head is {found.head}, not {head}: this is another bundle")
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    found.problems += [f"{name}: not part of the bundle" for name in sorted(here - named - {_MANIFEST, _HEAD})]
    return found


def _check_line(folder: Path, number: int, raw: bytes, found: Checked) -> str | None:
    try:
        line = orjson.loads(raw)
        name, chain = str(line["file"]), str(line.pop("chain"))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        found.problems.append(f"{_MANIFEST}: line {number} cannot be read")
        return None
    path = folder / name
    if path.parent != folder or not path.is_file():
        found.problems.append(f"{name}: missing")
        return name
    found.files += 1
    facts = _facts(name, path.read_bytes())
    found.head = _link(found.head, facts)
    if line != facts:
        found.problems.append(f"{name}: changed")
    elif raw != orjson.dumps({**facts, "chain": chain}, option=orjson.OPT_SORT_KEYS) or chain != found.head:
        found.problems.append(f"{_MANIFEST}: line {number}, or one before it, was changed")
    return name
