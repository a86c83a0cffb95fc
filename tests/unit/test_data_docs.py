"""Great Expectations' pages: readable without a network, and safe with what clients wrote."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from exodus.errors import OperatorError
from exodus.safe_text import remember
from tasks import evidence
from tasks.data_docs import write_data_docs
from tasks.gates import Judged, judge

# What Great Expectations itself imports
pytestmark = pytest.mark.filterwarnings("ignore")
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> $b {{7*7}} & \"'"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXODUS_EVIDENCE_DIR", str(tmp_path))
    return tmp_path / "shop" / "data-docs" / "analyze"


def _judged(*, ok: bool = False, name: str = HOSTILE) -> Judged:
    rows = [
        {"check": name, "ok": ok, "level": "must"},
        {"check": "memory", "ok": True, "level": "must"},
    ]
    advice = [{"check": "eviction", "ok": ok, "level": "should"}]
    return judge({"checks": pd.DataFrame(rows), "advice": pd.DataFrame(advice)})


def _pages(folder: Path) -> dict[str, str]:
    return {str(page.relative_to(folder)): page.read_text() for page in folder.rglob("*.html")}


def test_the_pages_show_the_row_that_failed_and_ask_nobody(folder: Path) -> None:
    docs = write_data_docs(_judged(), "shop", "analyze")
    pages = _pages(folder)
    assert docs["index"] == str(folder / "index.html")
    assert len(pages) == 5  # the index; a suite and a result of each gate
    index = pages["index.html"]
    assert ">3 of 4<" in index
    assert ">4 of 4<" in index
    for link in re.findall(r'href="([^"#]+)"', index):
        assert (folder / link).is_file()
    (result,) = (text for name, text in pages.items() if name.startswith("validations/checks"))
    assert "&lt;img src=x onerror=alert(1)&gt;" in result
    for name, text in pages.items():
        assert not re.search(r"<(script|link|img|iframe)|<[^>]*\s(on\w+|src)=", text), name
        assert "default-src 'none'" in text, name
        assert not re.search(r"url\(['\"]?https?:", text), name


def test_the_rows_of_the_gates_have_the_texts_as_they_were() -> None:
    (failed,) = (row for row in _judged().rows if row["outcome"] != "pass")
    assert failed["rows"] == f"{HOSTILE} (ok False)"


def test_the_digest_covers_every_page(folder: Path) -> None:
    docs = write_data_docs(_judged(), "shop", "analyze")
    digest = hashlib.sha256()
    for name, text in sorted(_pages(folder).items()):
        digest.update(name.encode() + b"\0" + text.encode() + b"\0")
    assert docs["sha256"] == digest.hexdigest()


def test_a_page_shows_no_secret(folder: Path) -> None:
    remember("correct-horse-battery")
    write_data_docs(_judged(name="AUTH correct-horse-battery"), "shop", "analyze")
    assert "correct-horse" not in "".join(_pages(folder).values())


def test_the_next_evaluation_replaces_them_and_only_their_user_may_read(folder: Path) -> None:
    before = write_data_docs(_judged(), "shop", "analyze")
    after = write_data_docs(_judged(ok=True), "shop", "analyze")
    assert before["sha256"] != after["sha256"]
    assert ">4 of 4<" in (folder / "index.html").read_text()
    assert [path.name for path in folder.parent.iterdir()] == ["analyze"]
    assert not [path for path in folder.parent.rglob("*") if path.stat().st_mode & 0o077]


def test_a_gate_without_a_page_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = _judged()
    build = judged.context.build_data_docs

    def without_advice(**kwargs: object) -> None:
        build(**kwargs)
        for page in (folder.parent / next(iter(folder.parent.iterdir()))).glob(
            "validations/advice"
        ):
            shutil.rmtree(page)

    monkeypatch.setattr(judged.context, "build_data_docs", without_advice)
    with pytest.raises(OperatorError, match="no page of the gate advice"):
        write_data_docs(judged, "shop", "analyze")
    assert list(folder.parent.iterdir()) == []


def test_what_the_library_raises_fails_no_evidence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = _judged()

    def broken(**_: object) -> None:
        raise KeyError("a renderer")

    monkeypatch.setattr(judged.context, "build_data_docs", broken)
    assert "a renderer" in evidence._data_docs(judged, "shop", "analyze")["why"]
    assert list(folder.parent.iterdir()) == []


def test_evidence_without_a_folder_for_pages_says_why(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.parents[1].write_text("a file in the place of the folder")
    docs = evidence._data_docs(_judged(), "shop", "analyze")
    assert "is not a folder" in docs["why"]
    assert "data docs of analyze" in caplog.text
