"""The fence: after it, nobody but Exodus writes to a side; who tries gets an error and never a lost write.

It takes `@write` from every ACL user but our own, which bites on open connections, in scripts and in queued transactions (checked on
Redis 6.2 to 8.2 and Valkey 8.1, 9.1). What it took is kept in the control store as command rules, which hold no secret. A pop that
blocked before the fence is still served by Redis 6.2 and 7.0, so strays are killed before anything is written behind the fence.
ACLs that were not saved to disk end with a restart of the server, and the fence with them.

Up and down are transactions under a guard key on that side, whose value is the id of the switch that the fence belongs to. Whoever was
frozen between deciding and doing, a flow or a gateway, finds another value when it wakes, and changes nothing (race rule 6, for fences).

    absent ──prepare──▶ ID ──raise_──▶ ID, up ──lower──▶ "ended ID"      `open` takes it down and leaves the right to put it up again
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import orjson

from exodus.config import Address, Side
from exodus.control.store import ControlStore, answered, fence_guard_key
from exodus.endpoint import Endpoint
from exodus.errors import Bug, CutoverAborted, DecisionRefused, ExodusError, OperatorError
from exodus.leg import Leg, ReplyError, error_of

_PROBE = "exodus:{fence}:probe"
_FORGET = "local r = redis.call('GET', KEYS[1]) if r and cjson.decode(r)['switch'] == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _pairs(reply: Any) -> dict[str, Any]:
    return {_text(reply[index]): reply[index + 1] for index in range(0, len(reply), 2)}


@dataclass(frozen=True)
class Record:
    """What the control store keeps of a fence, from before it is up until after it is down."""

    switch: str  # id of the switch that it belongs to
    users: dict[str, dict[str, Any]]  # user → command rules and selectors before


class Fence:
    """The fence of one side. Keeps its connections until `close`."""

    def __init__(self, store: ControlStore, side: Side, address: Address) -> None:
        self._store = store
        self._side = side
        self._address = address
        self._guard = fence_guard_key(store.migration)
        self._leg: Leg | None = None
        self._probe: Leg | None = None  # as an application that needs no password
        self._prepared: Record | None = None

    async def close(self) -> None:
        """Give the connections back."""
        for leg in (self._leg, self._probe):
            if leg is not None:
                await leg.close()
        self._leg = self._probe = None

    async def _ours(self) -> Leg:
        if self._leg is None:
            self._leg = await (await Endpoint(self._side, self._address).nodes())[0].connect(name="exodus-fence")
        return self._leg

    async def _call(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Replies of commands sent together; a connection that failed is not used again."""
        leg = await self._ours()
        try:
            replies = await leg.pipeline(commands)
        except BaseException:
            self._leg = None  # replies that nobody waits for any more may still come
            await leg.close()
            raise
        for reply in replies:
            if isinstance(reply, ReplyError):
                await leg.call("UNWATCH")
                raise error_of(self._side)(
                    f"the {self._side} refuses what its fence needs", why=str(reply), next_step="see docs/operating/users.md, then retry"
                )
        return replies

    async def record(self) -> Record | None:
        """What is kept of the fence of this side, or None where there is none."""
        raw = await answered(self._store.client.get(self._store.keys.fence(self._side)))
        return None if raw is None else Record(**orjson.loads(raw))

    async def up(self) -> bool:
        """Whether a fence is recorded for this side."""
        return await self.record() is not None

    async def check_possible(self) -> None:
        """Raise where this side could not be fenced.

        Raises:
            DecisionRefused: Exodus connects as the user of the applications, or may not change ACLs.
        """
        try:
            own = _text((await self._call(("ACL", "WHOAMI")))[0])
            users = await self._others(own)
        except ExodusError as exc:
            raise DecisionRefused(
                f"the {self._side} cannot be fenced",
                why=f"{self._address.url}: {exc.why}",
                next_step=f"give {self._side} a user with the right to run ACL (see docs/operating/users.md)",
            ) from exc
        if own == "default" or not users:
            raise DecisionRefused(
                f"the {self._side} cannot be fenced",
                why="Exodus connects as 'default', which the applications may use too",
                next_step=f"create a user of its own for Exodus and name it in the URL of {self._side} (docs/operating/users.md)",
            )

    async def _others(self, own: str) -> dict[str, dict[str, Any]]:
        names = [user for raw in (await self._call(("ACL", "USERS")))[0] if (user := _text(raw)) != own]
        found: dict[str, dict[str, Any]] = {}
        for user, reply in zip(names, await self._call(*[("ACL", "GETUSER", user) for user in names]), strict=True):
            facts = _pairs(reply)
            selectors = [
                " ".join(_text(value) for value in _pairs(selector).values() if _text(value))
                for selector in cast("list[Any]", facts.get("selectors") or [])
            ]
            found[user] = {"commands": _text(facts["commands"]), "selectors": selectors}
        return found

    async def prepare(self, switch: str) -> None:
        """Look up what users may do, give `switch` the right to fence, connect for the proof. Nobody notices.

        Raises:
            SourceError, TargetError: the side does not answer, or refuses.
        """
        own = _text((await self._call(("ACL", "WHOAMI")))[0])
        users = await self._others(own)
        before = await self.record()
        if before is not None:
            users |= before.users  # as they were before any fence of ours
        self._prepared = Record(switch, users)
        await self._call(("SET", self._guard, switch))
        try:
            plain = self._address.model_copy(update={"username": None, "password": None, "password_env": None, "password_file": None})
            self._probe = await Leg.connect(plain, self._side, name="exodus-probe")
        except OperatorError:
            self._probe = None  # the default user has a password that we do not know: its rules are read back

    async def raise_(self) -> dict[str, str]:
        """Take the right to write from every user but our own, after `prepare`; returns user → how it was proved.

        Raises:
            CutoverAborted: the right to fence has ended, or a user appeared since `prepare`.
            SourceError, TargetError: it could not be done, or does not hold.
        """
        record = self._prepared
        if record is None:
            raise Bug("a fence was not prepared", why="raise_ came before prepare", next_step="report this; nothing was changed")
        # Written down first: who finds the fence after a crash of ours must know what to give back.
        kept = {"switch": record.switch, "users": record.users}
        await answered(self._store.client.set(self._store.keys.fence(self._side), orjson.dumps(kept)))
        _, found, names, own = await self._call(("WATCH", self._guard), ("GET", self._guard), ("ACL", "USERS"), ("ACL", "WHOAMI"))
        strangers = {_text(name) for name in names} - {_text(own)} - set(record.users)
        if found != record.switch.encode() or strangers:
            await self._call(("UNWATCH",))
            raise CutoverAborted(
                f"the {self._side} was not fenced",
                why=f"user(s) that appeared meanwhile: {', '.join(sorted(strangers))}"
                if strangers
                else f"switch {record.switch} was ended: {found!r}",
                next_step="nothing was switched; start it again",
            )
        await self._transaction([self._without_writes(user, rules) for user, rules in record.users.items()])
        return {user: await self._prove(user) for user in record.users}

    @staticmethod
    def _without_writes(user: str, rules: dict[str, Any]) -> tuple[str, ...]:
        return ("ACL", "SETUSER", user, "-@write", *(["clearselectors"] if rules["selectors"] else []))

    @staticmethod
    def _as_before(user: str, rules: dict[str, Any]) -> tuple[str, ...]:
        return ("ACL", "SETUSER", user, "nocommands", *rules["commands"].split(), *(f"({selector})" for selector in rules["selectors"]))

    async def _transaction(self, commands: list[tuple[Any, ...]]) -> None:
        outcome = (await self._call(("MULTI",), *commands, ("EXEC",)))[-1]
        if outcome is None:
            raise CutoverAborted(
                f"the fence of the {self._side} was not touched", why="another switch took the right to it", next_step="look at `exodus status`"
            )
        for reply in outcome:
            if isinstance(reply, ReplyError):
                raise error_of(self._side)(
                    f"the fence on the {self._side} could not be changed", why=str(reply), next_step="look at ACL LIST there, then retry"
                )

    async def _prove(self, user: str) -> str:
        """Show that a user's write is refused, by the strongest means this server has."""
        if user == "default" and self._probe is not None:
            try:
                said = str(await self._probe.call("SET", _PROBE, "1", "PX", 1))
            except ReplyError as exc:
                said = str(exc)
            if said.startswith("NOPERM"):
                return "a write of its was refused"
            if said.startswith("b'OK"):
                raise self._does_not_hold(f"the user {user!r} could still write")
        leg = await self._ours()
        dry, facts = await leg.pipeline([("ACL", "DRYRUN", user, "SET", _PROBE, "1"), ("ACL", "GETUSER", user)])
        if not isinstance(dry, ReplyError):
            if b"no permissions" not in dry and b"NOPERM" not in dry:
                raise self._does_not_hold(f"{user}: {_text(dry)}")
            return "a dry run of a write was refused"
        rules = _text(_pairs(facts)["commands"]).split()  # Redis 6.2 has no dry run
        if "-@write" not in rules and rules[:1] != ["-@all"]:
            raise self._does_not_hold(f"the rules of {user} still allow writes")
        return "its rules were read back"

    def _does_not_hold(self, why: str) -> ExodusError:
        return error_of(self._side)(f"the fence on the {self._side} does not hold", why=why, next_step="nothing was switched; look at ACL LIST there")

    async def kill_strays(self) -> int:
        """End every connection of fenced users on this side: a pop that blocked before the fence could still be served."""
        record = await self.record()
        if record is None:
            return 0
        return sum(int(killed) for killed in await self._call(*[("CLIENT", "KILL", "USER", user) for user in record.users]))

    async def _change(self, record: Record, commands: list[tuple[Any, ...]]) -> bool:
        """Do `commands` if the fence is still that of `record`; whether it was."""
        _, found = await self._call(("WATCH", self._guard), ("GET", self._guard))
        if found != record.switch.encode():
            await self._call(("UNWATCH",))
            return False
        await self._transaction(commands)
        return True

    async def open(self, record: Record) -> None:
        """Give back what was taken, and keep the right to take it again: the authority is about to come here."""
        await self._change(record, [self._as_before(user, rules) for user, rules in record.users.items()])

    async def close_again(self, record: Record) -> None:
        """Take it again: the authority did not come here after all."""
        await self._change(record, [self._without_writes(user, rules) for user, rules in record.users.items()])

    async def lower(self) -> bool:
        """Give back what was taken, for good; False where there was no fence."""
        record = await self.record()
        if record is None:
            return False
        ended = ("SET", self._guard, f"ended {record.switch}")
        await self._change(record, [ended, *(self._as_before(user, rules) for user, rules in record.users.items())])
        await answered(self._store.client.eval(_FORGET, 1, self._store.keys.fence(self._side), record.switch))
        return True
