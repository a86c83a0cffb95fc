"""The fence of a rehearsal: on a user made for it, by the requests that a real fence takes.

Only a fence by ACL can be narrowed to one user. Another kind would refuse the applications' writes,
so a rehearsal leaves it out and says so.
"""

from __future__ import annotations

import secrets

from pydantic import SecretStr

from exodus.control.schema import fence_guard_key
from exodus.control.store import ControlStore
from exodus.cutover.fence import read_confirmation
from exodus.cutover.fence_methods import PROBE, AclFence, Command, choose_fence_method
from exodus.errors import CutoverAborted, OperatorError, SourceError, TargetError
from exodus.net.leg import Leg, Reply, ReplyError
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Feed, FenceKind, Side, UserRole
from exodus.topology.permits import why_refused

_USER = "exodus-rehearsal-"


class RehearsedFence:
    """A fence that refuses nobody but a user of its own."""

    def __init__(self, leg: Leg, guard_name: str) -> None:
        self.why_not = ""  # why it is not rehearsed
        self._leg = leg
        self._guard = fence_guard_key(guard_name)
        self._user = ""
        self._stranger: Leg | None = None
        self._method = AclFence()
        self._commands: list[Command] = []

    async def prepare(self, store: ControlStore, plan: Plan, side: Side) -> None:
        """Find out by what the side would be fenced, and make the user."""
        word = await read_confirmation(store, plan, side)
        method, reasons = await choose_fence_method(self._ask, plan, side, Feed.GATEWAY, word)
        if method is None:
            self.why_not = "; ".join(reasons)
            return
        if not isinstance(method, AclFence):
            self.why_not = f"{method.kind} would refuse the applications' writes"
            return
        self._method = method
        refused = await why_refused(self._leg, ("ACL", "SETUSER", _USER), ("ACL", "DELUSER", _USER))
        if refused is not None:
            self.why_not = f"Exodus's user may not make and remove a user for it: {refused}"
            return
        for user in await self._leg.call("ACL", "USERS"):
            if user.decode("utf-8", "replace").startswith(_USER):  # of a rehearsal that died
                await self._leg.call("ACL", "DELUSER", user)
        kept = await method.look(self._ask)
        self._user, password = _USER + secrets.token_hex(8), secrets.token_hex(32)
        rules = ("reset", "on", f">{password}", f"~{PROBE.decode()}", "+@all")
        await self._leg.call("ACL", "SETUSER", self._user, *rules)
        as_user = {
            "username": self._user,
            "password": SecretStr(password),
            "password_env": None,
            "password_file": None,
        }
        try:
            address = plan.acting(UserRole.SWITCH).address(side)
            self._stranger = await Leg.connect(
                address.model_copy(update=as_user), side, name="exodus-probe"
            )
        except (OperatorError, SourceError, TargetError) as exc:
            self.why_not = f"its user cannot log in: {exc.why}"
            return
        up = ("ACL", "SETUSER", self._user, "-@write")
        self._commands = [up] * max(1, len(kept))  # as many as there are users to fence

    async def _ask(self, *commands: Command) -> list[Reply]:
        """Return the replies of commands sent together, errors as values."""
        return await self._leg.pipeline(commands)

    async def raise_(self) -> str:
        """Refuse the user's writes, and prove it; how, in words.

        Raises:
            CutoverAborted: a write of the user passed.
        """
        if self.why_not or self._stranger is None:
            return f"not rehearsed: {self.why_not}"
        await self._leg.pipeline(
            [("WATCH", self._guard), ("GET", self._guard), *self._method.recheck()]
        )
        await self._leg.transaction(self._commands)
        reply = (await self._stranger.pipeline([("SET", PROBE, "1", "PX", 1)]))[0]
        if not isinstance(reply, ReplyError):
            raise CutoverAborted(
                f"the fence on the {self._leg.side} does not hold",
                why="a write of the rehearsal's own user passed it",
                next_step="see docs/operating/fences.md",
            )
        return f"{FenceKind.ACL}, on a user of the rehearsal's own, for {len(self._commands)} users"

    async def close(self) -> None:
        """Remove the user."""
        if self._stranger is not None:
            await self._stranger.close()
        if self._user:
            await self._leg.call("ACL", "DELUSER", self._user)
