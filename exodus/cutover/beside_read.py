"""Reading the state beside the keys from one side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from exodus.cutover.beside_settings import SETTINGS
from exodus.net.info import info_of
from exodus.net.leg import Leg, Reply, ReplyError


@dataclass
class SideUser:
    """An ACL user as a server tells it."""

    enabled: bool
    nopass: bool
    passwords: frozenset[bytes]
    rules: dict[str, str] = field(default_factory=dict)  # commands, keys, channels, selectors


@dataclass
class ServerSetup:
    """What a side has beside its keys. An attribute that could not be read is a text: why."""

    settings: dict[str, str] | str
    users: dict[str, SideUser] | str
    user_lines: dict[str, str]  # name → its rules as ACL SETUSER takes them
    modules: set[str] | str
    module_commands: dict[str, set[str]]
    called: set[str]  # commands that were called since the server began
    scripts: int | None


async def read(leg: Leg) -> ServerSetup:
    """Read a side."""
    names = [name for setting in SETTINGS for name in setting.names]
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
    users: dict[str, SideUser] | str = str(listed)
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
    return ServerSetup(
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


def _user(told: list[Any]) -> SideUser:
    of = _pairs(told)
    flags = {flag.decode() for flag in of["flags"]}
    return SideUser(
        enabled="on" in flags,
        nopass="nopass" in flags,
        passwords=frozenset(of["passwords"]),
        rules={
            "commands": of["commands"].decode(),
            "keys": _patterns(of["keys"], "~"),
            "channels": _patterns(of.get("channels", b""), "&"),
            "selectors": " ".join(map(_selector, of.get("selectors", []))),
        },
    )


def _selector(told: list[Any]) -> str:
    """Return a selector as ACL SETUSER takes it."""
    of = _pairs(told)
    parts = [of[name].decode() for name in ("commands", "keys", "channels") if of.get(name)]
    return f"({' '.join(parts)})"


def _patterns(told: bytes | list[bytes], sign: str) -> str:
    """Patterns as newer servers tell them: 6.2 gives a list of them without their sign."""
    return (
        told.decode()
        if isinstance(told, bytes)
        else " ".join(sign + pattern.decode() for pattern in told)
    )
