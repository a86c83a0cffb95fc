"""Trying every command that a role will use, as the role's user, without running it.

A server checks a user's rights when a command is queued in a transaction. So each command is
queued, and the transaction is discarded. Commands that no server queues (MONITOR, PSYNC) are tried
by ACL DRYRUN, where it is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exodus.errors import OperatorError
from exodus.net.leg import Leg, ReplyError
from exodus.plan.address import Cluster, Place, Service
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side, UserRole
from exodus.topology.endpoint import Endpoint
from exodus.topology.rights import Right, UsedFeatures, Version, rights_of

# Of a command that is never run; a user without ~* may not name it, and needs to
_ARGUMENT = "{exodus}:permit"
# Are not queued, or end the transaction
_LATER = (
    "PING",
    "MULTI",
    "EXEC",
    "DISCARD",
    "WATCH",
    "UNWATCH",
)
_NO_PERMISSION = "NOPERM"


@dataclass(frozen=True)
class Refused:
    """One command that a user may not run, or that the server does not have."""

    side: Side
    role: UserRole
    user: str
    command: str
    said: str
    right: Right

    @property
    def remedy(self) -> str:
        """Return what to type on that side."""
        if _NO_PERMISSION not in self.said:
            return (
                f"give the {self.side} its command {self.command} back (rename-command), or "
                "choose a way that does not use it"
            )
        keys = " ~*" if "key" in self.said.partition(" (on ")[0].lower() else ""
        return (
            f"on the {self.side}: ACL SETUSER {self.user} +{self.command}{keys}; `exodus "
            "users` prints all rights that its roles need"
        )


def _roles(plan: Plan, side: Side) -> list[UserRole]:
    """Roles that have a user of their own on a side, and the side's own user."""
    return [UserRole.SYNCER, *[role for role in UserRole if plan.users.of(role, side) is not None]]


def wanted_of(plan: Plan, side: Side) -> UsedFeatures:
    """Return the features that a plan uses on a side."""
    place = plan.address(side)
    sentinel, cluster = isinstance(place, Service), isinstance(place, Cluster)
    return UsedFeatures(plan.fence.of(side), plan.feed, plan.strategy, sentinel, cluster)


async def try_rights(plan: Plan, side: Side, engine: str, version: Version) -> list[Refused]:
    """Return the commands that a side's users need and may not run.

    Raises:
        SourceError, TargetError: the side does not answer.
        OperatorError: it refuses the login of a role's user, or the password cannot be read here.
    """
    found: list[Refused] = []
    for role in _roles(plan, side):
        address = plan.acting(role).address(side)
        roles = (
            [role]
            if role is not UserRole.SYNCER
            else [each for each in UserRole if each is role or each not in _roles(plan, side)]
        )
        rights: dict[str, Right] = {}
        for each in roles:
            for command, right in rights_of(each, side, engine, version, wanted_of(plan, side)):
                if command not in rights or rights[command].without:
                    rights[command] = right
        user = address.username or "default"
        try:
            said: dict[str, str] = {}
            servers = await Endpoint(side, address).each_server()  # users are not replicated
            for server in servers:
                async with await server.connect(name="exodus-permits") as leg:
                    refused = await _try(leg, user, list(rights))
                where = f" (on {server.where})" if len(servers) > 1 else ""
                said = {**{name: f"{why}{where}" for name, why in refused.items()}, **said}
        except OperatorError as exc:
            raise OperatorError(
                f"{side}: user {user!r} (role {role}): {exc.what}",
                why=exc.why,
                next_step=exc.next_step,
            ) from exc
        found += [
            Refused(side, role, user, command, why, rights[command])
            for command, why in said.items()
        ]
    return found


async def why_not(address: Place, side: Side, command: str) -> str | None:
    """Return why the user of an address may not run a command, or None: it may, or that cannot be
    tried.

    Raises:
        SourceError, TargetError, OperatorError: the server does not answer, or refuses the login.
    """
    async with await Leg.connect(address, side, name="exodus-permits") as leg:
        return (await _try(leg, address.username or "default", [command])).get(command)


async def refused_of(leg: Leg, user: str, requests: Sequence[Sequence[Any]]) -> list[str | None]:
    """Return why the connection's user may not run each request, or None: it may.

    ACL DRYRUN tells it without a trace in the server's log. Where it is not there, the request's
    command is queued in a transaction and discarded, and a refusal stands in ACL LOG.

    Raises:
        SourceError, TargetError: the server went away.
    """
    if not requests:
        return []
    said = await leg.pipeline([("ACL", "DRYRUN", user, *request) for request in requests])
    if not any(isinstance(reply, ReplyError) for reply in said):
        return [None if reply == b"OK" else reply.decode("utf-8", "replace") for reply in said]
    names = [_name(request) for request in requests]
    refused = await _try(leg, user, list(dict.fromkeys(names)))
    return [refused.get(name) for name in names]


async def why_refused(leg: Leg, *requests: Sequence[Any]) -> str | None:
    """Return why the connection's user may not run one of these requests, or None: it may."""
    said = await refused_of(leg, leg.address.username or "default", requests)
    return next((why for why in said if why is not None), None)


_CONTAINERS = frozenset({"object", "memory", "xgroup", "xinfo", "script", "function", "client"})


def _name(request: Sequence[Any]) -> str:
    head = str(request[0]).lower()
    return f"{head}|{str(request[1]).lower()}" if head in _CONTAINERS else head


async def _try(leg: Leg, user: str, commands: Sequence[str]) -> dict[str, str]:
    """Return why each command is refused. Allowed commands, and those that cannot be tried, are
    left out.

    Without MULTI or COMMAND the rest cannot be tried, and these are named alone.
    """
    heads = list(dict.fromkeys(command.partition("|")[0] for command in commands))
    (rows,) = await leg.pipeline([("COMMAND", "INFO", *heads)])
    if isinstance(rows, ReplyError):
        return {"command": str(rows)}  # nothing else can be tried without it
    requests = _requests(rows, commands)
    refused = {
        command: "the server has no such command" for command in commands if command not in requests
    }
    begun = (await leg.pipeline([("MULTI",)]))[0]
    if isinstance(begun, ReplyError):
        return refused | {"multi": str(begun)}
    queued = {
        command: request
        for command, request in requests.items()
        if request[0].upper() not in _LATER
    }
    replies = await leg.pipeline([*queued.values(), ("DISCARD",)])
    if isinstance(replies[-1], ReplyError):
        refused["discard"] = str(replies[-1])
        return refused
    asked: dict[str, tuple[Any, ...]] = {}
    for (command, request), reply in zip(queued.items(), replies, strict=False):
        if isinstance(reply, ReplyError):
            if str(reply).startswith(_NO_PERMISSION):
                refused[command] = str(reply)
            else:
                asked[command] = request
    # A transaction that is refused EXEC is not run either; behind no MULTI it is an error of its
    # own.
    harmless = {
        name: request
        for name, request in requests.items()
        if request[0].upper() in _LATER and name not in ("multi", "discard")
    }
    order = sorted(harmless, key="unwatch".__eq__)
    for command, reply in zip(
        order, await leg.pipeline([harmless[name] for name in order]), strict=True
    ):
        # Of EXEC inside an EXECABORT
        if isinstance(reply, ReplyError) and _NO_PERMISSION in str(reply):
            refused[command] = str(reply)
    for command, reply in zip(
        asked,
        await leg.pipeline([("ACL", "DRYRUN", user, *request) for request in asked.values()]),
        strict=True,
    ):
        if isinstance(reply, bytes) and reply != b"OK":
            refused[command] = f"{_NO_PERMISSION} {reply.decode('utf-8', 'replace')}"
    return refused


def _requests(rows: Sequence[Any], commands: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return each command that the server has, with its smallest number of arguments."""
    arities = {row[0].decode().lower(): row for row in rows if row}
    found: dict[str, tuple[str, ...]] = {}
    for command in commands:
        head, _, word = command.partition("|")
        row = arities.get(head)
        if row is None:
            continue
        arity = abs(row[1])
        for inner in row[9] if word and len(row) > 9 else ():
            if inner[0].decode().lower() == command:
                arity = abs(inner[1])
        words = [part.upper() for part in command.split("|")]
        found[command] = (*words, *[_ARGUMENT] * (arity - len(words)))
    return found
