"""Great Expectations' own pages of a phase's gates (its data docs), in a folder of the worker.

The library writes pages that fetch scripts and styles from eight hosts, and an index that a script
fills. Here each page loses its scripts and gets a style of ours, so it can be read without a
network and asks nobody for anything. The index is ours too. `tasks/gates.py` escapes the values,
because the library does not.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from exodus.errors import OperatorError
from exodus.private_files import FOLDER_MODE, evidence_folder, private_folder, write_private
from tasks.context import Json
from tasks.gates import Judged

if TYPE_CHECKING:
    from jinja2 import Template

_SITE = "evidence"
_INDEX = "index.html"
_GONE = re.compile(r"<(script|style|footer)\b.*?</\1>|<(link|img)\b[^>]*>", re.DOTALL)
_HANDLER = re.compile(r"\son[a-z]+=\"[^\"]*\"")
_HEAD = """<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'">
<style>
  body { font: 15px/1.45 system-ui, sans-serif; max-width: 80rem; margin: 1.5rem auto;
    padding: 0 1rem; color: #1b1b1b }
  table { border-collapse: collapse; margin: .4rem 0 1rem }
  td, th { border: 1px solid #ccc; padding: .25rem .6rem; text-align: left; vertical-align: top;
    overflow-wrap: anywhere }
  th { background: #f3f3f3 }
  nav ol { list-style: none; padding: 0; display: flex; gap: 1rem }
  .badge { background: #eee; border-radius: .2rem; padding: 0 .3rem }
  .text-danger { color: #a40000 } .text-success { color: #1e6b1e }
  .fa-times::before { content: "✗" } .fa-check-circle::before { content: "✓" }
  .fa-exclamation-triangle::before { content: "!" }
  .btn-group, .btn-group-toggle { display: none }
</style>
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
{{ head | safe }}</head><body>
<h1>{{ title }}</h1>
<p>What Great Expectations found. A gate is a suite of expectations over one table.</p>
<table><tr><th>gate</th><th>expectations that hold</th><th>result</th><th>suite</th></tr>
{% for gate in gates %}<tr><td>{{ gate.name }}: {{ gate.says }}</td>
<td class="{{ 'text-success' if gate.held == gate.all else 'text-danger' }}"
>{{ gate.held }} of {{ gate.all }}</td>
<td><a href="{{ gate.result }}">result</a></td><td><a href="{{ gate.suite }}">suite</a></td></tr>
{% endfor %}</table></body></html>
"""


def write_data_docs(judged: Judged, migration: str, phase: str) -> Json:
    """Write the pages of a phase's gates, in place of those of the last evaluation.

    Returns:
        `index`, the path of the first page, and `sha256`, the digest of all pages.

    Raises:
        OperatorError: the folder cannot be used.
        OSError: a page could not be written.
    """
    under = private_folder(private_folder(evidence_folder() / migration) / "data-docs")
    folder, new = under / phase, under / f".{phase}.{os.getpid()}"
    shutil.rmtree(new, ignore_errors=True)  # of a process with the same id that died
    new.mkdir(mode=FOLDER_MODE)
    try:
        _build(judged, new)
        pages = _made_readable(new)
        index = _template().render(
            title=f"{migration}: {phase}", head=_HEAD, gates=_gates(judged, new)
        )
        write_private(new / _INDEX, index)
        pages[_INDEX] = index.encode()
        _replace(folder, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    digest = hashlib.sha256()
    for name in sorted(pages):
        digest.update(name.encode() + b"\0" + pages[name] + b"\0")
    return {"index": str(folder / _INDEX), "sha256": digest.hexdigest()}


def _build(judged: Judged, folder: Path) -> None:
    judged.context.add_data_docs_site(
        site_name=_SITE,
        site_config={
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(folder),
            },
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        },
    )
    judged.context.build_data_docs(site_names=[_SITE])
    shutil.rmtree(folder / "static")  # fonts and films, 4 MB


def _made_readable(folder: Path) -> dict[str, bytes]:
    """Return the pages by their relative names, as they are now."""
    pages = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            path.chmod(FOLDER_MODE)
            continue
        text = _HANDLER.sub("", _GONE.sub("", path.read_text()))
        write_private(path, text.replace("</head>", f"{_HEAD}</head>", 1))
        pages[str(path.relative_to(folder))] = path.read_bytes()
    return pages


def _gates(judged: Judged, folder: Path) -> list[Json]:
    gates = []
    for name in dict.fromkeys(row["gate"] for row in judged.rows):
        rows = [row for row in judged.rows if row["gate"] == name]
        result = next((folder / "validations" / name).rglob("*.html"), None)
        if result is None:  # a failed page is only in the library's log
            raise OperatorError(
                f"Great Expectations rendered no page of the gate {name}",
                why="the log of this run has its error",
                next_step="exodus report has the same rows",
            )
        gates.append(
            {
                "name": name,
                "says": rows[0]["says"],
                "held": sum(row["outcome"] == "pass" for row in rows),
                "all": len(rows),
                "result": str(result.relative_to(folder)),
                "suite": f"expectations/{name}.html",
            }
        )
    return gates


def _replace(folder: Path, new: Path) -> None:
    old = new.with_name(f"{new.name}.old")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@cache
def _template() -> Template:
    from jinja2 import Environment  # a worker that evaluates nothing does not need it

    return Environment(autoescape=True).from_string(_PAGE)
