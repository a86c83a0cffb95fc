"""Users with exactly the rights that `exodus users` prints, and what servers refused them."""

from __future__ import annotations

import secrets
from pathlib import Path

import redis

from exodus.plan.address import Address, Credentials
from exodus.plan.settings import RoleUser, Users
from exodus.plan.vocabulary import Side, UserRole
from exodus.stack.servers import USER, ServerKind
from exodus.topology.rights import UsedFeatures, rule_of, server_of
from tests.support.servers import DatabaseServer

ADMINISTRATOR = "administrator"
# Asked to learn that the server has no CLIENT NO-TOUCH and no ACL DRYRUN; it names the command
# without its second word.
_NOT_IN_62 = [
    *[(f"exodus-{role}", "client") for role in ("syncer", "verifier", "comparer")],
    ("exodus-switch", "acl"),
]
# Tried in a transaction that is discarded, to learn which user the checklist can name for the last
# dump.
_TRIED = [("exodus-syncer", "sync")]


def administrator(box: DatabaseServer) -> redis.Redis:
    """A client with the right to everything; the fence takes it for an application."""
    return redis.Redis(port=box.port, username=ADMINISTRATOR, password=ADMINISTRATOR)


def take_over(box: DatabaseServer) -> None:
    """Replace the user that the tests' servers begin with."""
    with box.client() as client:
        client.execute_command(
            "ACL", "SETUSER", ADMINISTRATOR, "on", f">{ADMINISTRATOR}", "~*", "&*", "+@all"
        )
    with administrator(box) as client:
        client.execute_command("ACL", "DELUSER", USER)


def make_users(
    servers: dict[Side, DatabaseServer], wanted: dict[Side, UsedFeatures], folder: Path
) -> tuple[dict[Side, Address], Users]:
    """Make the users of all roles as an operator would.

    Returns both sides' addresses for the role `syncer`, and the other roles' logins for the plan.
    """
    made: dict[UserRole, dict[str, Credentials]] = {role: {} for role in UserRole}
    own: dict[Side, Address] = {}
    for side, box in servers.items():
        take_over(box)
        for role in UserRole:
            name, password = f"exodus-{role}", secrets.token_hex(8)
            file = folder / f"{side}-{role}"
            file.write_text(password)
            rule = rule_of([role], side, *server_of(str(box.kind)), wanted[side])
            with administrator(box) as client:
                client.execute_command(
                    "ACL", "SETUSER", name, "reset", "on", f">{password}", *rule.split()
                )
            made[role][str(side)] = Credentials(username=name, password_file=file)
        own[side] = made[UserRole.SYNCER][str(side)].at(box.address())
    return own, Users(
        **{
            str(role): RoleUser(**given)
            for role, given in made.items()
            if role is not UserRole.SYNCER
        }
    )


def denied(servers: dict[Side, DatabaseServer]) -> list[str]:
    """Return what a server refused to Exodus's users, each once."""
    found = set()
    for side, box in servers.items():
        with administrator(box) as client:
            for entry in client.execute_command("ACL", "LOG", 100):
                facts = (
                    entry
                    if isinstance(entry, dict)
                    else dict(zip(entry[::2], entry[1::2], strict=True))
                )
                facts = {_text(key): _text(value) for key, value in facts.items()}
                if box.kind is ServerKind.REDIS_62 and (facts["username"], facts["object"]) in (
                    *_NOT_IN_62,
                    *_TRIED,
                ):
                    continue
                if facts["username"].startswith("exodus"):
                    found.add(f"{side}: {facts['username']} {facts['reason']} {facts['object']}")
    return sorted(found)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
