"""Function libraries: code that servers from 7.0 keep beside the keys, called by FCALL.

They belong to no key and no database, so neither a backfill nor a journal sees them. They are few
and change with releases. So all of them are compared and loaded by their code before a phase relies
on them. Exodus does not use FUNCTION DUMP, since versions refuse each other's payloads. A library
that only the follower has is left there and named.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from exodus.engine import Engine
from exodus.net.leg import Leg, Reply, ReplyError

Json = dict[str, Any]


_NAME = "exodus-functions"


@dataclass
class Libraries:
    """What became of each library, by name."""

    equal: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)
    # → why; calls of their functions would fail on the follower
    failed: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)  # on the follower only

    def as_rows(self) -> list[Json]:
        """Return one row a library, for a table."""
        rows = [
            {"library": name, "outcome": outcome, "why": ""}
            for outcome in ("equal", "carried", "extra")
            for name in getattr(self, outcome)
        ]
        return [
            *rows,
            *(
                {"library": name, "outcome": "FAILED", "why": why}
                for name, why in self.failed.items()
            ),
        ]

    def as_json(self) -> Json:
        """Return the comparison for reports."""
        return asdict(self)


@dataclass
class Difference:
    """The libraries of both sides, compared by their code."""

    equal: list[str] = field(default_factory=list)
    # → why: missing on the follower, or of other code there
    differ: dict[str, str] = field(default_factory=dict)
    # Of the libraries that differ: the authority's code
    code: dict[str, bytes] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)  # on the follower only
    not_told: str = ""  # why the authority's cannot be listed
    not_taken: str = ""  # why the follower takes none


async def compare_libraries(authority: Leg, follower: Leg) -> Difference:
    """Compare the function libraries of two sides; nothing is changed."""
    found = Difference()
    wanted, there = await _libraries(authority), await _libraries(follower)
    if isinstance(wanted, str):
        # A server that does not know the command has no libraries; one that keeps them from us may.
        if "unknown" not in wanted.lower():
            found.not_told = wanted
        return found
    if isinstance(there, str):
        found.not_taken, there = there, {}
    for name, code in sorted(wanted.items()):
        if there.get(name) == code:
            found.equal.append(name)
        else:
            found.differ[name] = (
                "it has other code there" if name in there else "it is missing there"
            )
            found.code[name] = code
    found.extra = sorted(there.keys() - wanted.keys())
    return found


async def carry_functions(engine: Engine) -> Libraries:
    """Load every library of the authority on the follower that has it not, or with other code.

    Raises:
        SourceError, TargetError: a side was lost.
    """
    found = Libraries()
    async with await (await engine.authority.any_node()).connect(name=_NAME) as authority:
        # Each master of a cluster has libraries of its own.
        for node in await engine.follower.each_node():
            async with await node.connect(name=_NAME) as follower:
                await _carry(engine, authority, follower, found)
    return found


async def _carry(engine: Engine, authority: Leg, follower: Leg, found: Libraries) -> None:
    """Load libraries on one node; what was found and done is added to `found`."""
    difference = await compare_libraries(authority, follower)
    found.equal += [name for name in difference.equal if name not in found.equal]
    found.extra += [name for name in difference.extra if name not in found.extra]
    if difference.not_told:
        found.failed["(all)"] = (
            f"the {engine.authority.side} does not tell them: {difference.not_told}"
        )
    for name, code in difference.code.items():
        if difference.not_taken:
            found.failed[name] = (
                f"the {engine.follower.side} does not take functions: {difference.not_taken}"
            )
            continue
        (answer,) = await follower.pipeline([("FUNCTION", "LOAD", "REPLACE", code)])
        if isinstance(answer, ReplyError):
            found.failed[name] = f"the {engine.follower.side} refused it: {answer}"
        elif name not in found.carried:
            found.carried.append(name)


async def _libraries(leg: Leg) -> dict[str, bytes] | str:
    """Return name → code, or why the libraries cannot be listed."""
    (listed,) = await leg.pipeline([("FUNCTION", "LIST", "WITHCODE")])
    if isinstance(listed, ReplyError):
        return str(listed)
    pairs = [_pairs(entry) for entry in listed]
    return {
        entry["library_name"].decode("utf-8", "backslashreplace"): entry["library_code"]
        for entry in pairs
    }


def _pairs(flat: Reply) -> dict[str, Any]:
    return {flat[index].decode(): flat[index + 1] for index in range(0, len(flat), 2)}
