"""No session is an orphan: each `session:ID` names a user whose key `user:NAME` is there."""

from __future__ import annotations

import pandas as pd
import redis

Side = redis.Redis | redis.RedisCluster
PATTERN = "session:*"


def _sessions(side: Side, name: str) -> list[dict[str, object]]:
    sessions = list(side.scan_iter(match=PATTERN, count=1_000, _type="hash"))
    pipe = side.pipeline(transaction=False)
    for session in sessions:
        pipe.hget(session, "user")
    users = [user.decode() if user is not None else None for user in pipe.execute()]
    for user in users:
        pipe.exists(f"user:{user}")
    return [
        {"side": name, "session": session.decode(), "user": user, "ok": bool(found)}
        for session, user, found in zip(sessions, users, pipe.execute(), strict=True)
    ]


def check(source: Side, target: Side) -> pd.DataFrame:
    """Return a row a session of each side."""
    rows = _sessions(source, "source") + _sessions(target, "target")
    nothing = [{"side": "both", "session": "none", "user": None, "ok": True}]
    return pd.DataFrame(rows or nothing)
