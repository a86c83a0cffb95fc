"""What MONITOR costs the server while it runs, by the server's own figures. No I/O.

Exodus's own clock says nothing here: a reader that is busy with MONITOR's lines sees every answer
late. INFO tells the processor time of the server's main thread, the commands that it executed, and
the memory of its clients' buffers, in which lines wait that the reader has not read. A server has
no bound of its own for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from exodus.plan.bounds import (
    MONITOR_BUFFER_BYTES_MAX,
    MONITOR_COST_REQUESTS_MIN,
    MONITOR_CPU_SHARE_MAX,
)


class Look(NamedTuple):
    """The server's figures at one time."""

    at: float  # s, of any clock
    cpu_s: float  # of the main thread, since the server began
    requests: int  # since then
    buffer_bytes: int  # of all clients now

    @classmethod
    def of(cls, at: float, info: Mapping[str, str]) -> Look:
        """Read them from the fields of INFO."""

        def cpu(kind: str) -> float:
            whole = info.get(f"used_cpu_{kind}", "0")
            return float(info.get(f"used_cpu_{kind}_main_thread", whole))

        return cls(
            at,
            cpu("user") + cpu("sys"),
            int(info.get("total_commands_processed", 0)),
            int(info.get("mem_clients_normal", 0)),
        )


@dataclass
class MonitorCost:
    """Three looks: when the time before began, when MONITOR began, and the last one."""

    before: Look
    began: Look
    last: Look
    cpu_share_max: float = MONITOR_CPU_SHARE_MAX

    @property
    def cpu_share_added(self) -> float:
        """The share of a core that the server spends more than the same requests cost before."""
        share, rate = _rates(self.began, self.last)
        share_before, rate_before = _rates(self.before, self.began)
        if self.began.requests - self.before.requests >= MONITOR_COST_REQUESTS_MIN:
            share_before *= rate / rate_before
        return max(0.0, share - share_before)

    @property
    def buffer_bytes_added(self) -> int:
        """Bytes that wait in the buffers of clients, more than before."""
        return max(0, self.last.buffer_bytes - self.began.buffer_bytes)

    @property
    def too_much(self) -> str:
        """Why MONITOR must end, or nothing."""
        if self.cpu_share_added > self.cpu_share_max:
            return (
                f"MONITOR takes {self.cpu_share_added:.1%} of a core of the server, more than "
                f"{self.cpu_share_max:.1%}"
            )
        if self.buffer_bytes_added > MONITOR_BUFFER_BYTES_MAX:
            return (
                f"{self.buffer_bytes_added:,} bytes of MONITOR wait in the server's memory, more "
                f"than {MONITOR_BUFFER_BYTES_MAX:,}"
            )
        return ""

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "cpu_share_before": round(_rates(self.before, self.began)[0], 4),
            "cpu_share_during": round(_rates(self.began, self.last)[0], 4),
            "cpu_share_added": round(self.cpu_share_added, 4),
            "requests_per_s_before": round(_rates(self.before, self.began)[1], 1),
            "requests_per_s_during": round(_rates(self.began, self.last)[1], 1),
            "buffer_bytes_added": self.buffer_bytes_added,
            "stopped": self.too_much,
        }


def _rates(begin: Look, end: Look) -> tuple[float, float]:
    """Return the share of a core and the requests a second between two looks."""
    seconds = end.at - begin.at
    if seconds <= 0:
        return 0.0, 0.0
    return (end.cpu_s - begin.cpu_s) / seconds, (end.requests - begin.requests) / seconds
