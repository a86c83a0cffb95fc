"""The fence of a rehearsal: on a user made for it, by the requests that a real fence takes.

Only a fence by ACL can be narrowed to one user. Another kind would refuse the applications' writes,
so a rehearsal leaves it out and says so.
"""

from __future__ import annotations

import secrets

from pydantic import SecretStr

from exodus.commands.slots import is_redirect
from exodus.control.schema import fence_guard_key
from exodus.control.store import ControlStore
from exodus.cutover.fence import read_confirmation
from exodus.cutover.fence_methods import PROBE, AclFence, Call, Command, choose_fence_method
from exodus.errors import CutoverAborted, OperatorError, SourceError, TargetError
from exodus.net.leg import Leg, Reply, ReplyError, close_all
from exodus.net.routed import together
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Feed, FenceKind, Side
from exodus.topology.permits import why_refused

_USER = "exodus-rehearsal-"


class RehearsedFence:
    """A fence that refuses nobody but a user of its own."""

    def __init__(self, leg: Leg, guard_name: str) -> None:
        self.why_not = ""  # why it is not rehearsed
        self.side = leg.side
        self.guard_name = guard_name
        self.user = ""
        self.strangers: dict[str, Leg] = {}  # connections of the user, by server
        self.method = AclFence()
        self._leg = leg
        self._guard = fence_guard_key(guard_name)
        self._commands: list[Command] = []

    # ------------------------------------------------------------------ the servers of the side

    async def find(self, switch: str) -> list[str]:
        """Return the servers that a fence is put up on, and give `switch` the right to it."""
        del switch  # a single server's guard is watched, whatever its value
        return [self._leg.address.place]

    async def leg_of(self, server: str) -> Leg:
        """Return the connection to a server, as Exodus."""
        del server
        return self._leg

    def meets(self, server: str) -> bool:
        """Return whether the user can write to a server before the fence."""
        del server
        return True

    def probe(self, server: str) -> bytes:
        """Return the key that the user writes there."""
        del server
        return PROBE

    async def change(self, server: str, commands: list[Command]) -> bool:
        """Do commands on a server under the guard; return whether they were done."""
        leg = await self.leg_of(server)
        await leg.pipeline([("WATCH", self._guard), ("GET", self._guard), *self.method.recheck()])
        return await leg.transaction(commands) is not None

    # ------------------------------------------------------------------ the fence

    async def prepare(self, store: ControlStore, plan: Plan, side: Side, switch: str) -> None:
        """Find out by what the side would be fenced, and make the user on each server."""
        word, users = await read_confirmation(store, plan, side), 1
        servers = await self.find(switch)
        for server in servers:
            leg = await self.leg_of(server)
            method, reasons = await choose_fence_method(
                self._call(server), plan, side, Feed.GATEWAY, word
            )
            if method is None:
                self.why_not = "; ".join(reasons)
            elif not isinstance(method, AclFence):
                self.why_not = f"{method.kind} would refuse the applications' writes"
            else:
                self.method = method
                refused = await why_refused(
                    leg, ("ACL", "SETUSER", _USER), ("ACL", "DELUSER", _USER)
                )
                if refused is not None:
                    self.why_not = f"Exodus's user may not make and remove a user for it: {refused}"
            if self.why_not:
                return
            users = max(users, len(await self.method.look(self._call(server))))
        self.user, password = _USER + secrets.token_hex(8), secrets.token_hex(32)
        for server in servers:
            await self._make_user(server, password)
        as_user = {
            "username": self.user,
            "password": SecretStr(password),
            "password_env": None,
            "password_file": None,
        }
        for server in filter(self.meets, servers):
            address = (await self.leg_of(server)).address
            try:
                self.strangers[server] = await Leg.connect(
                    address.model_copy(update=as_user), side, name="exodus-probe"
                )
            except (OperatorError, SourceError, TargetError) as exc:
                self.why_not = f"its user cannot log in at {server}: {exc.why}"
                return
        up = ("ACL", "SETUSER", self.user, "-@write")
        self._commands = [up] * users  # as many as there are users to fence

    def _call(self, server: str) -> Call:
        async def ask(*commands: Command) -> list[Reply]:
            """Return the replies of commands sent together, errors as values."""
            return await (await self.leg_of(server)).pipeline(commands)

        return ask

    async def _make_user(self, server: str, password: str) -> None:
        leg = await self.leg_of(server)
        for user in await leg.call("ACL", "USERS"):
            if user.decode("utf-8", "replace").startswith(_USER):  # of a rehearsal that died
                await leg.call("ACL", "DELUSER", user)
        rules = ("reset", "on", f">{password}", f"~{self.probe(server).decode()}", "+@all")
        await leg.call("ACL", "SETUSER", self.user, *rules)

    async def raise_(self) -> str:
        """Refuse the user's writes on every server, and prove it; how, in words.

        Raises:
            CutoverAborted: a write of the user passed.
        """
        if self.why_not or not self.strangers:
            return f"not rehearsed: {self.why_not}"
        await together(map(self._raise_on, self.strangers))
        where = f", on each of {len(self.strangers)} masters" if len(self.strangers) > 1 else ""
        return (
            f"{FenceKind.ACL}, on a user of the rehearsal's own, for {len(self._commands)} users"
            f"{where}"
        )

    async def _raise_on(self, server: str) -> None:
        done = await self.change(server, self._commands)
        (reply,) = await self.strangers[server].pipeline(
            [("SET", self.probe(server), "1", "PX", 1)]
        )
        # A node looks at rights before it redirects.
        if not done or not isinstance(reply, ReplyError) or is_redirect(str(reply)):
            raise CutoverAborted(
                f"the fence on the {self.side} does not hold",
                why=f"a write of the rehearsal's own user passed it on {server}"
                if done
                else f"the guard on {server} was touched",
                next_step="see docs/operating/fences.md",
            )

    async def close(self) -> None:
        """Remove the user from each server."""
        await close_all(self.strangers.values())
        if self.user:
            await self._leg.call("ACL", "DELUSER", self.user)
