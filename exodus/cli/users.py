"""`exodus users`: print the ACL users that Exodus needs on a server, each right with its reason."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from exodus.cli.context import JsonOption
from exodus.cli.output import show, show_json
from exodus.plan.vocabulary import CopyStrategy, Feed, FenceKind, Side, UserRole
from exodus.topology.rights import Right, UsedFeatures, Version, rights_of, rule_of, server_of

_ROOT = frozenset({"acl|setuser", "config|set", "replicaof"})


def _name(role: UserRole) -> str:
    return "exodus" if role is UserRole.SYNCER else f"exodus-{role}"


def _reasons(
    roles: list[UserRole], side: Side, engine: str, version: Version, wanted: UsedFeatures
) -> dict[Right, list[str]]:
    found: dict[Right, list[str]] = {}
    for role in roles:
        for command, right in rights_of(role, side, engine, version, wanted):
            commands = found.setdefault(right, [])
            if command not in commands:
                commands.append(command)
    return found


def users(
    server: Annotated[
        str,
        typer.Option(
            "--for", help="engine and version of the server: redis-6.2, redis-8.2, valkey-9.1"
        ),
    ],
    side: Annotated[Side, typer.Option(help="side of the server")] = Side.SOURCE,
    fence: Annotated[
        FenceKind, typer.Option(help="fence of that side; provider needs the fewest rights")
    ] = FenceKind.AUTO,
    feed: Annotated[Feed, typer.Option(help="change feed")] = Feed.AUTO,
    strategy: Annotated[CopyStrategy, typer.Option(help="copy strategy")] = CopyStrategy.KEYS,
    sentinel: Annotated[
        bool, typer.Option("--sentinel", help="the server is one of a service behind Sentinel")
    ] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="the server is a node of a cluster")
    ] = False,
    together: Annotated[bool, typer.Option(help="one user with the rights of all roles")] = False,
    json: JsonOption = False,
) -> None:
    """Print the users that Exodus needs, each right with its reason.

    Example: exodus users --for redis-6.2 --side source
    """
    engine, version = server_of(server)
    wanted = UsedFeatures(fence, feed, strategy, sentinel, cluster)
    groups = [list(UserRole)] if together else [[role] for role in UserRole]
    documents: list[dict[str, Any]] = []
    for roles in groups:
        name, rule = _name(roles[0]), rule_of(roles, side, engine, version, wanted)
        reasons = _reasons(roles, side, engine, version, wanted)
        root = sorted(_ROOT & {command for commands in reasons.values() for command in commands})
        rights = [
            {"commands": commands, "why": right.why, "without": right.without}
            for right, commands in reasons.items()
        ]
        documents.append(
            {
                "user": name,
                "roles": [str(role) for role in roles],
                "rule": rule,
                "administrator": root,
                "rights": rights,
            }
        )
    if json:
        show_json({"server": server, "side": str(side), "users": documents})
        return
    for document in documents:
        show(f"# {document['user']}: {', '.join(document['roles'])}")
        if document["administrator"]:
            show(
                f"#   {', '.join(document['administrator'])}: administrator rights; guard "
                "this password like an administrator's"
            )
        for right in document["rights"]:
            without = f" (without it: {right['without']})" if right["without"] else ""
            show(f"#   {', '.join(right['commands'])}: {right['why']}{without}")
        show(f"ACL SETUSER {document['user']} on >PASSWORD {document['rule']}", "")
