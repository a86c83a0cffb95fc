"""Scratch copies on a cluster, which has one database: under names of Exodus's own.

    key      cart:42                     slot 7,112
    copy     exodus:{scratch.9301}:…     the same slot: a request with several keys stays one

Each slot has such a hash tag (`tag_of`), whatever tag a key has itself. The requests that are tried
name the copies in place of the keys, and replies that name a copy are changed back.

A copy is made by RESTORE, of a state that was kept or that DUMP tells of now. COPY would name two
keys, and a node refuses that while the slot moves.

The user of the trials may be without rights to these names. ACL DRYRUN then tells whether it may do
the same to the keys. Scripts that write run as a user that has rights to nothing else
(`confinement.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from exodus.commands.key_places import key_places
from exodus.commands.table import CommandTable
from exodus.engine import Engine
from exodus.net.leg import Leg, Reply, ReplyError
from exodus.plan.bounds import (
    LARGE_KEY_BYTES,
    SCRATCH_STRAYS_MAX,
    SCRIPT_DOUBTS_MAX,
    SCRIPTS_DOUBTED_MAX,
)
from exodus.resp.encode import Arg
from exodus.shadow.confinement import (
    NodeCounts,
    count,
    is_copy,
    name_of_key,
    own_name,
    see_confined,
    why_refused,
)
from exodus.shadow.histories import Snapshot
from exodus.shadow.key_names import seeing_keys
from exodus.shadow.rules import codes_of, error_code
from exodus.shadow.scratch import (
    UNDECLARED,
    Names,
    NoScratch,
    Scratch,
    TextUnknown,
    TrialOutcome,
    check_made,
    states_now,
)
from exodus.shadow.trials import LEAVES_COPIES, NO_SCRIPT_USER, TooSlow, Trials

TOO_LARGE = "a key is too large for a scratch copy"
NO_PAYLOADS = "no scratch copy: the target lets nobody see payloads"
OTHER_DATABASE = "scratch copies on a cluster are in database 0 only"
TEXT_UNKNOWN = "the script may depend on its keys' names, and the target does not tell its text"
NAMES_REFUSED = "compare_user has no right to the names of scratch copies"


class ClusterScratch(Scratch):
    """Makes scratch copies in the slots of their keys, tries requests on them, and removes them."""

    renames = True

    def __init__(
        self,
        engine: Engine,
        ours: Leg,
        follower: Trials,
        table: CommandTable,
        scripts: Trials | None,
    ) -> None:
        """`scripts` connects as `compare_script_user`; None: the plan names none."""
        super().__init__(engine, ours, follower, None)
        self._table = table
        self._scripts = scripts
        plan = engine.plan
        self._user = plan.compare_user.username if plan.compare_user is not None else ""
        user = plan.compare_script_user
        self._script_user = user.username if user is not None else ""
        self._round = 0  # of names; a request that took too long may still change those before
        # Scripts that seemed to use undeclared keys, the oldest first, and how often
        self._doubted: dict[bytes, int] = {}

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
        names = self._names(keys, of_key=script)
        made: list[Sequence[Arg]] = [
            ("RESTORE", names[key], max(0, left), dump)
            for key, left, dump in zip(keys, read[::2], read[1::2], strict=True)
            if dump is not None
        ]
        return (await self._run(names, made, requests, script=script, look=False)).replies

    async def replayed(
        self,
        states: Mapping[bytes, Snapshot],
        requests: list[list[bytes]],
        *,
        script: bool,
        names: Names = Names.LIKE_KEYS,
    ) -> TrialOutcome:
        """As `Scratch.replayed`.

        Raises:
            TextUnknown: a script is to see its keys' names, and nobody tells its text.
        """
        copies = self._names(list(states), of_key=script and names is not Names.OWN)
        made: list[Sequence[Arg]] = [
            ("RESTORE", copies[key], state.expiry_ms, state.payload, "ABSTTL")
            for key, state in states.items()
            if state.payload is not None
        ]
        hidden = names is Names.HIDDEN
        return await self._run(copies, made, requests, script=script, hidden=hidden)

    def _names(self, keys: Sequence[bytes], *, of_key: bool) -> dict[bytes, bytes]:
        """Return the names of the keys' copies, in their slots; with `of_key` such that begin like
        the keys.
        """
        salt = b"%d" % self._round
        make = name_of_key if of_key else own_name
        return {
            key: make(key, hashlib.blake2b(key, digest_size=8, salt=salt).hexdigest().encode())
            for key in keys
        }

    async def _run(
        self,
        names: dict[bytes, bytes],
        made: Sequence[Sequence[Arg]],
        requests: list[list[bytes]],
        *,
        script: bool,
        look: bool = True,
        hidden: bool = False,
    ) -> TrialOutcome:
        ours, copies = self._ours, list(names.values())
        await ours.select(0)
        if self._late_script:  # what it made up was not counted
            for node in await ours.nodes():
                await self._remove_made_up(node, copies)
            self._late_script = False
        if script and (refused := await self._see_script(names, requests)):
            return TrialOutcome([refused] * len(requests), {}, 0, 0)
        # A process that dies here leaves the copies: the phase's end removes them by this list.
        await self.register([(0, name) for name in copies])
        gone: list[Sequence[Arg]] = [("UNLINK", name) for name in (*copies, *self._late)]
        self._late.clear()
        misses = 0
        try:
            # A killed comparer may have left some.
            done = await ours.pipeline([*gone, *made])
            check_made(done[len(gone) :])
            copied = [renamed(self._table, args, names) for args in requests]
            if hidden:
                copied = await self._hidden(requests, copied, copies[0])
            try:
                if script:
                    replies, misses = await self._ask_script(copies, copied)
                else:
                    replies = await self._follower.ask_all(0, copied, copies[0])
            except TooSlow:
                self._late.update(copies)
                self._late_script = script
                self._round += 1
                raise
            if not script and any(map(_refuses_keys, replies)):
                await self._see_rights(requests, copied, copies[0])
            after = await states_now(ours, copies) if look else {}
        finally:
            await ours.pipeline([("UNLINK", name) for name in copies])
        back = {name: key for key, name in names.items()}
        return TrialOutcome(
            [_back(reply, back) for reply in replies],
            {key: after[name] for key, name in names.items() if name in after},
            misses,
            0,
        )

    # ------------------------------------------------------------------ scripts

    async def _see_script(
        self, names: Mapping[bytes, bytes], requests: Sequence[Sequence[bytes]]
    ) -> ReplyError | None:
        """See that a script reaches nothing but copies on its node. Return the refusal of the
        application's user, where that may not run the request on the keys themselves.

        Raises:
            NoScratch: it would reach more, or did so before.
        """
        if self._scripts is None:
            raise NoScratch(NO_SCRIPT_USER)
        if any(
            self._doubted.get(each, 0) >= SCRIPT_DOUBTS_MAX for each in self._scripts_in(requests)
        ):
            raise NoScratch(UNDECLARED)
        copies = list(names.values())
        node = await self._ours.of(copies[0])
        await see_confined(node, self._script_user, list(names), copies)
        why = await why_refused(node, self._user, requests)
        return ReplyError(f"NOPERM {why}") if why else None

    async def _ask_script(
        self, copies: Sequence[bytes], requests: list[list[bytes]]
    ) -> tuple[list[Reply], int]:
        """Run a script on copies; the replies, and how many keys it looked for that are not there.

        Raises:
            NoScratch: it used a key that it does not declare, or was refused a command and went on.
        """
        if self._scripts is None:
            raise NoScratch(NO_SCRIPT_USER)
        node = await self._ours.of(copies[0])
        before = await count(node, copies, after=False)
        replies = await self._scripts.ask_all(0, requests, copies[0])
        after = await count(node, copies, after=True)
        if after.refused_keys > before.refused_keys or _made_up(before, after):
            self._doubt(requests)
            if _made_up(before, after):
                await self._remove_made_up(node, copies)
            raise NoScratch(UNDECLARED)
        failed = any(code for reply in replies for code in codes_of(reply))
        if after.refused_commands > before.refused_commands and not failed:
            raise NoScratch(LEAVES_COPIES)
        return replies, after.misses - before.misses

    async def _hidden(
        self, requests: Sequence[list[bytes]], copied: Sequence[list[bytes]], copy: bytes
    ) -> list[list[bytes]]:
        """Return requests on copies whose scripts see the names of their keys.

        Raises:
            TextUnknown: nobody tells the text of one.
        """
        scripts = self._scripts
        if scripts is None:
            raise NoScratch(NO_SCRIPT_USER)

        async def ask(args: list[bytes]) -> Reply:
            (reply,) = await scripts.ask_all(0, [args], copy)
            return reply

        found: list[list[bytes]] = []
        for args, on_copies in zip(requests, copied, strict=True):
            changed: list[bytes] | None = on_copies
            if self._table.of(args).script:
                changed = await seeing_keys(args, on_copies, ask)
            if changed is None:
                raise TextUnknown(TEXT_UNKNOWN)
            found.append(changed)
        return found

    def _doubt(self, requests: Sequence[Sequence[bytes]]) -> None:
        """Note that scripts used undeclared keys; or others did something on the node meanwhile, so
        once is no proof.
        """
        for each in self._scripts_in(requests):
            if each not in self._doubted and len(self._doubted) >= SCRIPTS_DOUBTED_MAX:
                del self._doubted[next(iter(self._doubted))]
            self._doubted[each] = self._doubted.get(each, 0) + 1

    def _scripts_in(self, requests: Sequence[Sequence[bytes]]) -> list[bytes]:
        """Return a digest of each script: of its text, its SHA-1, or its function's name."""
        return [
            hashlib.blake2b(args[0].upper() + b" " + args[1], digest_size=16).digest()
            for args in requests
            if self._table.of(list(args)).script
        ]

    async def _remove_made_up(self, node: Leg, copies: Sequence[bytes]) -> None:
        """Scan the node and remove what a script wrote under names like those of copies. A scan is
        expensive, so such a script is tried `SCRIPT_DOUBTS_MAX` times at most.
        """
        cursor = b""
        while cursor != b"0":
            cursor, found = await node.call(
                "SCAN", cursor or b"0", "MATCH", "*{scratch.*}:*", "COUNT", SCRATCH_STRAYS_MAX
            )
            strays = [name for name in found if is_copy(name) and name not in copies]
            if strays:
                await self._ours.pipeline([("UNLINK", name) for name in strays])

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
    places = key_places(table, args)
    return [names.get(word, word) if at in places else word for at, word in enumerate(args)]


def _made_up(before: NodeCounts, after: NodeCounts) -> bool:
    """Return whether a node has more keys than before, its copies apart."""
    return after.keys - before.keys > after.copies - before.copies


def _refuses_keys(reply: Reply) -> bool:
    """Return whether a server refused keys to the user, and not the command."""
    return error_code(reply) == "NOPERM" and "command" not in str(reply)


def _back(reply: Reply, keys: Mapping[bytes, bytes]) -> Reply:
    """Return a reply that names keys in place of their copies."""
    if isinstance(reply, list):
        return [_back(each, keys) for each in reply]
    return keys.get(reply, reply) if isinstance(reply, bytes) else reply
