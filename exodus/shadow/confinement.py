"""What keeps a script that is tried on a cluster to its scratch copies. A cluster has one database,
so the applications' keys are in the same one.

The script runs as a user of its own, `compare_script_user`, whose key patterns are `PATTERNS`. The
server then refuses every key but the copies, also those whose names the script makes up. Before
each trial the script's node is asked (ACL DRYRUN) whether that holds there: rules are not
replicated. Afterwards its counters tell whether the script was refused a key or a command, since a
script may swallow the error, and whether there are more keys than before.

A script sees the names of its keys. So the copies have names of two forms:

    of the key     cart:42:{scratch.9301}:exodus:0a1b2c3d4e5f6071
    of Exodus      exodus:{scratch.9301}:0a1b2c3d4e5f6071

A difference that only one of them shows comes from the name. The end of a name that a script makes
up from another one does not fit, so the server refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from exodus.commands.key_slots import slot_of
from exodus.commands.slots import tag_of
from exodus.net.info import info_of
from exodus.net.leg import Leg, Reply, ReplyError
from exodus.plan.own_keys import RESERVED_PREFIX
from exodus.resp.encode import Arg
from exodus.shadow.scratch import NoScratch
from exodus.shadow.trials import LEAVES, LEAVES_CLUSTER

PATTERNS = ("exodus:{scratch.*}:????????????????", "*:{scratch.*}:exodus:????????????????")
NOT_TOLD = "the target does not tell what it refuses to a script (ACL DRYRUN, INFO)"
SLOT_MOVES = "the script's slot was on its way to another node"
NO_NAME = "the braces in a key's name leave no name for a script's scratch copy"
OTHER_KEYS = "compare_script_user may use other keys than scratch copies"
NO_COPIES = "compare_script_user has no right to the names of scratch copies"
_TAG = b"scratch"
_COPY = re.compile(
    rb"exodus:\{scratch\.[^}]*\}:.{16}|.*:\{scratch\.[^}]*\}:exodus:.{16}", re.DOTALL
)
_NOBODYS = b"{exodus}:permit"  # a key that is no copy, and is never made


def own_name(key: bytes, token: bytes) -> bytes:
    """Return the name of a key's copy that tells nothing of the key, in its slot."""
    return RESERVED_PREFIX + tag_of(_TAG, slot_of(key)) + b"}:" + token


def name_of_key(key: bytes, token: bytes) -> bytes:
    """Return the name of a key's copy that begins like the key, in its slot.

    Raises:
        NoScratch: there is none.
    """
    name = key + b":{" + tag_of(_TAG, slot_of(key)) + b"}:exodus:" + token
    if slot_of(name) != slot_of(key):
        raise NoScratch(NO_NAME)
    return name


def is_copy(name: bytes) -> bool:
    """Return whether a name is one that `compare_script_user` may use."""
    return _COPY.fullmatch(name) is not None


@dataclass(frozen=True)
class NodeCounts:
    """What a node counts, and how many keys it has."""

    refused_keys: int
    refused_commands: int
    misses: int
    keys: int
    copies: int  # of the script that is tried


async def count(node: Leg, copies: Sequence[bytes], *, after: bool) -> NodeCounts:
    """Return a node's counts, before a script or `after` it.

    Raises:
        NoScratch: this version does not tell, or the slot is on its way to another node.
    """
    asked: list[Sequence[Arg]] = [("EXISTS", *copies), ("DBSIZE",), ("INFO", "stats")]
    if after:
        asked.reverse()  # a copy that is not there counts as a miss
    said = await node.pipeline(asked)
    if after:
        said.reverse()
    there, keys, raw = said
    if any(isinstance(each, ReplyError) for each in said):
        raise NoScratch(SLOT_MOVES)
    stats = info_of(raw)
    if "acl_access_denied_key" not in stats:
        raise NoScratch(NOT_TOLD)
    return NodeCounts(
        int(stats["acl_access_denied_key"]),
        int(stats["acl_access_denied_cmd"]),
        int(stats["keyspace_misses"]),
        keys,
        there,
    )


async def see_confined(
    node: Leg, user: str, keys: Sequence[bytes], copies: Sequence[bytes]
) -> None:
    """See that a user may use copies on this node, and nothing else.

    Raises:
        NoScratch: it may use another key, or run what does not need one; or not the copies.
    """
    leaves: list[Sequence[Arg]] = [*LEAVES, *LEAVES_CLUSTER]
    others: list[Sequence[Arg]] = [
        (verb, key, *more) for key in (*keys, _NOBODYS) for verb, *more in _USES
    ]
    wanted: list[Sequence[Arg]] = [(verb, key, *more) for key in copies for verb, *more in _USES]
    said = await node.pipeline(
        [("ACL", "DRYRUN", user, *request) for request in (*leaves, *others, *wanted)]
    )
    if any(isinstance(each, ReplyError) for each in said):
        raise NoScratch(NOT_TOLD)
    may = [request[0] for request, reply in zip(leaves, said, strict=False) if _may(reply)]
    if may:
        names = ", ".join(map(str, dict.fromkeys(may)))
        raise NoScratch(f"compare_script_user may run {names}: a script could leave its copies")
    if any(each == b"OK" for each in said[len(leaves) : len(leaves) + len(others)]):
        raise NoScratch(OTHER_KEYS)
    if any(each != b"OK" for each in said[len(leaves) + len(others) :]):
        raise NoScratch(NO_COPIES)


async def why_refused(node: Leg, user: str, requests: Sequence[Sequence[bytes]]) -> str:
    """Return why an application's user may not run one of the requests; empty: it may.

    Raises:
        NoScratch: this version does not tell.
    """
    said = await node.pipeline([("ACL", "DRYRUN", user, *args) for args in requests])
    if any(isinstance(each, ReplyError) for each in said):
        raise NoScratch(NOT_TOLD)
    return next((each.decode("utf-8", "replace") for each in said if each != b"OK"), "")


_USES: tuple[tuple[str, ...], ...] = (("GET",), ("SET", "v"))


def _may(reply: Reply) -> bool:
    """Return whether DRYRUN allows the command. A refusal may be of its key alone."""
    return reply == b"OK" or b"command" not in reply
