"""The gateway's own connections to both sides, for administrative commands."""

from __future__ import annotations

import logging

import redis.asyncio as redis

from exodus.gateway.store_state import STORE_ERRORS
from exodus.net.client import answered, make_client
from exodus.net.clusters import cluster_of
from exodus.net.masters import standing
from exodus.plan.address import Address, Cluster, ServerLogin
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side, UserRole

log = logging.getLogger(__name__)


class SideClients:
    """One client a side, made when it is needed: to the server that sessions connect to now."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan.acting(UserRole.GATEWAY)
        self._clients: dict[Side, tuple[str, redis.Redis]] = {}
        self._nodes: dict[tuple[Side, str], redis.Redis] = {}  # of clusters, by address
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

    def server(self, side: Side, address: Address | None) -> redis.Redis | None:
        """Return the client of the server at `address` if sessions may connect to it now; None: it
        is no master any more. Without an address: as `client`.

        Raises:
            OSError: no master is known.
        """
        place = self._plan.address(side)
        if address is None or not isinstance(place, Cluster):
            client = self.client(side)
            return client if address is None or address.place == self._place(side) else None
        view = cluster_of(place).known
        announced = {name for shard in view.shards for name in (shard.master, *shard.replicas)}
        if address.place not in {place.server(name).place for name in announced}:
            return None
        at = (side, address.place)
        if at not in self._nodes:
            login = {name: getattr(place, name) for name in ServerLogin.model_fields}
            reached = Address(host=address.host, port=address.port, **login)
            self._nodes[at] = make_client(reached, field=side)
        return self._nodes[at]

    def _place(self, side: Side) -> str:
        """Return host and port of the server that sessions connect to now.

        Raises:
            OSError: no master is known.
        """
        return standing(self._plan.address(side)).place

    async def unblock(self, side: Side, address: Address | None, client_id: int) -> None:
        """End a connection's blocking command on the server at `address`, as if its timeout had
        passed.
        """
        command = ("CLIENT", "UNBLOCK", str(client_id), "TIMEOUT")
        try:
            client = self.server(side, address)
            if client is not None:
                await answered(client.execute_command(*command))
        except STORE_ERRORS as exc:
            log.warning("a blocked command on the %s could not be ended: %s", side, exc)

    async def close(self) -> None:
        """Close the clients."""
        made = (client for _, client in self._clients.values())
        for client in (*self._left, *made, *self._nodes.values()):
            await client.aclose()
