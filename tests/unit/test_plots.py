"""Plots show their rows, run nothing, and are reproducible."""

from __future__ import annotations

from xml.etree import ElementTree

from exodus.closing.report import render_evidence
from tasks.plots import draw

SHAPES = [{"shape": f"GET <b>{number}", "calls": number + 1} for number in range(40)]
COMMANDS = [
    {"command": "GET", "calls": 5, "waits": False, "latency_us_p50": 100, "latency_us_p99": 900},
    {
        "command": "BLPOP",
        "calls": 5,
        "waits": True,
        "latency_us_p50": 10**6,
        "latency_us_p99": 10**6,
    },
]
RATES = [{"at_s": 1_700_000_000 + second, "requests_per_s": 10.0 * second} for second in range(5)]
SIZING = [{"type": "hash", "source_bytes_a_key": 90.0, "target_bytes_a_key": 70.0}]
TRIAL = [{"requests_per_s": 100.0, "latency_us": {"p50": 90, "p99": 900, "p999": 2_000}}]
CANDIDATES = [{"server": "a:1", "p99_us": 900}, {"server": "b:1", "p99_us": None}]
FRAMES = {"commands": COMMANDS}
LISTS = {
    "shapes": SHAPES,
    "rates": RATES,
    "sizing": SIZING,
    "trial": TRIAL,
    "candidates": CANDIDATES,
    "dirty": [{"at_s": 0.5 * second, "dirty": second, "pending": 1} for second in range(5)],
    "coverage": [{"command": "MGET", "calls": 9, "compared": 5, "not_sampled": 3, "left_out": 1}],
    "patterns": [],
    "load": [{"speed": 2.0, "latency_us_p50": 100, "latency_us_p99": 900}],
    "rehearsal": [
        {"round": 1, "to": "target", "killed": "", "stall_ms": 30.0, "quiet_ms": 4.0},
        {"round": 2, "to": "source", "killed": "at 'hold'", "stall_ms": 1_500.0, "quiet_ms": 4.0},
    ],
}


def _texts(svg: str) -> str:
    return " ".join(ElementTree.fromstring(svg).itertext())


def test_each_plot_shows_its_rows() -> None:
    plots = draw(FRAMES, LISTS)
    assert len(plots) == 10
    mix = _texts(plots["plot-mix"])
    assert "GET <b>39" in mix
    assert "GET <b>3 " not in mix  # the rarest are left out
    latency = _texts(plots["plot-latency"])
    assert "GET" in latency
    assert "BLPOP" not in latency  # it waits
    assert "hash" in _texts(plots["plot-sizes"])
    assert "b:1" in _texts(plots["plot-candidates"])
    assert "not judged" in _texts(plots["plot-convergence"])
    assert "MGET" in _texts(plots["plot-coverage"])
    assert "2 to source" not in _texts(plots["plot-stalls"])  # a gateway was killed in it


def test_without_rows_there_is_no_plot() -> None:
    assert draw({"commands": []}, {"rates": [], "shapes": []}) == {}
    waiting = draw({"commands": COMMANDS[1:]}, {})
    assert "BLPOP" in _texts(waiting["plot-latency"])


def test_a_plot_shows_control_characters_as_they_are_written() -> None:
    """In XML they would make it no picture at all."""
    for name in ("\x1b[2J", "a\x00b", "a\nb", "\u202ex", "\x9b31m", "\ud800", "\ufffe"):
        svg = draw({}, {"shapes": [{"shape": name, "calls": 1}]})["plot-mix"]
        assert name.encode("unicode_escape").decode() in _texts(svg)


def test_plots_run_nothing_and_ask_nobody() -> None:
    for svg in draw(FRAMES, LISTS).values():
        assert "<script" not in svg
        assert "href" not in svg
        assert "url(" not in svg
    assert draw(FRAMES, LISTS) == draw(FRAMES, LISTS)


def test_the_page_of_a_phase_has_plots_checks_and_rows() -> None:
    evidence = {
        "summary": {"requests": 5},
        "frames": {"checks": [{"check": "<i>memory", "ok": False, "level": "must"}]},
        "lists": {"shapes": SHAPES[:2], "empty": []},
        "plots": draw(FRAMES, LISTS) | {"evil": "<svg onload='alert(1)'>"},
        "gates": [{"gate": "checks", "outcome": "FAIL"}],
        "data_docs": {"index": '/home/o"x/index.html', "sha256": "5e"},
    }
    page = render_evidence("orders", "analyze", evidence)
    assert 'href="file:///home/o%22x/index.html"' in page
    assert page.count("data:image/svg+xml;base64,") == 11
    assert "&lt;i&gt;memory" in page
    assert "alert(1)" not in page
    assert "GET &lt;b&gt;1" in page


def test_a_page_without_data_docs_says_why() -> None:
    docs = {"why": "not written: the disk is full"}
    page = render_evidence("orders", "analyze", {"summary": {}, "data_docs": docs})
    assert "the disk is full" in page
    assert "href" not in page
