"""`python -m benchmarks [NAME …] [--full]`: run benchmarks, print their ratios, keep them in
build/bench/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    backfill,
    capture,
    cluster,
    compare,
    cutover,
    gateway,
    listeners,
    livesync,
    memory,
    verify,
)
from benchmarks.result import Result


def _orchestration(*, full: bool) -> Result | list[Result]:
    from benchmarks import (
        # Prefect's modules take some 120 MB, which would be counted as memory of the others
        orchestration,
    )

    return orchestration.measure(full=full)


def _scale(*, full: bool) -> Result | list[Result]:
    from benchmarks import scale  # likewise, Dask's

    return scale.measure(full=full)


BENCHMARKS: dict[str, tuple[Callable[..., Result | list[Result]], ...]] = {
    "backfill": (backfill.measure,),
    "verify": (verify.measure,),
    "orchestration": (_orchestration,),
    "scale": (_scale,),
    "memory": (memory.measure,),
    "livesync": (livesync.measure,),
    "gateway": (gateway.measure,),
    "listeners": (listeners.measure,),
    "cutover": (cutover.measure,),
    "capture": (capture.measure,),
    "compare": (compare.measure,),
    "cluster": (cluster.measure,),
}


def main() -> int:
    """Exit status 2 for a name that is none."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; all without"
    )
    parser.add_argument("--full", action="store_true", help="the long form")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}: one of {', '.join(BENCHMARKS)}")
    for name in options.names or BENCHMARKS:
        for measure in BENCHMARKS[name]:
            answered = measure(full=options.full)
            for found in answered if isinstance(answered, list) else [answered]:
                found.write(Path("build/bench"))
                print("\n".join(found.lines()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
