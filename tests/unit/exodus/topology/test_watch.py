"""From which moment on acknowledged writes may be lost in a failover."""

from __future__ import annotations

from collections import deque

from exodus.control.topology import Failover
from exodus.net.role import RoleReport
from exodus.plan.vocabulary import Side
from exodus.topology.lost_writes import Sight, lost_since


def _now(replid_before: str, offset_before: int) -> RoleReport:
    return RoleReport(True, "run", 500, "new", replid_before, offset_before)


def test_since_the_last_look_at_which_the_new_master_had_all() -> None:
    sights = deque([Sight(1.0, "old", 90), Sight(2.0, "old", 100), Sight(3.0, "old", 140)])
    assert lost_since(sights, _now("old", 101)) == (2.0, 40)
    assert lost_since(sights, _now("old", 200)) == (3.0, 0)


def test_unknown_where_the_master_was_never_seen() -> None:
    assert lost_since(deque(), _now("old", 100)) == (None, None)
    sights = deque([Sight(1.0, "another", 10)])
    assert lost_since(sights, _now("old", 100)) == (None, None)
    behind = deque([Sight(1.0, "old", 300)])
    assert lost_since(behind, _now("old", 100)) == (None, 201)


def test_a_failover_is_told_with_its_window() -> None:
    known = Failover(
        side=Side.SOURCE,
        before="a:1",
        master="b:1",
        at_ms=5_000,
        safe_until_ms=3_500,
        lost_bytes_min=40,
    )
    assert known.text == (
        "failover of the source: a:1 → b:1; writes acknowledged by a:1 in the 1.5 s before it was "
        "noticed may be lost; 40 bytes of its replication stream are lost for certain"
    )
    unknown = known.model_copy(update={"safe_until_ms": None, "lost_bytes_min": None})
    assert unknown.text.endswith("writes acknowledged by a:1 before it may be lost")
