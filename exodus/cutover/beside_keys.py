"""State beside the keys: what applications rely on and no copy of keys brings along.

`compare` reads both sides and says of each thing: same, differs (and what that means), must be mended before
the cutover, or not provable, where a side does not let Exodus read it. What must be mended blocks a switch to
the target (`standing.py`); the rest a person reads before deciding. `carry` does on the follower what it allows
and returns the rest as commands.

docs/operating/beside-keys.md lists every row, what it means and why it blocks or not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from exodus.cutover.functions import compare_libraries
from exodus.net.info import info_of
from exodus.net.leg import Leg, Reply, ReplyError
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side

Json = dict[str, Any]
_ALL_EVENTS = set("g$lshzxetd")  # what A stands for in notify-keyspace-events
_OWN_USERS = "exodus-"  # those that Exodus makes for MIGRATE begin like this
_SHOWN = 5


class StateOutcome(StrEnum):
    """How one thing stands."""

    SAME = "same"
    DIFFERS = "differs"
    REQUIRED = "must be mended before the cutover"
    NOT_PROVABLE = "not provable"


@dataclass(frozen=True)
class Row:
    """One thing beside the keys, on both sides."""

    what: str
    outcome: StateOutcome
    authority: str = ""
    follower: str = ""
    means: str = ""  # for applications, after the cutover; or why it cannot be read
    remedy: str = ""

    def as_json(self) -> Json:
        """For tables and reports."""
        return {**asdict(self), "outcome": str(self.outcome)}


@dataclass(frozen=True)
class _Setting:
    """A setting by its names (older ones behind newer ones), and when its difference matters."""

    names: tuple[str, ...]
    worse: Callable[
        [str, str], bool
    ]  # whether the follower's value (second) is worse for applications
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


_ORDER = "the order of HGETALL, SMEMBERS and similar replies, and OBJECT ENCODING, change at another size"
_SETTINGS = (
    _Setting(
        ("notify-keyspace-events",),
        _fewer_events,
        StateOutcome.REQUIRED,
        "subscribers of keyspace events get none of these",
        wanted=_all_events,
    ),
    _Setting(
        ("databases",),
        _less,
        StateOutcome.REQUIRED,
        "SELECT of a higher database is refused",
        at_run_time=False,
    ),
    _Setting(
        ("proto-max-bulk-len",),
        _less,
        StateOutcome.REQUIRED,
        "a larger value is refused, and its connection closed",
    ),
    _Setting(
        ("client-query-buffer-limit",),
        _less,
        StateOutcome.DIFFERS,
        "a client with a larger request is disconnected",
    ),
    _Setting(
        ("timeout",),
        _less_where_zero_is_none,
        StateOutcome.DIFFERS,
        "idle connections are closed sooner",
    ),
    _Setting(("maxclients",), _less, StateOutcome.DIFFERS, "fewer connections fit"),
    _Setting(
        ("maxmemory-policy",),
        _other,
        StateOutcome.DIFFERS,
        "other keys are evicted, or writes are refused, when memory is full",
        at_run_time=False,
    ),
    _Setting(
        ("lua-time-limit", "busy-reply-threshold"),
        _other,
        StateOutcome.DIFFERS,
        "BUSY is answered after another time",
    ),
    _Setting(
        ("hash-max-listpack-entries", "hash-max-ziplist-entries"),
        _other,
        StateOutcome.DIFFERS,
        _ORDER,
    ),
    _Setting(
        ("hash-max-listpack-value", "hash-max-ziplist-value"), _other, StateOutcome.DIFFERS, _ORDER
    ),
    _Setting(("set-max-intset-entries",), _other, StateOutcome.DIFFERS, _ORDER),
    _Setting(("set-max-listpack-entries",), _other, StateOutcome.DIFFERS, _ORDER),
    _Setting(("set-max-listpack-value",), _other, StateOutcome.DIFFERS, _ORDER),
    _Setting(
        ("zset-max-listpack-entries", "zset-max-ziplist-entries"),
        _other,
        StateOutcome.DIFFERS,
        "OBJECT ENCODING changes at another size",
    ),
    _Setting(
        ("zset-max-listpack-value", "zset-max-ziplist-value"),
        _other,
        StateOutcome.DIFFERS,
        "OBJECT ENCODING changes at another size",
    ),
    _Setting(
        ("list-max-listpack-size", "list-max-ziplist-size"),
        _other,
        StateOutcome.DIFFERS,
        "OBJECT ENCODING changes at another size",
    ),
)


@dataclass
class _User:
    """An ACL user as a server tells it."""

    enabled: bool
    nopass: bool
    passwords: frozenset[bytes]
    rules: dict[str, str] = field(default_factory=dict)  # commands, keys, channels


@dataclass
class Beside:
    """What a side has beside its keys. An attribute that could not be read is a text: why."""

    settings: dict[str, str] | str
    users: dict[str, _User] | str
    user_lines: dict[str, str]  # name → its rules as ACL SETUSER takes them
    modules: set[str] | str
    module_commands: dict[str, set[str]]
    called: set[str]  # commands that were called since the server began
    scripts: int | None


async def read(leg: Leg) -> Beside:
    """Read a side."""
    names = [name for setting in _SETTINGS for name in setting.names]
    *got, listed, acl, modules, memory, stats = await leg.pipeline(
        [
            *(("CONFIG", "GET", name) for name in names),
            ("ACL", "USERS"),
            ("ACL", "LIST"),
            ("MODULE", "LIST"),
            ("INFO", "memory"),
            ("INFO", "commandstats"),
        ]
    )
    found: dict[str, str] | str = {}
    for reply in got:
        if isinstance(reply, ReplyError):
            found = str(reply)
            break
        found.update({reply[at].decode(): reply[at + 1].decode() for at in range(0, len(reply), 2)})  # type: ignore[union-attr]
    users: dict[str, _User] | str = str(listed)
    if not isinstance(listed, ReplyError):
        told = await leg.pipeline([("ACL", "GETUSER", name) for name in listed])
        refused = next((str(reply) for reply in told if isinstance(reply, ReplyError)), None)
        users = refused or {
            name.decode(): _user(reply)
            for name, reply in zip(listed, told, strict=True)
            if isinstance(reply, list)
        }
    lines = [] if isinstance(acl, ReplyError) else [line.decode("utf-8", "replace") for line in acl]
    loaded = (
        str(modules)
        if isinstance(modules, ReplyError)
        else {_pairs(each)["name"].decode() for each in modules}
    )
    commands: dict[str, set[str]] = {}
    if isinstance(loaded, set) and loaded:
        of_each = await leg.pipeline(
            [("COMMAND", "LIST", "FILTERBY", "MODULE", name) for name in sorted(loaded)]
        )
        for name, reply in zip(sorted(loaded), of_each, strict=True):
            if isinstance(reply, list):
                commands[name] = {command.decode().lower() for command in reply}
    cached = (
        None if isinstance(memory, ReplyError) else info_of(memory).get("number_of_cached_scripts")
    )
    called = (
        set()
        if isinstance(stats, ReplyError)
        else {
            key.removeprefix("cmdstat_").lower()
            for key in info_of(stats)
            if key.startswith("cmdstat_")
        }
    )
    return Beside(
        settings=found,
        users=users,
        user_lines={
            line.split(" ", 2)[1]: line.split(" ", 2)[2] for line in lines if line.count(" ") >= 2
        },
        modules=loaded,
        module_commands=commands,
        called=called,
        scripts=None if cached is None else int(cached),
    )


def _pairs(flat: Reply) -> dict[str, Any]:
    return {flat[at].decode(): flat[at + 1] for at in range(0, len(flat), 2)}


def _user(told: list[Any]) -> _User:
    of = _pairs(told)
    flags = {flag.decode() for flag in of["flags"]}
    return _User(
        enabled="on" in flags,
        nopass="nopass" in flags,
        passwords=frozenset(of["passwords"]),
        rules={
            "commands": of["commands"].decode(),
            "keys": _patterns(of["keys"], "~"),
            "channels": _patterns(of.get("channels", b""), "&"),
        },
    )


def _patterns(told: bytes | list[bytes], sign: str) -> str:
    """Patterns as newer servers tell them: 6.2 gives a list of them without their sign."""
    return (
        told.decode()
        if isinstance(told, bytes)
        else " ".join(sign + pattern.decode() for pattern in told)
    )


async def compare(plan: Plan, authority: Leg, follower: Leg) -> list[Row]:
    """Compare what two sides have beside their keys."""
    ours, theirs = await read(authority), await read(follower)
    return [
        *_users(plan, ours, theirs, authority.side),
        *_settings(ours, theirs, authority.side, follower.side),
        *_modules(ours, theirs, authority.side, follower.side),
        *await _libraries(authority, follower),
        *_scripts(ours, theirs),
    ]


def required(rows: Sequence[Row]) -> list[Row]:
    """Those that must be mended."""
    return [row for row in rows if row.outcome is StateOutcome.REQUIRED]


def _not_provable(what: str, ours: object, theirs: object, authority: Side, follower: Side) -> Row:
    told = [
        f"the {side} does not tell: {state}"
        for side, state in ((authority, ours), (follower, theirs))
        if isinstance(state, str)
    ]
    return Row(
        what,
        StateOutcome.NOT_PROVABLE,
        means="; ".join(told),
        remedy="compare it by the provider's console, or let Exodus's user read it",
    )


# ---- users


def application_users(plan: Plan, side: Beside) -> dict[str, _User]:
    """Enabled users that are not Exodus's."""
    if isinstance(side.users, str):
        return {}
    own = plan.own_users(Side.SOURCE) | plan.own_users(Side.TARGET)
    return {
        name: user
        for name, user in side.users.items()
        if user.enabled and name not in own and not name.startswith(_OWN_USERS)
    }


def _login_names(plan: Plan) -> Mapping[str, str]:
    return {login.user: login.target_user or login.user for login in plan.logins}


def _users(plan: Plan, ours: Beside, theirs: Beside, authority: Side) -> list[Row]:
    if isinstance(ours.users, str) or isinstance(theirs.users, str):
        return [_not_provable("users", ours.users, theirs.users, authority, authority.other)]
    logins = _login_names(plan) if authority is Side.SOURCE else {}
    rows = [
        _compare_user(name, user, theirs.users.get(logins.get(name, name)), mapped=name in logins)
        for name, user in application_users(plan, ours).items()
    ]
    return rows or [Row("users", StateOutcome.SAME, "none but Exodus's", "none but Exodus's")]


def _compare_user(name: str, ours: _User, theirs: _User | None, *, mapped: bool) -> Row:
    what, remedy = f"user {name}", "exodus carry users"
    if theirs is None or not theirs.enabled:
        state = "missing" if theirs is None else "off"
        return Row(
            what, StateOutcome.REQUIRED, "on", state, "its applications cannot log in", remedy
        )
    if not mapped and not theirs.nopass and (ours.nopass or not ours.passwords <= theirs.passwords):
        said = "any password" if ours.nopass else f"{len(ours.passwords)} password(s)"
        return Row(
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
        return Row(
            what,
            StateOutcome.DIFFERS,
            here,
            there,
            "commands, keys or channels may be refused that were allowed, or the reverse",
            remedy,
        )
    return Row(what, StateOutcome.SAME, "on", "on")


# ---- settings


def _value(settings: dict[str, str], names: tuple[str, ...]) -> tuple[str, str] | None:
    return next(((name, settings[name]) for name in names if name in settings), None)


def _settings(ours: Beside, theirs: Beside, authority: Side, follower: Side) -> list[Row]:
    if isinstance(ours.settings, str) or isinstance(theirs.settings, str):
        return [_not_provable("settings", ours.settings, theirs.settings, authority, follower)]
    rows = []
    for setting in _SETTINGS:
        here, there = _value(ours.settings, setting.names), _value(theirs.settings, setting.names)
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
                Row(setting.names[0], setting.outcome, here[1], there[1], setting.means, remedy)
            )
        else:
            rows.append(Row(setting.names[0], StateOutcome.SAME, here[1], there[1]))
    return rows


# ---- code


def _modules(ours: Beside, theirs: Beside, authority: Side, follower: Side) -> list[Row]:
    if isinstance(ours.modules, str) or isinstance(theirs.modules, str):
        return [_not_provable("modules", ours.modules, theirs.modules, authority, follower)]
    rows = []
    for name in sorted(ours.modules):
        what = f"module {name}"
        if name in theirs.modules:
            rows.append(Row(what, StateOutcome.SAME, "loaded", "loaded"))
            continue
        commands = ours.module_commands.get(name)
        used = commands is None or bool(commands & ours.called)
        outcome = StateOutcome.REQUIRED if used else StateOutcome.DIFFERS
        means = "its commands and types are unknown there" + (
            "" if used else "; none of its commands was called since the server began"
        )
        rows.append(
            Row(
                what,
                outcome,
                "loaded",
                "missing",
                means,
                "load it on the follower, or choose a server that has it",
            )
        )
    return rows or [
        Row("modules", StateOutcome.SAME, "none", ", ".join(sorted(theirs.modules)) or "none")
    ]


async def _libraries(authority: Leg, follower: Leg) -> list[Row]:
    found = await compare_libraries(authority, follower)
    if found.not_told:
        return [
            Row(
                "function libraries",
                StateOutcome.NOT_PROVABLE,
                means=f"the {authority.side} does not tell them: {found.not_told}",
            )
        ]
    rows = [
        Row(
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
        Row("function libraries", StateOutcome.SAME, same, f"{same}, {len(found.extra)} of its own")
    ]


def _scripts(ours: Beside, theirs: Beside) -> list[Row]:
    if ours.scripts is None or theirs.scripts is None:
        return [
            Row(
                "scripts",
                StateOutcome.NOT_PROVABLE,
                means="a side does not tell how many scripts it has cached (INFO memory)",
            )
        ]
    fewer = theirs.scripts < ours.scripts
    means = "EVALSHA of a script that was not loaded there is answered NOSCRIPT" if fewer else ""
    return [
        Row(
            "scripts",
            StateOutcome.DIFFERS if fewer else StateOutcome.SAME,
            f"{ours.scripts} cached",
            f"{theirs.scripts} cached",
            means,
        )
    ]


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
        carried.left.append(
            f"# {_not_provable('settings', ours.settings, theirs.settings, authority.side, follower.side).means}"
        )
        return carried
    for setting in _SETTINGS:
        here, there = _value(ours.settings, setting.names), _value(theirs.settings, setting.names)
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
                f"CONFIG SET {name} {value}    # after the migration was finalised: until then what is evicted counts as missing"
            )
        else:
            carried.left.append(
                f"{name} {value}    # in the follower's configuration file; restart it"
            )
    if carried.done:
        carried.left.append(
            "CONFIG REWRITE    # or the same in the follower's configuration, to keep it over a restart"
        )
    return carried


async def carry_users(plan: Plan, authority: Leg, follower: Leg) -> Carried:
    """Make the applications' users on the follower as they are on the authority, with the hashes of their passwords."""
    ours, theirs, carried = await read(authority), await read(follower), Carried()
    if isinstance(ours.users, str) or isinstance(theirs.users, str):
        carried.left.append(
            f"# {_not_provable('users', ours.users, theirs.users, authority.side, follower.side).means}"
        )
        return carried
    mapped = _login_names(plan) if authority.side is Side.SOURCE else {}
    for name, user in application_users(plan, ours).items():
        if (
            name in mapped
            or _compare_user(name, user, theirs.users.get(name), mapped=False).outcome
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
    """The words of a user's rules; a selector in parentheses is one."""
    return re.findall(r"\([^)]*\)|\S+", line)
