"""State beside the keys: what applications rely on and no copy of keys brings along.

`compare` reads both sides and returns one row a thing: same, differs (and what that means), must be
mended before the cutover, or not provable. A row that must be mended blocks a switch to the target
(`preconditions.py`). `beside_carry.py` changes what the follower allows, and returns the rest as
commands.

docs/operating/beside-keys.md lists every row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from exodus.cutover.beside_read import ServerSetup, SideUser, read
from exodus.cutover.beside_rows import BesideRow, StateOutcome
from exodus.cutover.beside_settings import SETTINGS
from exodus.cutover.functions import compare_libraries
from exodus.net.leg import Leg
from exodus.net.routed import together
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side

_OWN_USERS = "exodus-"  # those that Exodus makes for MIGRATE begin like this


async def compare(plan: Plan, authority: Leg, follower: Leg) -> list[BesideRow]:
    """Compare what two sides have beside their keys.

    The nodes of a cluster share none of it: one node of the authority is compared with each node
    of the follower, and a row tells the node that is worst.
    """
    here, there = await authority.any_leg(), await follower.nodes()
    ours, theirs = await read(here), await together(read(each) for each in there)
    found: dict[str, BesideRow] = {}
    for node, beside in zip(there, theirs, strict=True):
        for row in [
            *_compare_servers(plan, here.side, ours, beside),
            *await _libraries(here, node),
        ]:
            told = row
            if len(there) > 1 and row.outcome is not StateOutcome.SAME:
                told = replace(row, follower=f"{row.follower} (on {node.address.place})".strip())
            if row.what not in found or _worse(row, found[row.what]):
                found[row.what] = told
    return list(found.values())


_ORDER = (
    StateOutcome.SAME,
    StateOutcome.DIFFERS,
    StateOutcome.NOT_PROVABLE,
    StateOutcome.REQUIRED,
)


def _worse(row: BesideRow, other: BesideRow) -> bool:
    return _ORDER.index(row.outcome) > _ORDER.index(other.outcome)


def _compare_servers(
    plan: Plan, authority: Side, ours: ServerSetup, theirs: ServerSetup
) -> list[BesideRow]:
    return [
        *_users(plan, ours, theirs, authority),
        *_settings(ours, theirs, authority, authority.other),
        *_modules(ours, theirs, authority, authority.other),
        *_scripts(ours, theirs),
    ]


def required(rows: Sequence[BesideRow]) -> list[BesideRow]:
    """Return the rows that must be mended."""
    return [row for row in rows if row.outcome is StateOutcome.REQUIRED]


def not_provable(
    what: str, ours: object, theirs: object, authority: Side, follower: Side
) -> BesideRow:
    """Return the row for state that a side does not tell."""
    told = [
        f"the {side} does not tell: {state}"
        for side, state in ((authority, ours), (follower, theirs))
        if isinstance(state, str)
    ]
    return BesideRow(
        what,
        StateOutcome.NOT_PROVABLE,
        means="; ".join(told),
        remedy="compare it by the provider's console, or let Exodus's user read it",
    )


# ---- users


def application_users(plan: Plan, side: ServerSetup) -> dict[str, SideUser]:
    """Enabled users that are not Exodus's."""
    if isinstance(side.users, str):
        return {}
    own = plan.own_users(Side.SOURCE) | plan.own_users(Side.TARGET)
    return {
        name: user
        for name, user in side.users.items()
        if user.enabled and name not in own and not name.startswith(_OWN_USERS)
    }


def login_names(plan: Plan) -> Mapping[str, str]:
    """Return the target's name of each application's login that has another one."""
    return {login.user: login.target_user or login.user for login in plan.logins}


def _users(plan: Plan, ours: ServerSetup, theirs: ServerSetup, authority: Side) -> list[BesideRow]:
    if isinstance(ours.users, str) or isinstance(theirs.users, str):
        return [not_provable("users", ours.users, theirs.users, authority, authority.other)]
    logins = login_names(plan) if authority is Side.SOURCE else {}
    rows = [
        compare_user_rules(
            name, user, theirs.users.get(logins.get(name, name)), mapped=name in logins
        )
        for name, user in application_users(plan, ours).items()
    ]
    return rows or [BesideRow("users", StateOutcome.SAME, "none but Exodus's", "none but Exodus's")]


def compare_user_rules(
    name: str, ours: SideUser, theirs: SideUser | None, *, mapped: bool
) -> BesideRow:
    """Compare the rules of one user on both sides."""
    what, remedy = f"user {name}", "exodus carry users"
    if theirs is None or not theirs.enabled:
        state = "missing" if theirs is None else "off"
        return BesideRow(
            what, StateOutcome.REQUIRED, "on", state, "its applications cannot log in", remedy
        )
    if not mapped and not theirs.nopass and (ours.nopass or not ours.passwords <= theirs.passwords):
        said = "any password" if ours.nopass else f"{len(ours.passwords)} password(s)"
        return BesideRow(
            what,
            StateOutcome.REQUIRED,
            said,
            "another password",
            "its applications cannot log in",
            remedy,
        )
    other = [rule for rule, text in ours.rules.items() if theirs.rules.get(rule) != text]
    if other:
        here, there = (
            ", ".join(f"{rule}: {user.rules[rule]}" for rule in other) for user in (ours, theirs)
        )
        return BesideRow(
            what,
            StateOutcome.DIFFERS,
            here,
            there,
            "commands, keys or channels may be refused that were allowed, or the reverse",
            remedy,
        )
    return BesideRow(what, StateOutcome.SAME, "on", "on")


# ---- settings


def value_of(settings: dict[str, str], names: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the first of a setting's names that a server knows, with its value."""
    return next(((name, settings[name]) for name in names if name in settings), None)


def _settings(
    ours: ServerSetup, theirs: ServerSetup, authority: Side, follower: Side
) -> list[BesideRow]:
    if isinstance(ours.settings, str) or isinstance(theirs.settings, str):
        return [not_provable("settings", ours.settings, theirs.settings, authority, follower)]
    rows = []
    for setting in SETTINGS:
        here, there = (
            value_of(ours.settings, setting.names),
            value_of(theirs.settings, setting.names),
        )
        if here is None or there is None:
            continue  # one of them has no such setting
        worse = setting.worse(here[1], there[1])
        remedy = (
            "exodus carry settings"
            if setting.at_run_time
            else "set it in the follower's configuration and restart it"
        )
        if worse:
            rows.append(
                BesideRow(
                    setting.names[0], setting.outcome, here[1], there[1], setting.means, remedy
                )
            )
        else:
            rows.append(BesideRow(setting.names[0], StateOutcome.SAME, here[1], there[1]))
    return rows


# ---- code


def _modules(
    ours: ServerSetup, theirs: ServerSetup, authority: Side, follower: Side
) -> list[BesideRow]:
    if isinstance(ours.modules, str) or isinstance(theirs.modules, str):
        return [not_provable("modules", ours.modules, theirs.modules, authority, follower)]
    rows = []
    for name in sorted(ours.modules):
        what = f"module {name}"
        if name in theirs.modules:
            rows.append(BesideRow(what, StateOutcome.SAME, "loaded", "loaded"))
            continue
        commands = ours.module_commands.get(name)
        used = commands is None or bool(commands & ours.called)
        outcome = StateOutcome.REQUIRED if used else StateOutcome.DIFFERS
        means = "its commands and types are unknown there" + (
            "" if used else "; none of its commands was called since the server began"
        )
        rows.append(
            BesideRow(
                what,
                outcome,
                "loaded",
                "missing",
                means,
                "load it on the follower, or choose a server that has it",
            )
        )
    return rows or [
        BesideRow("modules", StateOutcome.SAME, "none", ", ".join(sorted(theirs.modules)) or "none")
    ]


async def _libraries(authority: Leg, follower: Leg) -> list[BesideRow]:
    found = await compare_libraries(authority, follower)
    if found.not_told:
        return [
            BesideRow(
                "function libraries",
                StateOutcome.NOT_PROVABLE,
                means=f"the {authority.side} does not tell them: {found.not_told}",
            )
        ]
    rows = [
        BesideRow(
            f"function library {name}",
            StateOutcome.REQUIRED,
            "loaded",
            why,
            found.not_taken or "FCALL fails, or runs other code",
            "exodus carry functions",
        )
        for name, why in found.differ.items()
    ]
    same = f"{len(found.equal)} equal"
    return rows or [
        BesideRow(
            "function libraries", StateOutcome.SAME, same, f"{same}, {len(found.extra)} of its own"
        )
    ]


def _scripts(ours: ServerSetup, theirs: ServerSetup) -> list[BesideRow]:
    if ours.scripts is None or theirs.scripts is None:
        return [
            BesideRow(
                "scripts",
                StateOutcome.NOT_PROVABLE,
                means="a side does not tell how many scripts it has cached (INFO memory)",
            )
        ]
    fewer = theirs.scripts < ours.scripts
    means = "EVALSHA of a script that was not loaded there is answered NOSCRIPT" if fewer else ""
    return [
        BesideRow(
            "scripts",
            StateOutcome.DIFFERS if fewer else StateOutcome.SAME,
            f"{ours.scripts} cached",
            f"{theirs.scripts} cached",
            means,
        )
    ]
