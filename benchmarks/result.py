"""What a benchmark found, in the form of `build/bench/NAME.json` (surfaces)."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import psutil


@dataclass
class Result:
    """One question's figures: medians over the runs."""

    name: str
    what: str
    unit: str
    ours: float
    peers: dict[str, float]
    against: str
    ratio: float
    runs: list[dict[str, float]]
    machine: str
    higher_is_better: bool = True

    def lines(self) -> list[str]:
        """For a terminal."""
        rows = [("exodus", self.ours), *self.peers.items()]
        return [
            f"{self.name}: {self.what} ({self.unit}, "
            f"{'more' if self.higher_is_better else 'less'} is better)"
        ] + [
            f"  {name:<28} {figure:>12,.1f}   exodus is {self.ours / figure:.2f} of it"
            for name, figure in rows
        ]

    def write(self, folder: Path) -> None:
        """Keep it as JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_bytes(
            orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2)
        )


def result(
    *,
    name: str,
    what: str,
    unit: str,
    runs: Sequence[Mapping[str, float]],
    against: str,
    higher_is_better: bool = True,
) -> Result:
    """Medians of runs that each measured `exodus` and its peers in turn."""
    medians = {column: statistics.median(run[column] for run in runs) for column in runs[0]}
    ours = medians.pop("exodus")
    memory_gb = psutil.virtual_memory().total / 2**30
    return Result(
        name=name,
        what=what,
        unit=unit,
        ours=round(ours, 2),
        peers={peer: round(figure, 2) for peer, figure in medians.items()},
        against=against,
        ratio=round(ours / medians[against], 3),
        runs=[dict(run) for run in runs],
        machine=f"{platform.machine()}, {psutil.cpu_count()} cores, {memory_gb:.0f} GB, Python "
        f"{platform.python_version()}",
        higher_is_better=higher_is_better,
    )
