"""Plots of a phase's evidence, as SVG: they need no network, no script and no font.

Each is drawn from rows that the evidence has as well, so a table says the same.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from exodus.plan.bounds import TASKS_PLOTS_BARS
from exodus.safe_text import plain
from tasks.context import Json

if TYPE_CHECKING:
    from pygal.graph.graph import Graph

_WIDTH, _HEIGHT = 900, 420
_MS = 1_000
_FEW = 2  # points, between which no line can be seen
_SCRIPT = re.compile("<script.*?</script>", re.DOTALL)  # for tooltips: an image runs none


def draw(frames: Mapping[str, list[Json]], lists: Mapping[str, list[Json]]) -> dict[str, str]:
    """Return name → SVG of each plot for which there are rows."""
    rows = {**frames, **lists}
    if "observed" in rows:  # Pre-test has not tried them yet, and Analyze has
        rows["shapes"] = rows["observed"]
    return {
        name: _SCRIPT.sub("", plot(rows[of]).render(is_unicode=True))
        for name, (of, plot) in _PLOTS.items()
        if rows.get(of)
    }


def _chart(kind: str, title: str, **more: Any) -> Graph:
    import pygal  # a second, and only the evidence needs it
    from pygal.style import CleanStyle

    chart: Graph = getattr(pygal, kind)(
        title=title,
        width=_WIDTH,
        height=_HEIGHT,
        style=CleanStyle(font_family="sans-serif", background="white"),
        js=[],
        no_prefix=True,
        show_minor_x_labels=True,
        truncate_label=28,
        legend_at_bottom=True,
        disable_xml_declaration=True,
        value_formatter=lambda value: f"{value:,.6g}",
        **more,
    )
    chart.config.css = [each for each in chart.config.css if not each.startswith("//")]
    return chart


def _mix(rows: list[Json]) -> Graph:
    """Draw how often each kind of request was seen."""
    name = "shape" if "shape" in rows[0] else "command"
    top = sorted(rows, key=lambda row: -row["calls"])[:TASKS_PLOTS_BARS]
    chart = _chart("HorizontalBar", "Requests by kind", show_legend=False)
    chart.x_labels = [plain(row[name]) for row in top[::-1]]
    chart.add("requests", [row["calls"] for row in top[::-1]])
    return chart


def _rate(rows: list[Json]) -> Graph:
    """Draw the rate over the time that was watched."""
    chart = _chart("Line", "Requests a second", show_dots=len(rows) < _FEW, show_legend=False)
    chart.x_labels = [time.strftime("%H:%M:%S", time.gmtime(row["at_s"])) for row in rows]
    chart.x_labels_major_count = 8
    chart.show_minor_x_labels = False
    chart.add("requests a second", [row["requests_per_s"] for row in rows])
    return chart


def _latency(rows: list[Json]) -> Graph:
    """Draw the latencies of the commands that do not wait for data."""
    busy = [row for row in rows if not row["waits"]][:TASKS_PLOTS_BARS] or rows[:1]
    chart = _chart("Bar", "Latency by command, in ms", logarithmic=True, x_label_rotation=35)
    chart.x_labels = [plain(row["command"]) for row in busy]
    for share in (50, 99):
        chart.add(f"p{share}", [max(row[f"latency_us_p{share}"], 1) / _MS for row in busy])
    return chart


def _sizes(rows: list[Json]) -> Graph:
    """Draw what a key takes on both sides, by type."""
    chart = _chart("Bar", "Bytes a key, by type")
    chart.x_labels = [plain(row["type"]) for row in rows]
    for side in ("source", "target"):
        chart.add(side, [row[f"{side}_bytes_a_key"] for row in rows])
    return chart


def _trial(rows: list[Json]) -> Graph:
    """Draw the latency of the trial on the target at each rate."""
    chart = _chart("Line", "Latency of the trial on the target, in ms, by requests a second")
    chart.x_labels = [f"{row['requests_per_s']:,.0f}" for row in rows]
    for name in ("p50", "p99", "p999"):
        chart.add(name, [row["latency_us"][name] / _MS for row in rows])
    return chart


def _candidates(rows: list[Json]) -> Graph:
    """Draw the candidates' 99th percentiles at the same rate."""
    chart = _chart("HorizontalBar", "p99 of the same mix, in ms", show_legend=False)
    chart.x_labels = [plain(row["server"]) for row in rows]
    chart.add("p99", [None if row["p99_us"] is None else row["p99_us"] / _MS for row in rows])
    return chart


def _convergence(rows: list[Json]) -> Graph:
    """Draw how many sampled keys were being copied, and how many differences were not judged."""
    chart = _chart("Line", "Keys under way, by seconds of sampling", show_dots=len(rows) < _FEW)
    chart.x_labels = [f"{row['at_s']:,.0f}" for row in rows]
    chart.x_labels_major_count = 8
    chart.show_minor_x_labels = False
    chart.add("written, copy under way", [row["dirty"] for row in rows])
    chart.add("differences not judged", [row["pending"] for row in rows])
    return chart


def _coverage(rows: list[Json]) -> Graph:
    """Draw how much of each command was compared."""
    top = [row for row in rows if row["calls"]][:TASKS_PLOTS_BARS]
    chart = _chart("HorizontalStackedBar", "Requests by command: compared, or not")
    chart.x_labels = [plain(row["command"]) for row in top[::-1]]
    for name in ("compared", "not_sampled", "left_out"):
        chart.add(name.replace("_", " "), [row[name] for row in top[::-1]])
    return chart


def _load(rows: list[Json]) -> Graph:
    """Draw the latency of the observed load at each multiple of its rate."""
    chart = _chart("Line", "Latency of the load, in ms, by times the observed rate")
    chart.x_labels = [f"{row['speed']:g}" for row in rows]
    for name in ("p50", "p99"):
        chart.add(name, [row[f"latency_us_{name}"] / _MS for row in rows])
    return chart


def _stalls(rows: list[Json]) -> Graph:
    """Draw the stall of each rehearsed switch, and of the same time without one."""
    whole = [row for row in rows if not row["killed"]] or rows
    chart = _chart("Bar", "Longest request at each rehearsed switch, in ms")
    chart.x_labels = [f"{row['round']} to {row['to']}" for row in whole]
    chart.add("at the switch", [row["stall_ms"] for row in whole])
    chart.add("before it", [row["quiet_ms"] for row in whole])
    return chart


# Name of the plot: the rows that it is of, and how it is drawn.
_PLOTS: dict[str, tuple[str, Callable[[list[Json]], Graph]]] = {
    "plot-mix": ("shapes", _mix),
    "plot-rate": ("rates", _rate),
    "plot-latency": ("commands", _latency),
    "plot-sizes": ("sizing", _sizes),
    "plot-trial": ("trial", _trial),
    "plot-candidates": ("candidates", _candidates),
    "plot-convergence": ("dirty", _convergence),
    "plot-coverage": ("coverage", _coverage),
    "plot-load": ("load", _load),
    "plot-stalls": ("rehearsal", _stalls),
}
