"""An edit anywhere in an evidence bundle is found, without any server."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from exodus.cutover import bundle
from exodus.errors import OperatorError

DECISION = {
    "at_ms": 1_795_000_000_000, "phase": "commit", "event": "decided", "gate": "cutover", "verdict": "approve", "decided_by": "<b>Ada</b>",
    "why": "numbers look right", "evidence": "evidence.migrate", "evidence_digest": "ab" * 32, "flow_run_id": "x", "facts": {},
}  # fmt: skip
DOCUMENTS: dict[str, object] = {
    "plan": {"name": "orders", "partitions": 8},
    "ledger": {"entries": [DECISION]},
    "report.switch.commit": {"authority": "target", "timeline": [{"step": "hold", "ms": 4.2}, {"step": "fence", "ms": 1.0, "failed": "x"}]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundle.write(tmp_path / "bundle", DOCUMENTS)
    return tmp_path / "bundle"


def test_a_bundle_as_it_was_written_is_whole(folder: Path) -> None:
    found = bundle.check(folder)
    assert found.problems == []
    assert found.files == len(DOCUMENTS) + 1
    assert found.head == (folder / "head.txt").read_text().strip()


def test_one_byte_changed_anywhere_is_found(folder: Path) -> None:
    """Every byte of the small files, and drawn ones of the others."""
    draw = random.Random(1)
    for path in sorted(folder.iterdir()):
        raw = path.read_bytes()
        places = range(len(raw)) if len(raw) < 400 else sorted({0, len(raw) - 1, *draw.sample(range(len(raw)), 100)})
        for place in places:
            path.write_bytes(raw[:place] + bytes([raw[place] ^ (1 << draw.randrange(8))]) + raw[place + 1 :])
            assert bundle.check(folder).problems, f"{path.name}, byte {place}"
        path.write_bytes(raw)
    assert bundle.check(folder).problems == []


@pytest.mark.parametrize("name", ["plan.json", "report.html", "head.txt"])
def test_a_file_that_is_gone_is_found(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert any(name in problem for problem in bundle.check(folder).problems)


def test_a_file_that_was_added_is_found(folder: Path) -> None:
    (folder / "another.json").write_text("{}")
    assert bundle.check(folder).problems == ["another.json: not part of the bundle"]


def test_a_line_that_was_taken_out_or_moved_is_found(folder: Path) -> None:
    manifest = folder / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    for edited in (lines[:-1], lines[1:], [lines[1], lines[0], *lines[2:]]):
        manifest.write_bytes(b"".join(edited))
        assert bundle.check(folder).problems


def test_a_whole_new_bundle_is_told_from_the_first_by_its_head(folder: Path, tmp_path: Path) -> None:
    head = bundle.check(folder).head
    spoiled = {**DOCUMENTS, "ledger": {"entries": [{**DECISION, "decided_by": "somebody else"}]}}
    bundle.write(tmp_path / "new", spoiled)
    assert bundle.check(tmp_path / "new").problems == []
    assert "another bundle" in bundle.check(tmp_path / "new", head=head).problems[0]


def test_a_bundle_is_never_written_over(folder: Path) -> None:
    with pytest.raises(OperatorError, match="not empty"):
        bundle.write(folder, DOCUMENTS)


def test_the_report_shows_decisions_and_timelines_and_runs_nothing(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "numbers look right" in page
    assert "&lt;b&gt;Ada" in page
    assert "<b>Ada" not in page
    assert "<script" not in page
    assert "hold" in page
