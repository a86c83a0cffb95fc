"""Batches of writes to a cluster, each under the guard of the node that it is for.

A transaction on a cluster holds keys of one slot, a script keys of all slots of its node. So a
batch is one script call a node (`lua/write_guarded.lua`): it checks the guard, then runs each
command, and says which were refused. Its guard key is one that the node has at that moment
(`cluster_grants.py`).

    written              the node had the key's slot
    MOVED                the guard's slot left the node: nothing was written, another guard is used
    "non local key"      the key's slot left the node, or is on its way: the key is written apart

A key apart gets a transaction of its own: `WATCH guard · HMGET guard · ASKING · MULTI`, then, after
the answer, `… · EXEC`. So it is written under the guard of the node that it goes to. This is also
how all keys are written where scripts are not allowed.

A key whose slot no node serves within `CLUSTER_REDIRECT_S` has the last error as its reply.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from exodus.commands.key_slots import slot_of
from exodus.commands.slots import LATER, is_redirect, tag_of
from exodus.control.schema import cluster_guard_key
from exodus.copy.cluster_grants import GUARD_SLOTS
from exodus.copy.guard import FULL, BatchReplies, DatabaseMissing, Guard, GuardedLeg, no_room
from exodus.copy.payload import Packed, PackedStrings, State, Uncarried
from exodus.copy.value import Command
from exodus.errors import EpochEnded, SourceError, TargetError
from exodus.lua import lua
from exodus.net.leg import Leg, NoDatabase, Reply, ReplyError
from exodus.net.routed import RoutedLeg, key_of, together
from exodus.plan.bounds import CLUSTER_AGAIN_S, CLUSTER_REDIRECT_S, CLUSTER_SCRIPT_ARGS_MAX
from exodus.resp.encode import encode_arguments

_WRITE = lua("exodus.copy", "write_guarded").encode()
_WRITE_SHA = hashlib.sha1(_WRITE, usedforsecurity=False).hexdigest()
_STAGE = b"stage"
_STRINGS_MAX = CLUSTER_SCRIPT_ARGS_MAX // 2 - 1  # of one MSET
_PAYLOAD_WORDS = 3  # of a key in the short form
_NO_GUARD = f"TRYAGAIN {{node}} has no guard key: every {GUARD_SLOTS.step}th slot has one"


@dataclass
class _Piece:
    """One command, where its reply goes, and why it was not done yet."""

    at: int
    command: Command
    key: bytes
    said: str = ""


class GuardedCluster(GuardedLeg):
    """Batches of writes to the nodes of a cluster; callers take turns."""

    def __init__(self, leg: RoutedLeg, guard: Guard, *, scripts: bool = True) -> None:
        super().__init__(leg, guard)
        self._routed = leg
        self._scripts = scripts
        self._moving: set[int] = set()  # slots whose guard was refused
        self._msets = True  # whether strings of one slot are written together

    async def change(self, guard: Guard) -> None:
        """Write under another guard from the next batch on."""
        async with self._turn:
            self.guard = guard

    async def run_commands(self, db: int, commands: Sequence[Command]) -> list[Reply]:
        """Execute commands for keys of one slot, in their order; their replies, errors as values.

        Raises:
            EpochEnded: the guard of a node does not hold; nothing was written there.
            NoRoom: a node takes no writes now.
            Uncarried: the cluster does not let us into this database; nothing was written.
            SourceError, TargetError: a node was lost; safe to repeat.
        """
        return await self._run_all(db, commands, whole=True)

    async def run_packed(self, db: int, packed: Packed) -> list[Reply]:
        """Write keys as payloads; see `run_commands`."""
        if not self._scripts:
            return await self._run_all(db, packed.as_commands())
        if isinstance(packed, PackedStrings):
            return await self._run_strings(db, packed)
        async with self._turn:
            await self._enter(db)
            replies: list[Reply] = [b"OK"] * len(packed)
            by_node = self._routed.by_node(packed.keys)
            answers = await together(
                self._script(
                    db, node, packed.words(places), _PAYLOAD_WORDS * len(places), "payloads"
                )
                for node, places in by_node.items()
            )
            left: list[int] = []
            for places, answer in zip(by_node.values(), answers, strict=True):
                if isinstance(answer, str):
                    left += places  # nothing was written: another guard is used
                    continue
                for at, said in self._refused(answer):
                    if is_redirect(said):
                        left.append(places[at])
                    else:
                        replies[places[at]] = ReplyError(said)
            await self._run_left(db, packed, left, replies)
        return replies

    async def _run_strings(self, db: int, packed: PackedStrings) -> list[Reply]:
        """Write strings by script. One MSET writes all strings of a slot that have no expiry.

        Where an MSET is refused, each of its keys is written alone: the fault may be one key's.
        Where none of them has it, the user may not run MSET, and none is tried again.
        """
        async with self._turn:
            await self._enter(db)
            replies: list[Reply] = [b"OK"] * len(packed)
            by_node = {
                node: packed.commands(self._parted(groups))
                for node, groups in self._routed.slots_by_node(packed.keys).items()
            }
            answers = await together(
                self._script(db, node, words, count, "")
                for node, (words, count, _) in by_node.items()
            )
            left: list[int] = []
            doubted: list[int] = []
            for (_, _, written), answer in zip(by_node.values(), answers, strict=True):
                if isinstance(answer, str):
                    left += [at for places in written for at in places]
                    continue
                for number, said in self._refused(answer):
                    places = written[number]
                    if is_redirect(said):
                        left += places
                    elif len(places) > 1 and not said.startswith(FULL):
                        doubted += places
                    else:
                        for at in places:
                            replies[at] = ReplyError(said)
            await self._run_left(db, packed, [*left, *doubted], replies)
            if doubted and all(replies[at] == b"OK" for at in doubted):
                self._msets = False
        return replies

    def _parted(self, groups: list[list[int]]) -> list[list[int]]:
        """Return groups of keys of one slot, each for one command."""
        most = _STRINGS_MAX if self._msets else 1
        if max(map(len, groups)) <= most:
            return groups
        return [
            group[start : start + most] for group in groups for start in range(0, len(group), most)
        ]

    async def _run_left(
        self, db: int, packed: Packed, left: Sequence[int], replies: list[Reply]
    ) -> None:
        """Write the keys at these places, each by its own command."""
        if not left:
            return
        commands = packed.as_commands()
        pieces = [_Piece(at, commands[at], packed.keys[at]) for at in sorted(left)]
        await self._run_pieces(db, pieces, replies)

    async def run_states(self, db: int, states: Sequence[State]) -> BatchReplies:
        """Write states; see `run_commands`."""
        each = [state.as_commands() for state in states]
        replies = await self._run_all(db, [command for of in each for command in of])
        return BatchReplies(replies, [len(of) for of in each])

    def stage_of(self, key: bytes) -> bytes:
        """Return the hash tag of a staging key for `key`: one of the same slot."""
        return tag_of(_STAGE, slot_of(key))

    async def check(self, *, enforced: bool) -> None:
        """Ask every node for its guard; see `GuardedLeg.check`."""
        for node, leg in (await self._routed.pulse()).items():
            guard = self._guard_of(node)
            asked: Command = ("HMGET", guard, *self._fields) if guard else ("PING",)
            (found,) = await leg.pipeline([asked])
            if enforced and isinstance(found, list):
                self.guard.check(found)

    async def reopen(self) -> None:
        """Connect anew, after a connection was lost.

        Raises:
            SourceError, TargetError: a master answers nobody.
            OperatorError: it refuses the credentials.
        """
        async with self._turn:
            await self._routed.close()
            await self._routed.answer_all()

    # ------------------------------------------------------------------ the guard

    @property
    def _fields(self) -> list[bytes]:
        return [key.rpartition(b"}:")[2] for key, _ in self.guard.values]

    def _guard_of(self, node: str) -> bytes:
        """Return a guard key that a node has, by what is known; empty where it has none.

        One that is on its way is avoided as long as there are others.
        """
        migration = self.guard.values[0][0].partition(b"{")[2].partition(b"}")[0].decode()
        shard = next((each for each in self._routed.shards if each.master == node), None)
        if shard is None:
            return b""
        stays = shard.multiple(GUARD_SLOTS.step, but=self._moving)
        if stays is None:
            self._moving.difference_update(shard.multiples(GUARD_SLOTS.step))
            stays = shard.multiple(GUARD_SLOTS.step)
        return b"" if stays is None else cluster_guard_key(migration, stays)

    # ------------------------------------------------------------------ writing

    async def _run_all(
        self, db: int, commands: Sequence[Command], *, whole: bool = False
    ) -> list[Reply]:
        """Run commands. The keys are independent of each other, or with `whole` they are not."""
        async with self._turn:
            await self._enter(db)
            replies: list[Reply] = [b"OK"] * len(commands)
            first = key_of(commands[0]) or b"" if commands else b""
            left = [
                _Piece(at, command, first if whole else key_of(command) or b"")
                for at, command in enumerate(commands)
            ]
            await self._run_pieces(db, left, replies, wanted=whole)
            return replies

    async def _run_pieces(
        self, db: int, pieces: list[_Piece], replies: list[Reply], *, wanted: bool = False
    ) -> None:
        """Write by script, and what no script can write apart."""
        left = pieces
        if self._scripts:
            left = await self._by_script(db, left, replies, wanted=wanted)
        by_key: dict[bytes, list[_Piece]] = {}
        for piece in left:
            by_key.setdefault(piece.key, []).append(piece)
        deadline = time.monotonic() + CLUSTER_REDIRECT_S
        for key, part in by_key.items():
            await self._apart(db, key, part, replies, deadline)

    async def _enter(self, db: int) -> None:
        try:
            await self._routed.select(db)
            await self._routed.select(0)  # the guard is there
        except NoDatabase as exc:
            raise DatabaseMissing(
                f"the {self.leg.side} has no database {db} for it: {exc}"
            ) from exc
        except ReplyError as exc:
            said = str(exc)[:200]
            if said.startswith(FULL):
                raise no_room(self.leg.side, said) from exc
            raise Uncarried(f"the {self.leg.side} has no database {db} for it: {said}") from exc

    async def _by_script(
        self, db: int, pieces: list[_Piece], replies: list[Reply], *, wanted: bool
    ) -> list[_Piece]:
        """Write by script, a node at a time at once; return the pieces to be written apart."""
        # Lua's stack bounds the words of a command. All commands of a key stay together.
        wide = {piece.key for piece in pieces if len(piece.command) > CLUSTER_SCRIPT_ARGS_MAX}
        apart = [piece for piece in pieces if piece.key in wide]
        left = [piece for piece in pieces if piece.key not in wide] if wide else pieces
        deadline = time.monotonic() + CLUSTER_REDIRECT_S
        while left:
            by_node: dict[str, list[_Piece]] = {}
            for piece in left:
                by_node.setdefault(self._routed.master_of(piece.key), []).append(piece)
            rounds = await together(
                self._on_node(db, node, part, replies, wanted=wanted)
                for node, part in by_node.items()
            )
            left = [piece for again, _ in rounds for piece in again]
            apart += [piece for _, away in rounds for piece in away]
            if left and time.monotonic() > deadline:
                raise no_room(self.leg.side, left[0].said[:200])
            if left:
                await asyncio.sleep(CLUSTER_AGAIN_S)
        return apart

    async def _on_node(
        self, db: int, node: str, pieces: list[_Piece], replies: list[Reply], *, wanted: bool
    ) -> tuple[list[_Piece], list[_Piece]]:
        """Run one script; return the pieces to be sent again, and those to be written apart."""
        since = time.monotonic()
        words = b"".join(
            [
                encode_arguments(len(piece.command)) + encode_arguments(*piece.command)
                for piece in pieces
            ]
        )
        count = sum(len(piece.command) for piece in pieces)
        form = "replies" if wanted else ""
        answer = await self._script(db, node, words, len(pieces) + count, form)
        if isinstance(answer, str):
            for piece in pieces:
                piece.said = answer
            return ([], pieces) if answer.startswith(_NO_GUARD[:8]) else (pieces, [])
        if wanted:
            for piece, reply in zip(pieces, answer[4], strict=True):
                replies[piece.at] = reply
        away: set[bytes] = set()
        for at, said in self._refused(answer):
            piece = pieces[at]
            replies[piece.at] = ReplyError(said)
            if is_redirect(said):
                piece.said = said
                away.add(piece.key)
        if away:
            self._routed.doubt(since)
            await self._routed.look()
        return [], [piece for piece in pieces if piece.key in away]

    def _refused(self, answer: list[Reply]) -> list[tuple[int, str]]:
        """Return the commands that a script says were refused, each by its place and with the
        error.
        """
        refused = answer[3]
        return [
            (number - 1, _text(error))
            for number, error in zip(refused[::2], refused[1::2], strict=True)
        ]

    async def _script(
        self,
        db: int,
        node: str,
        words: bytes,
        count: int,
        form: str,
    ) -> list[Reply] | str:
        """Run the script on one node; return its answer, or the error for which nothing was done.

        Args:
            db: the database to write to.
            node: announced address.
            words: encoded commands, each behind the number of its words; in the short form keys.
            count: number of these words.
            form: `replies` to return every reply, `payloads` for the short form, or empty.

        Raises:
            EpochEnded: the guard does not hold; nothing was written.
            NoRoom: the node takes no writes now.
            SourceError, TargetError: it was lost.
        """
        routed, since = self._routed, time.monotonic()
        guard = self._guard_of(node) if self.guard.values else b""
        if self.guard.values and not guard:
            return _NO_GUARD.format(node=node)
        head: list[bytes | str | int] = [1, guard] if guard else [0]
        head += [db, form, len(self.guard.values)]
        for field, (_, value) in zip(self._fields, self.guard.values, strict=True):
            head += [field, value]
        size = 2 + len(head) + count
        start, body = b"*%d\r\n" % size, encode_arguments(*head)
        leg = await routed.node(node)
        try:
            try:
                answer = await leg.call_encoded(
                    b"".join([start, encode_arguments("EVALSHA", _WRITE_SHA), body, words])
                )
            except ReplyError as exc:
                if not str(exc).startswith("NOSCRIPT"):
                    raise
                answer = await leg.call_encoded(
                    b"".join([start, encode_arguments("EVAL", _WRITE), body, words])
                )
        except (SourceError, TargetError):
            routed.drop(leg)
            raise
        except ReplyError as exc:
            said = str(exc)
            if not is_redirect(said):
                raise no_room(self.leg.side, said[:200]) from exc
            self._moving.add(slot_of(guard))
            await routed.noted(said, leg, since)
            return said
        field, found = answer[:2]
        if field:
            values: list[bytes | None] = [value for _, value in self.guard.values]
            values[field - 1] = found
            self.guard.check(values)
        return list(answer)

    # ------------------------------------------------------------------ one key

    async def _apart(
        self, db: int, key: bytes, pieces: list[_Piece], replies: list[Reply], deadline: float
    ) -> None:
        """Write one key in a transaction of its own, wherever its slot is; at least one try."""
        asks, said, first = "", pieces[0].said, True
        while first or time.monotonic() < deadline:
            first, since = False, time.monotonic()
            node = asks or self._routed.master_of(key)
            leg = await self._routed.node(node)
            outcome = await self._in_transaction(leg, node, db, pieces, asking=bool(asks))
            if isinstance(outcome, list):
                for piece, reply in zip(pieces, outcome, strict=True):
                    replies[piece.at] = reply
                return
            if outcome is None:
                continue  # the guard was touched: its next answer says whether it has another value
            said = outcome
            if not is_redirect(said):
                break
            asks = await self._routed.noted(said, leg, since)
            if said.startswith(LATER):
                await asyncio.sleep(CLUSTER_AGAIN_S)
        for piece in pieces:
            replies[piece.at] = ReplyError(said)

    async def _in_transaction(
        self, leg: Leg, node: str, db: int, pieces: list[_Piece], *, asking: bool
    ) -> list[Reply] | str | None:
        """Return the replies, the error for which nothing was done, or None where the guard was
        touched.
        """
        try:
            if self.guard.values:
                guard = self._guard_of(node)
                if not guard:
                    return _NO_GUARD.format(node=node)
                watched, found = await leg.pipeline(
                    [("WATCH", guard), ("HMGET", guard, *self._fields)]
                )
                refused = next(
                    (reply for reply in (watched, found) if isinstance(reply, ReplyError)), None
                )
                if refused is not None:
                    self._moving.add(slot_of(guard))
                    await leg.pipeline([("UNWATCH",)])
                    return str(refused)
                self.guard.check(found)
            if db:
                await leg.select(db)
            if asking:
                await leg.call("ASKING")
            await leg.call("MULTI")
            told = await leg.pipeline([*[piece.command for piece in pieces], ("EXEC",)])
            await leg.select(0)
        except ReplyError as exc:
            self._routed.drop(leg)  # whatever state it is in
            return str(exc)
        except (EpochEnded, SourceError, TargetError):
            self._routed.drop(leg)
            raise
        outcome = told[-1]
        if outcome is None or isinstance(outcome, list):
            return outcome
        return str(next((reply for reply in told if isinstance(reply, ReplyError)), outcome))


def _text(error: bytes | str) -> str:
    return error.decode("utf-8", "replace") if isinstance(error, bytes) else error


def guarded_leg(leg: Leg, guard: Guard, *, scripts: bool = True) -> GuardedLeg:
    """Return what writes under a guard on a side: on one server, or on the nodes of a cluster."""
    if isinstance(leg, RoutedLeg):
        return GuardedCluster(leg, guard, scripts=scripts)
    return GuardedLeg(leg, guard)
