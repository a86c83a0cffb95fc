"""Scratch copies on a cluster, which has one database: under names of Exodus's own.

    key      cart:42                     slot 7,112
    copy     exodus:{scratch.9301}:…     the same slot: a request with several keys stays one

Each slot has such a hash tag (`tag_of`), whatever tag a key has itself. The requests that are tried
name the copies in place of the keys, and replies that name a copy are changed back.

A copy is made by RESTORE, of a state that was kept or that DUMP tells of now. COPY would name two
keys, and a node refuses that while the slot moves. Scripts are not tried: nothing keeps them from
the application's keys.

The user of the trials may be without rights to these names. ACL DRYRUN then tells whether it may do
the same to the keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from exodus.commands.key_slots import slot_of
from exodus.commands.slots import tag_of
from exodus.commands.table import CommandTable
from exodus.engine import Engine
from exodus.net.leg import Leg, Reply, ReplyError
from exodus.plan.bounds import LARGE_KEY_BYTES
from exodus.plan.own_keys import RESERVED_PREFIX
from exodus.resp.encode import Arg
from exodus.shadow.histories import Snapshot
from exodus.shadow.rules import error_code
from exodus.shadow.scratch import NoScratch, Scratch, TrialOutcome, check_made, states_now
from exodus.shadow.trials import TooSlow, Trials

TOO_LARGE = "a key is too large for a scratch copy"
NO_PAYLOADS = "no scratch copy: the target lets nobody see payloads"
OTHER_DATABASE = "scratch copies on a cluster are in database 0 only"
NO_SCRIPTS = "a script that writes, and a cluster has no database for scratch copies"
NAMES_REFUSED = "compare_user has no right to the names of scratch copies"
_TAG = b"scratch"


class ClusterScratch(Scratch):
    """Makes scratch copies in the slots of their keys, tries requests on them, and removes them."""

    def __init__(self, engine: Engine, ours: Leg, follower: Trials, table: CommandTable) -> None:
        super().__init__(engine, ours, follower, None)
        self._table = table
        self._user = ""
        if engine.plan.compare_user is not None:
            self._user = engine.plan.compare_user.username or "default"
        self._round = 0  # of names; a request that took too long may still change those before

    async def tried(
        self, db: int, keys: Sequence[bytes], requests: list[list[bytes]], *, script: bool
    ) -> list[Reply]:
        """As `Scratch.tried`."""
        if db:
            raise NoScratch(OTHER_DATABASE)
        await self._ours.select(0)
        sizes = await self._ours.pipeline([("MEMORY", "USAGE", key) for key in keys])
        if any(isinstance(size, int) and size > LARGE_KEY_BYTES for size in sizes):
            raise NoScratch(TOO_LARGE)
        read = await self._ours.pipeline(
            [part for key in keys for part in (("PTTL", key), ("DUMP", key))]
        )
        if any(isinstance(each, ReplyError) for each in read):
            raise NoScratch(NO_PAYLOADS)
        made: list[Sequence[Arg]] = [
            ("RESTORE", self._name(key), max(0, left), dump)
            for key, left, dump in zip(keys, read[::2], read[1::2], strict=True)
            if dump is not None
        ]
        return (await self._run(keys, made, requests, script=script, look=False)).replies

    async def replayed(
        self, states: Mapping[bytes, Snapshot], requests: list[list[bytes]], *, script: bool
    ) -> TrialOutcome:
        """As `Scratch.replayed`."""
        made: list[Sequence[Arg]] = [
            ("RESTORE", self._name(key), state.expiry_ms, state.payload, "ABSTTL")
            for key, state in states.items()
            if state.payload is not None
        ]
        return await self._run(list(states), made, requests, script=script)

    def _name(self, key: bytes) -> bytes:
        """Return the name of a key's copy, in its slot."""
        token = hashlib.blake2b(key, digest_size=8, salt=b"%d" % self._round).hexdigest()
        return RESERVED_PREFIX + tag_of(_TAG, slot_of(key)) + b"}:" + token.encode()

    async def _run(
        self,
        keys: Sequence[bytes],
        made: Sequence[Sequence[Arg]],
        requests: list[list[bytes]],
        *,
        script: bool,
        look: bool = True,
    ) -> TrialOutcome:
        if script:
            raise NoScratch(NO_SCRIPTS)
        ours, names = self._ours, {key: self._name(key) for key in keys}
        await ours.select(0)
        # A process that dies here leaves the copies: the phase's end removes them by this list.
        await self.register([(0, name) for name in names.values()])
        gone: list[Sequence[Arg]] = [("UNLINK", name) for name in (*names.values(), *self._late)]
        self._late.clear()
        try:
            # A killed comparer may have left some.
            done = await ours.pipeline([*gone, *made])
            check_made(done[len(gone) :])
            copied = [renamed(self._table, args, names) for args in requests]
            try:
                replies = await self._follower.ask_all(0, copied, names[keys[0]])
            except TooSlow:
                self._late.update(names.values())
                self._round += 1
                raise
            if any(map(_refuses_keys, replies)):
                await self._see_rights(requests, copied, names[keys[0]])
            after = await states_now(ours, list(names.values())) if look else {}
        finally:
            await ours.pipeline([("UNLINK", name) for name in names.values()])
        back = {name: key for key, name in names.items()}
        return TrialOutcome(
            [_back(reply, back) for reply in replies],
            {key: after[name] for key, name in names.items() if name in after},
            0,
            0,
        )

    async def _see_rights(
        self, requests: Sequence[Sequence[bytes]], copied: Sequence[Sequence[bytes]], copy: bytes
    ) -> None:
        """See whether the user is refused the keys themselves, and not only their copies, on the
        node that has the `copy`.

        Raises:
            NoScratch: it is refused the copies, or that cannot be told.
        """
        if not self._user:
            return
        for args, tried in zip(requests, copied, strict=True):
            if args == tried:
                continue
            node = await self._ours.of(copy)
            (said,) = await node.pipeline([("ACL", "DRYRUN", self._user, *args)])
            if isinstance(said, ReplyError) or said == b"OK":
                raise NoScratch(NAMES_REFUSED)


def renamed(table: CommandTable, args: list[bytes], names: Mapping[bytes, bytes]) -> list[bytes]:
    """Return a request that names copies in place of the keys. `names` has both."""
    # Equal words may be one object in Python, and a value that is equal to a key is none.
    told: list[bytes] = [_Word(word) for word in args]
    places = {id(word) for word in table.of(args).keys(told)}
    return [
        names.get(given, given) if id(word) in places else given
        for word, given in zip(told, args, strict=True)
    ]


def _refuses_keys(reply: Reply) -> bool:
    """Return whether a server refused keys to the user, and not the command."""
    return error_code(reply) == "NOPERM" and "command" not in str(reply)


class _Word(bytes):
    """A word of a request that is an object of its own."""


def _back(reply: Reply, keys: Mapping[bytes, bytes]) -> Reply:
    """Return a reply that names keys in place of their copies."""
    if isinstance(reply, list):
        return [_back(each, keys) for each in reply]
    return keys.get(reply, reply) if isinstance(reply, bytes) else reply
