"""An edit anywhere in an evidence bundle is found, without any server."""

from __future__ import annotations

import os
import random
from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from exodus.closing import bundle
from exodus.control.ledger import FIRST, digest
from exodus.errors import OperatorError

DECISION = {
    "at_ms": 1_795_000_000_000,
    "phase": "commit",
    "event": "decided",
    "gate": "cutover",
    "verdict": "approve",
    "decided_by": "<b>Ada</b>",
    "why": "numbers look right",
    "evidence": "evidence.migrate",
    "evidence_digest": "ab" * 32,
    "flow_run_id": "x",
    "facts": {},
    "known_by": "typed",
    "before": FIRST,
}
DOCUMENTS: dict[str, object] = {
    "plan": {"name": "orders", "partitions": 8},
    "ledger": {"entries": [DECISION]},
    "report.switch.commit": {
        "authority": "target",
        "timeline": [{"step": "hold", "ms": 4.2}, {"step": "fence", "ms": 1.0, "failed": "x"}],
    },
}


def _head(folder: Path) -> str:
    return (folder / "head.txt").read_text().strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundle.write(tmp_path / "bundle", DOCUMENTS)
    return tmp_path / "bundle"


def test_a_bundle_as_it_was_written_is_whole(folder: Path) -> None:
    found = bundle.check(folder, head=_head(folder))
    assert found.problems == []
    assert found.proved_by == ["the head"]
    assert found.files == len(DOCUMENTS) + 1
    assert found.head == (folder / "head.txt").read_text().strip()


def test_one_byte_changed_anywhere_is_found(folder: Path) -> None:
    """Every byte of the small files, and drawn ones of the others."""
    draw, head = random.Random(1), _head(folder)
    for path in sorted(folder.iterdir()):
        raw = path.read_bytes()
        places = (
            range(len(raw))
            if len(raw) < 400
            else sorted({0, len(raw) - 1, *draw.sample(range(len(raw)), 100)})
        )
        for place in places:
            path.write_bytes(
                raw[:place] + bytes([raw[place] ^ (1 << draw.randrange(8))]) + raw[place + 1 :]
            )
            assert bundle.check(folder, head=head).problems, f"{path.name}, byte {place}"
        path.write_bytes(raw)
    assert bundle.check(folder, head=head).problems == []


@pytest.mark.parametrize("name", ["plan.json", "report.html", "head.txt"])
def test_a_file_that_is_gone_is_found(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert any(name in problem for problem in bundle.check(folder).problems)


def test_a_file_that_was_added_is_found(folder: Path) -> None:
    (folder / "another.json").write_text("{}")
    assert bundle.check(folder, head=_head(folder)).problems == [
        "another.json: not part of the bundle"
    ]


def test_a_line_that_was_taken_out_or_moved_is_found(folder: Path) -> None:
    manifest = folder / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    for edited in (lines[:-1], lines[1:], [lines[1], lines[0], *lines[2:]]):
        manifest.write_bytes(b"".join(edited))
        assert bundle.check(folder, head=_head(folder)).problems


@pytest.mark.parametrize("name", ["x" * 5_000, "x\0y", "../plan.json", ".", "", "x\nunchanged"])
def test_a_line_that_names_no_file_is_found(folder: Path, name: str) -> None:
    manifest, head = folder / "manifest.jsonl", _head(folder)
    line = orjson.dumps({"file": name, "bytes": 1, "sha256": "", "chain": ""})
    manifest.write_bytes(line + b"\n" + manifest.read_bytes())
    assert f"{name}: missing" in bundle.check(folder, head=head).problems


def test_a_whole_new_bundle_is_told_from_the_first_by_its_head(
    folder: Path, tmp_path: Path
) -> None:
    head = _head(folder)
    spoiled = {**DOCUMENTS, "ledger": {"entries": [{**DECISION, "decided_by": "somebody else"}]}}
    bundle.write(tmp_path / "new", spoiled)
    forged = bundle.check(tmp_path / "new")
    assert forged.proved_by == []
    assert "nothing shows that this is the bundle that was written" in forged.problems[0]
    assert "another bundle" in bundle.check(tmp_path / "new", head=head).problems[0]


def test_a_bundle_is_for_its_user_only(tmp_path: Path) -> None:
    """It names keys and people."""
    before = os.umask(0)
    try:
        bundle.write(tmp_path / "a" / "bundle", DOCUMENTS)
    finally:
        os.umask(before)
    there = (tmp_path / "a" / "bundle").rglob("*")
    assert {path.stat().st_mode & 0o777 for path in there} == {0o600}
    assert (tmp_path / "a" / "bundle").stat().st_mode & 0o777 == 0o700


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


def test_an_empty_bundle_is_none(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "manifest.jsonl").write_bytes(b"")
    (folder / "head.txt").write_text(FIRST + "\n")
    for head in (None, FIRST):
        problems = bundle.check(folder, head=head).problems
        assert {
            "ledger.json: a bundle has one, and this has none",
            "plan.json: a bundle has one, and this has none",
        } <= set(problems)


def test_a_ledger_whose_chain_does_not_hold_is_found_in_a_bundle_of_its_own(tmp_path: Path) -> None:
    second = {**DECISION, "gate": "finalise", "before": digest(DECISION)}
    whole = {**DOCUMENTS, "ledger": {"entries": [DECISION, second]}}
    head = bundle.write(tmp_path / "whole", whole)
    assert bundle.check(tmp_path / "whole", head=head).problems == []
    for name, entries in {
        "changed": [{**DECISION, "verdict": "reject"}, second],
        "removed": [second],
    }.items():
        head = bundle.write(tmp_path / name, {**DOCUMENTS, "ledger": {"entries": entries}})
        assert any(
            "does not follow" in problem
            for problem in bundle.check(tmp_path / name, head=head).problems
        )


def _keys(folder: Path) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    folder.mkdir()
    (folder / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (folder / "public.pem").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return folder / "key.pem", folder / "public.pem"


def test_a_signature_proves_a_bundle_and_nobody_else_makes_it(folder: Path, tmp_path: Path) -> None:
    private, public = _keys(tmp_path / "ours")
    others_private, others_public = _keys(tmp_path / "others")
    bundle.write(tmp_path / "signed", DOCUMENTS, private_key=private)
    found = bundle.check(tmp_path / "signed", public_key=public)
    assert (found.problems, found.proved_by) == ([], ["the signature"])
    assert any(
        "head.sig" in problem
        for problem in bundle.check(tmp_path / "signed", public_key=others_public).problems
    )
    bundle.write(
        tmp_path / "forged", {**DOCUMENTS, "plan": {"name": "other"}}, private_key=others_private
    )
    assert any(
        "head.sig" in problem
        for problem in bundle.check(tmp_path / "forged", public_key=public).problems
    )
    assert any(
        "nobody signed" in problem for problem in bundle.check(folder, public_key=public).problems
    )
    with pytest.raises(OperatorError, match="no Ed25519 key"):
        bundle.check(folder, public_key=private)
