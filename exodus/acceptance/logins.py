"""Logins and rights: may each user of the source do on the target what it may do now?

Rights are asked of the target (ACL DRYRUN): once as the user is there, once with the rules that it
has on the source, which a user of Exodus's own gets for as long as that takes. Where that cannot be
asked, equal rules are equal rights, and a person accepts the others by name.
"""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Iterable, Sequence

from exodus.acceptance.observed import observed_commands
from exodus.acceptance.rows import Checked, not_done, on_each, told
from exodus.control.store import ControlStore
from exodus.cutover.beside_keys import application_users, compare_user_rules, login_names
from exodus.cutover.beside_read import SideUser, read
from exodus.cutover.beside_rows import StateOutcome
from exodus.errors import OperatorError, TargetError
from exodus.net.connect import open_streams
from exodus.net.leg import Leg, ReplyError
from exodus.net.masters import located
from exodus.net.tls import ssl_context
from exodus.plan.bounds import ACCEPTANCE_NAMED, CERTIFICATE_DAYS_MIN
from exodus.plan.plan import Plan
from exodus.plan.settings import Login
from exodus.plan.vocabulary import Side, UserRole
from exodus.topology.applications import takes_nobody
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node
from exodus.topology.permits import why_refused

_PROBE_USER = "exodus-smoke-"
_RIGHTS = "rights of user "
_DAY_S = 86_400
# The rule that allows everything
_EVERYTHING = {"commands": "+@all", "keys": "~*", "channels": "&*", "selectors": ""}
_CARRY = "exodus carry users, or create the user on the target; then exodus start test"
# Where each argument is no key
_WORDS: dict[str, tuple[str, ...]] = {
    "EVAL": ("return 1", "1", "KEY"),
    "EVAL_RO": ("return 1", "1", "KEY"),
    "EVALSHA": ("0" * 40, "1", "KEY"),
    "EVALSHA_RO": ("0" * 40, "1", "KEY"),
    "FCALL": ("f", "1", "KEY"),
    "FCALL_RO": ("f", "1", "KEY"),
    "XREAD": ("STREAMS", "KEY", "0"),
    "XREADGROUP": ("GROUP", "g", "c", "STREAMS", "KEY", ">"),
}


async def check_logins(plan: Plan, store: ControlStore) -> list[Checked]:
    """Check users, passwords, rights, and TLS of the target against the source's."""
    commands = await observed_commands(store)
    source, servers = await _servers(plan)

    async def look(server: Node) -> list[Checked]:
        rows = await _users_on(plan, source, server, commands)
        rows += [await _mapped(server, login) for login in plan.logins]
        return rows + await _tls(plan, server)

    return [*await on_each(servers, look), await _nobody(plan)]


async def check_users(plan: Plan) -> list[Checked]:
    """Check only whether each user of the source can log in on the target."""
    source, servers = await _servers(plan)
    return await on_each(servers, lambda server: _users_on(plan, source, server, None))


async def check_rights(plan: Plan, store: ControlStore) -> list[Checked]:
    """Check only whether each user may do on the target what was observed."""
    commands = await observed_commands(store)
    source, servers = await _servers(plan)

    async def look(server: Node) -> list[Checked]:
        rows = await _users_on(plan, source, server, commands)
        return [row for row in rows if row.check.startswith(_RIGHTS)]

    return await on_each(servers, look)


async def _servers(plan: Plan) -> tuple[Node, list[Node]]:
    """Return the source's node, and the target's servers: users and certificates are each server's
    own, and a replica may be a master next.
    """
    acting = plan.acting(UserRole.SWITCH)  # who may change users, for the fence
    source = await Endpoint(Side.SOURCE, acting.source).any_node()
    return source, await Endpoint(Side.TARGET, acting.target).each_server()


async def _users_on(
    plan: Plan, source: Node, server: Node, commands: Iterable[str] | None
) -> list[Checked]:
    async with (
        await source.connect(name="exodus-smoke") as ours,
        await server.connect(name="exodus-smoke") as theirs,
    ):
        return await _users(plan, ours, theirs, commands)


async def _users(
    plan: Plan, source: Leg, target: Leg, commands: Iterable[str] | None
) -> list[Checked]:
    """Return the rows of the users' logins, and of their rights to `commands` where there are any
    to look at.
    """
    ours, theirs = await read(source), await read(target)
    for side, users in ((Side.SOURCE, ours.users), (Side.TARGET, theirs.users)):
        if isinstance(users, str):
            return [told("users", f"the {side} does not tell them: {users}")]
    logins, there = login_names(plan), theirs.users
    assert isinstance(there, dict)
    rows: list[Checked] = []
    for name, user in sorted(application_users(plan, ours).items()):
        on_target = logins.get(name, name)
        found = compare_user_rules(name, user, there.get(on_target), mapped=name in logins)
        required = found.outcome is StateOutcome.REQUIRED
        detail = f"{found.follower}: {found.means}" if required else "it exists there"
        rows.append(Checked(f"login of user {name}", not required, detail, found.means, _CARRY))
        if not required and commands is not None:
            row = await _rights(target, name, on_target, user, commands)
            rows.append(row if row.judged else _by_rules(row, user, there[on_target]))
    rows += _not_tried([row for row in rows if row.check.startswith(_RIGHTS) and not row.judged])
    return rows or [told("users", "the source has none but Exodus's")]


def _by_rules(asked: Checked, ours: SideUser, theirs: SideUser) -> Checked:
    """Return the row of a user whose rights the target does not tell: equal rules, or rules that
    allow everything, are no narrower. Another row is as it was.
    """
    other = [
        rule
        for rule, everything in _EVERYTHING.items()
        if _parts(theirs.rules.get(rule, "")) != _parts(ours.rules.get(rule, ""))
        and (rule == "selectors" or _parts(theirs.rules.get(rule, "")) != [everything])
    ]
    if other:
        return told(asked.check, f"the rules differ ({', '.join(other)}); {asked.detail}")
    return Checked(asked.check, True, f"by its rules (ACL GETUSER), since {asked.detail}")


def _parts(rules: str) -> list[str]:
    """Return rules in a form to compare. The order of commands counts, that of patterns does not.

    Each server begins with no command.
    """
    parts = rules.split()
    commands = [part for part in parts if part[0] in "+-"]
    patterns = sorted({*parts} - {*commands})
    return [*(commands[1:] if commands[:1] == ["-@all"] else commands), *patterns]


def _not_tried(rows: Sequence[Checked]) -> list[Checked]:
    """Return the row that names the users whose rights nobody tried."""
    if not rows:
        return []
    names = [row.check.removeprefix(_RIGHTS) for row in rows]
    more = len(names) - ACCEPTANCE_NAMED
    shown = ", ".join(names[:ACCEPTANCE_NAMED]) + (f" and {more} more" if more > 0 else "")
    return [
        not_done(
            "rights of the applications' users",
            f"not tried for {shown}: {rows[0].detail}",
            "give these users equal rules on both sides (exodus carry users), let Exodus's user "
            "run ACL SETUSER, DELUSER and DRYRUN on the target, or try each login by hand",
        )
    ]


async def _rights(
    target: Leg, name: str, on_target: str, user: SideUser, commands: Iterable[str]
) -> Checked:
    """Return what `name` may do on the source and not on the target."""
    what = _RIGHTS + name
    probe = _PROBE_USER + secrets.token_hex(6)
    refused = await why_refused(target, ("ACL", "SETUSER", probe), ("ACL", "DELUSER", probe))
    if refused is not None:
        return told(what, f"Exodus's user may not ask for them: {refused}")
    rules = [*user.rules["commands"].split(), *user.rules["keys"].split()]
    rules += user.rules["channels"].split()
    made = (
        await target.pipeline(
            [("ACL", "SETUSER", probe, "reset", f">{secrets.token_hex(16)}", *rules)]
        )
    )[0]
    if isinstance(made, ReplyError) and str(made).startswith("NOPERM"):
        return told(what, f"Exodus's user may not ask for them: {made}")
    if isinstance(made, ReplyError):
        return Checked(
            what,
            False,
            f"the target does not take the user's rules: {made}",
            "it has other commands or categories",
            "give the user rules there that fit its work",
        )
    try:
        key = _key_of(user.rules["keys"])
        requests = await _requests(target, sorted(commands), key)
        asked = await target.pipeline(
            [("ACL", "DRYRUN", who, *request) for request in requests for who in (probe, on_target)]
        )
    finally:
        await target.call("ACL", "DELUSER", probe)
    if not requests:
        return told(what, "no command was observed that could be tried")
    return _judged(what, [" ".join(request[:2]) for request in requests], asked)


def _judged(what: str, names: Sequence[str], asked: Sequence[object]) -> Checked:
    before, after = asked[::2], asked[1::2]
    denied = [
        name.split(" ", 1)[0]
        for name, ours, theirs in zip(names, before, after, strict=True)
        if ours == b"OK" and isinstance(theirs, bytes) and theirs != b"OK"
    ]
    unknown = [reply for reply in after if isinstance(reply, ReplyError)]
    if unknown and len(unknown) == len(after):
        return told(what, f"the target does not tell (ACL DRYRUN): {unknown[0]}")
    return Checked(
        what,
        not denied,
        f"not allowed there: {', '.join(denied[:ACCEPTANCE_NAMED])}"
        if denied
        else f"{sum(reply == b'OK' for reply in after)} observed commands allowed on both sides",
        "applications would get NOPERM after the cutover",
        _CARRY,
    )


def _key_of(patterns: str) -> str:
    """Return a key that a user with these patterns may use."""
    for pattern in patterns.split():
        _, _, name = pattern.partition("~")
        if name and not set("[]?\\") & set(name):
            return name.replace("*", "0")
    return "0"


async def _requests(target: Leg, commands: Sequence[str], key: str) -> list[list[str]]:
    """Return a request of each command, with as many arguments as the target asks for."""
    told_of = await target.pipeline([("COMMAND", "INFO", name.lower()) for name in commands])
    made = []
    for command, reply in zip(commands, told_of, strict=True):
        facts = reply[0] if isinstance(reply, list) and reply else None
        name, _, subcommand = command.partition("|")
        if name in _WORDS:
            made.append([name, *[key if word == "KEY" else word for word in _WORDS[name]]])
        elif isinstance(facts, list):  # a command that the target lacks has a row of its own
            head = [name, *([subcommand] if subcommand else [])]
            # Arguments that are no keys may be anything.
            made.append([*head, *[key] * (abs(int(facts[1])) - len(head))])
    return made


async def _mapped(server: Node, login: Login) -> Checked:
    """Log in on the target as the gateways do for an application."""
    user = login.target_user or login.user
    what = f"login of user {login.user} as {user}"
    address = server.place.model_copy(
        update={
            "username": user,
            "password": None,
            "password_env": login.target_password_env,
            "password_file": login.target_password_file,
        }
    )
    try:
        async with await Leg.connect(address, Side.TARGET, name="exodus-smoke"):
            return Checked(what, True, "the target takes it")
    except (OperatorError, TargetError) as exc:
        return Checked(what, False, exc.why or exc.what, "its applications cannot log in", _CARRY)


async def _nobody(plan: Plan) -> Checked:
    """Check that clients without a login are taken, where the source takes them."""
    what = "clients without a login"
    if not await takes_nobody(plan, Side.SOURCE):
        return told(what, "the source takes none")
    mapped = any(login.user == "default" for login in plan.logins)
    taken = mapped or await takes_nobody(plan, Side.TARGET)
    return Checked(
        what,
        taken,
        "taken by both sides" if taken else "the source takes them, the target does not",
        "applications that show no login cannot work there",
        "let the target's user default in, or map it in logins of the migration file",
    )


async def _tls(plan: Plan, node: Node) -> list[Checked]:
    """Check a target server's certificate, and that it is not less private than the source."""
    source, target = plan.source, node.place
    if not target.tls:
        return [
            Checked(
                "TLS",
                not source.tls,
                "the source speaks TLS, the target does not" if source.tls else "on neither side",
                "requests would be readable on the way",
                "give the target a certificate and set tls, or name a network that you trust",
            )
        ]
    try:
        server = await located(target)
        _, writer = await open_streams(server, ssl_context(server))
    except (OSError, TimeoutError, ssl.SSLError) as exc:
        return [Checked("TLS", False, str(exc) or type(exc).__name__, "no client can connect")]
    certificate = writer.get_extra_info("peercert") or {}
    cipher = writer.get_extra_info("cipher") or ("", "")
    writer.close()
    until = ssl.cert_time_to_seconds(certificate["notAfter"]) if certificate else 0.0
    days = (until - time.time()) / _DAY_S
    return [
        Checked(
            "TLS",
            days >= CERTIFICATE_DAYS_MIN,
            f"{cipher[1]}, the certificate is valid for {days:.0f} days",
            f"it expires within {CERTIFICATE_DAYS_MIN} days",
            "renew the target's certificate before the cutover",
        )
    ]
