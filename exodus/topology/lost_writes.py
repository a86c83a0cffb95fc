"""What a failover may have lost: replication is asynchronous, so a master may have acknowledged
writes that no replica has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from exodus.net.role import RoleReport


@dataclass(frozen=True)
class Sight:
    """How far a master's replication stream was at one look."""

    at: float  # monotonic
    replid: str
    offset: int


def lost_since(sights: Iterable[Sight], now: RoleReport) -> tuple[float | None, int | None]:
    """Return when the old master's stream was last within what the new master has (monotonic; None:
    not known), and how many of its bytes are lost at least.

    Args:
        sights: looks at the old master.
        now: what the new master says.
    """
    of_old = [sight for sight in sights if sight.replid == now.replid_before]
    if not of_old:
        return None, None
    kept = [sight.at for sight in of_old if sight.offset < now.offset_before]
    lost = max(0, of_old[-1].offset - (now.offset_before - 1))
    return (max(kept) if kept else None), lost
