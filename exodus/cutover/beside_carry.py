"""Commands that bring settings and users to the other side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from exodus.cutover.beside_keys import (
    application_users,
    compare_user_rules,
    login_names,
    not_provable,
    value_of,
)
from exodus.cutover.beside_read import read
from exodus.cutover.beside_rows import StateOutcome
from exodus.cutover.beside_settings import SETTINGS
from exodus.net.leg import Leg, ReplyError
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side

# ---- carrying


@dataclass
class Carried:
    """What was done on the follower, and what is left to do there, as commands or words."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    async def try_on(self, follower: Leg, command: Sequence[str], shown: str) -> None:
        """Run a command on the follower; refused, it is left to a person."""
        (answer,) = await follower.pipeline([tuple(command)])
        if isinstance(answer, ReplyError):
            self.left.append(f"{shown}    # refused: {answer}")
        else:
            self.done.append(shown)


async def carry_settings(plan: Plan, authority: Leg, follower: Leg) -> Carried:
    """Set on the follower what differs to its disadvantage."""
    del plan
    ours, theirs, carried = await read(authority), await read(follower), Carried()
    if isinstance(ours.settings, str) or isinstance(theirs.settings, str):
        row = not_provable(
            "settings", ours.settings, theirs.settings, authority.side, follower.side
        )
        carried.left.append(f"# {row.means}")
        return carried
    for setting in SETTINGS:
        here, there = (
            value_of(ours.settings, setting.names),
            value_of(theirs.settings, setting.names),
        )
        if here is None or there is None or not setting.worse(here[1], there[1]):
            continue
        name, value = (
            there[0],
            here[1] if setting.wanted is None else setting.wanted(here[1], there[1]),
        )
        if setting.at_run_time:
            await carried.try_on(
                follower, ("CONFIG", "SET", name, value), f"CONFIG SET {name} {value}"
            )
        elif setting.names[0] == "maxmemory-policy":
            carried.left.append(
                f"CONFIG SET {name} {value}    # after the migration was finalised: until then "
                "what is evicted counts as missing"
            )
        else:
            carried.left.append(
                f"{name} {value}    # in the follower's configuration file; restart it"
            )
    if carried.done:
        carried.left.append(
            "CONFIG REWRITE    # or the same in the follower's configuration, to keep it over a "
            "restart"
        )
    return carried


async def carry_users(plan: Plan, authority: Leg, follower: Leg) -> Carried:
    """Make the applications' users on the follower as they are on the authority, with the hashes of
    their passwords.
    """
    ours, theirs, carried = await read(authority), await read(follower), Carried()
    if isinstance(ours.users, str) or isinstance(theirs.users, str):
        row = not_provable("users", ours.users, theirs.users, authority.side, follower.side)
        carried.left.append(f"# {row.means}")
        return carried
    mapped = login_names(plan) if authority.side is Side.SOURCE else {}
    for name, user in application_users(plan, ours).items():
        if (
            name in mapped
            or compare_user_rules(name, user, theirs.users.get(name), mapped=False).outcome
            is StateOutcome.SAME
        ):
            continue
        rules = _rules(ours.user_lines.get(name, ""))
        if not rules:
            carried.left.append(
                f"# user {name}: the {authority.side} does not tell its rules (ACL LIST)"
            )
            continue
        shown = " ".join("#…" if rule.startswith("#") else rule for rule in rules)
        await carried.try_on(
            follower, ("ACL", "SETUSER", name, "reset", *rules), f"ACL SETUSER {name} reset {shown}"
        )
    if carried.done:
        carried.left.append("ACL SAVE    # or CONFIG REWRITE, to keep them over a restart")
    return carried


def _rules(line: str) -> list[str]:
    """Return the words of a user's rules; a selector in parentheses is one."""
    return re.findall(r"\([^)]*\)|\S+", line)
