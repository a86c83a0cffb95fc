"""The gateway's own connections to both sides, for administrative commands."""

from __future__ import annotations

import logging

import redis.asyncio as redis

from exodus.gateway.store_state import STORE_ERRORS
from exodus.net.client import answered
from exodus.net.master_client import make_side_client
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side, UserRole

log = logging.getLogger(__name__)


class SideClients:
    """One client a side, made when it is needed."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan.acting(UserRole.GATEWAY)
        self._clients: dict[Side, redis.Redis] = {}

    def client(self, side: Side) -> redis.Redis:
        """Return the client of a side."""
        if side not in self._clients:
            self._clients[side] = make_side_client(self._plan.address(side), field=side)
        return self._clients[side]

    async def unblock(self, side: Side, client_id: int) -> None:
        """End a connection's blocking command, as if its timeout had passed."""
        command = ("CLIENT", "UNBLOCK", str(client_id), "TIMEOUT")
        try:
            await answered(self.client(side).execute_command(*command))
        except STORE_ERRORS as exc:
            log.warning("a blocked command on the %s could not be ended: %s", side, exc)

    async def close(self) -> None:
        """Close the clients."""
        for client in self._clients.values():
            await client.aclose()
