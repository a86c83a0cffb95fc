"""Streams `events:NAME` are as long on the target as on the source, and have their groups.

Here Great Expectations judges the frame: a file with `expectations()` needs no column `ok`.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import redis

Side = redis.Redis | redis.RedisCluster
PATTERN = "events:*"


def _streams(side: Side) -> dict[str, tuple[int, int]]:
    found = {}
    for name in side.scan_iter(match=PATTERN, count=1_000, _type="stream"):
        found[name.decode()] = (int(side.xlen(name)), len(side.xinfo_groups(name)))
    return found


def check(source: Side, target: Side) -> pd.DataFrame:
    """Return a row a stream: its length and groups on both sides."""
    ours, theirs = _streams(source), _streams(target)
    rows = [
        {
            "stream": name,
            "length_source": ours.get(name, (0, 0))[0],
            "length_target": theirs.get(name, (0, 0))[0],
            "groups_source": ours.get(name, (0, 0))[1],
            "groups_target": theirs.get(name, (0, 0))[1],
        }
        for name in sorted(ours.keys() | theirs.keys())
    ]
    return pd.DataFrame(rows)


def expectations() -> list[Any]:
    """Return what must hold of the frame."""
    import great_expectations.expectations as gxe  # it takes seconds

    return [
        gxe.ExpectColumnPairValuesToBeEqual(column_A="length_source", column_B="length_target"),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="groups_source", column_B="groups_target"),
    ]
