"""The sum of all balances is the same on both sides.

Accounts are hashes `account:ID` with a field `balance`. Transfers move money and never make any, so
the sum holds while they go on; what is under way may be missing from one reading.
"""

from __future__ import annotations

from decimal import Decimal

import pandas as pd
import redis

Side = redis.Redis | redis.RedisCluster
PATTERN = "account:*"
UNDER_WAY = Decimal(0)  # of a sum, that one reading may miss


def _balances(side: Side) -> dict[str, Decimal]:
    names = list(side.scan_iter(match=PATTERN, count=1_000, _type="hash"))
    pipe = side.pipeline(transaction=False)
    for name in names:
        pipe.hget(name, "balance")
    return {
        name.decode(): Decimal((value or b"0").decode())
        for name, value in zip(names, pipe.execute(), strict=True)
    }


def check(source: Side, target: Side) -> pd.DataFrame:
    """Return one row: both sums, and how many accounts they are of."""
    ours, theirs = _balances(source), _balances(target)
    here, there = sum(ours.values(), Decimal(0)), sum(theirs.values(), Decimal(0))
    return pd.DataFrame(
        [
            {
                "accounts_source": len(ours),
                "accounts_target": len(theirs),
                "sum_source": float(here),
                "sum_target": float(there),
                "ok": len(ours) == len(theirs) and abs(here - there) <= UNDER_WAY,
            }
        ]
    )
