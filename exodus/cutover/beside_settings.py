"""The settings that applications depend on, and when a difference matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from exodus.cutover.beside_rows import StateOutcome

_ALL_EVENTS = set("g$lshzxetd")  # what A stands for in notify-keyspace-events


@dataclass(frozen=True)
class Setting:
    """A setting by its names (older ones behind newer ones), and when its difference matters."""

    names: tuple[str, ...]
    # Whether the follower's value (second) is worse for applications
    worse: Callable[[str, str], bool]
    outcome: StateOutcome
    means: str
    at_run_time: bool = True
    wanted: Callable[[str, str], str] | None = (
        None  # what to set on the follower; None: the authority's value
    )


def _less(ours: str, theirs: str) -> bool:
    return int(theirs) < int(ours)


def _less_where_zero_is_none(ours: str, theirs: str) -> bool:
    return int(theirs) != 0 and (int(ours) == 0 or int(theirs) < int(ours))


def _other(ours: str, theirs: str) -> bool:
    return ours != theirs


def _events(flags: str) -> set[str]:
    found = set(flags)
    return found - {"A"} | _ALL_EVENTS if "A" in found else found


def _fewer_events(ours: str, theirs: str) -> bool:
    return not _events(ours) <= _events(theirs)


def _all_events(ours: str, theirs: str) -> str:
    return "".join(sorted(set(ours) | set(theirs)))


_ORDER = (
    "the order of HGETALL, SMEMBERS and similar replies, and OBJECT ENCODING, change at "
    "another size"
)
SETTINGS = (
    Setting(
        ("notify-keyspace-events",),
        _fewer_events,
        StateOutcome.REQUIRED,
        "subscribers of keyspace events get none of these",
        wanted=_all_events,
    ),
    Setting(
        ("databases",),
        _less,
        StateOutcome.REQUIRED,
        "SELECT of a higher database is refused",
        at_run_time=False,
    ),
    Setting(
        ("proto-max-bulk-len",),
        _less,
        StateOutcome.REQUIRED,
        "a larger value is refused, and its connection closed",
    ),
    Setting(
        ("client-query-buffer-limit",),
        _less,
        StateOutcome.DIFFERS,
        "a client with a larger request is disconnected",
    ),
    Setting(
        ("timeout",),
        _less_where_zero_is_none,
        StateOutcome.DIFFERS,
        "idle connections are closed sooner",
    ),
    Setting(("maxclients",), _less, StateOutcome.DIFFERS, "fewer connections fit"),
    Setting(
        ("maxmemory-policy",),
        _other,
        StateOutcome.DIFFERS,
        "other keys are evicted, or writes are refused, when memory is full",
        at_run_time=False,
    ),
    Setting(
        ("lua-time-limit", "busy-reply-threshold"),
        _other,
        StateOutcome.DIFFERS,
        "BUSY is answered after another time",
    ),
    Setting(
        ("hash-max-listpack-entries", "hash-max-ziplist-entries"),
        _other,
        StateOutcome.DIFFERS,
        _ORDER,
    ),
    Setting(
        ("hash-max-listpack-value", "hash-max-ziplist-value"), _other, StateOutcome.DIFFERS, _ORDER
    ),
    Setting(("set-max-intset-entries",), _other, StateOutcome.DIFFERS, _ORDER),
    Setting(("set-max-listpack-entries",), _other, StateOutcome.DIFFERS, _ORDER),
    Setting(("set-max-listpack-value",), _other, StateOutcome.DIFFERS, _ORDER),
    Setting(
        ("zset-max-listpack-entries", "zset-max-ziplist-entries"),
        _other,
        StateOutcome.DIFFERS,
        "OBJECT ENCODING changes at another size",
    ),
    Setting(
        ("zset-max-listpack-value", "zset-max-ziplist-value"),
        _other,
        StateOutcome.DIFFERS,
        "OBJECT ENCODING changes at another size",
    ),
    Setting(
        ("list-max-listpack-size", "list-max-ziplist-size"),
        _other,
        StateOutcome.DIFFERS,
        "OBJECT ENCODING changes at another size",
    ),
)
