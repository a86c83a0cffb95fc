"""The gateway's own connections to both sides, for administrative commands."""

from __future__ import annotations

import logging

import redis.asyncio as redis

from exodus.gateway.store_state import STORE_ERRORS
from exodus.net.client import answered, make_client
from exodus.net.masters import standing
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side, UserRole

log = logging.getLogger(__name__)


class SideClients:
    """One client a side, made when it is needed: to the server that sessions connect to now."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan.acting(UserRole.GATEWAY)
        self._clients: dict[Side, tuple[str, redis.Redis]] = {}
        self._left: list[redis.Redis] = []  # to servers that were the master before

    def client(self, side: Side) -> redis.Redis:
        """Return the client of a side.

        Raises:
            OSError: no master is known.
        """
        address = standing(self._plan.address(side))
        place, client = self._clients.get(side, ("", None))
        if client is not None and place != address.place:
            self._left.append(client)
        if client is None or place != address.place:
            client = make_client(address, field=side)
            self._clients[side] = (address.place, client)
        return client

    def place(self, side: Side) -> str:
        """Return host and port of the server that sessions connect to now.

        Raises:
            OSError: no master is known.
        """
        return standing(self._plan.address(side)).place

    async def unblock(self, side: Side, client_id: int) -> None:
        """End a connection's blocking command, as if its timeout had passed."""
        command = ("CLIENT", "UNBLOCK", str(client_id), "TIMEOUT")
        try:
            await answered(self.client(side).execute_command(*command))
        except STORE_ERRORS as exc:
            log.warning("a blocked command on the %s could not be ended: %s", side, exc)

    async def close(self) -> None:
        """Close the clients."""
        for client in (*self._left, *(client for _, client in self._clients.values())):
            await client.aclose()
