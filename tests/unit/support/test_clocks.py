"""The process sees a stepped clock at once. Its monotonic clock is not stepped."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.support.clocks import WallClock

_SAY = (
    "import sys, time\nfor _ in sys.stdin: print(time.time(), time.time_ns(), "
    "time.monotonic(), flush=True)"
)


def test_a_process_sees_its_clock_stepped_while_it_runs(tmp_path: Path) -> None:
    clock = WallClock(tmp_path / "clock")
    with subprocess.Popen(
        [sys.executable, "-c", _SAY],
        env=clock.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for seconds in (0.0, 3600.0, -3600.0, 5.0, 0.0):
            clock.step(seconds)
            before = (time.time(), time.monotonic())
            process.stdin.write("\n")
            now, now_ns, monotonic = map(float, process.stdout.readline().split())
            after = (time.time(), time.monotonic())
            assert before[0] <= now - seconds + 0.001
            assert now - seconds - 0.001 <= after[0]
            assert abs(now_ns / 1e9 - now) < 1
            assert before[1] <= monotonic <= after[1]
        process.stdin.close()
