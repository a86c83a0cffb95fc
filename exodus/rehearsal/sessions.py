"""One session of a rehearsal, as an application's client has it.

In front of a cluster a gateway has one listener a node, and a session is what a cluster client is:
a connection for each listener, the map of slots that the gateway tells, and each MOVED followed.
All connections are made at the beginning, since one that comes while the reserved keys are at the
other side is ended (docs/decisions/0026-rehearse-clusters.md).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import redis.asyncio as redis
from redis.exceptions import AskError, ClusterError, MovedError, TryAgainError

from exodus.commands.key_slots import slot_of
from exodus.net.client import answered, make_client
from exodus.plan.address import Address
from exodus.plan.bounds import REHEARSAL_AGAIN_S, REHEARSAL_REDIRECTS_MAX


class RehearsalSession:
    """One session. Requests are never sent twice by the client itself, which would be counted as
    ours.
    """

    def __init__(
        self,
        gateway: Address,
        listeners: Sequence[int],
        *,
        name: str,
        timeout_s: float,
        told_port: int | None,
    ) -> None:
        """`listeners` are those that stand for nodes, by number; in front of single servers 0.
        `told_port` is the port of the first that clients are told, if it is not its own.
        """
        self.answered_by: Counter[int] = Counter()  # listeners, since the caller emptied it
        self._first_port = told_port or gateway.port
        self._listeners = tuple(listeners)
        self._of_slot: dict[int, int] = {}  # listener, as the gateway told
        self._clients = {
            listener: make_client(
                gateway.model_copy(update={"port": gateway.port + listener}),
                field="gateway",
                timeout_s=timeout_s,
                client_name=name,
                single_connection_client=True,
            )
            for listener in self._listeners
        }

    async def come(self) -> None:
        """Make the connections, and learn the map where there is one.

        Raises:
            RedisError: a listener does not answer.
        """
        await asyncio.gather(*[answered(client.ping()) for client in self._clients.values()])
        if len(self._clients) > 1:
            await self._learn(self._listeners[0])

    async def ask(self, key: str, *command: str | bytes | float) -> Any:
        """Send a request to the listener that has a key's slot, and to where that leads.

        Raises:
            RedisError: the request failed, or its answer did not come.
        """
        slot = slot_of(key.encode())
        listener, asking = self._of_slot.get(slot, self._listeners[0]), False
        for _ in range(REHEARSAL_REDIRECTS_MAX):
            client = self._client(listener)
            try:
                if asking:
                    await answered(client.execute_command("ASKING"))
                found = await answered(client.execute_command(*command))
            except MovedError as moved:
                listener, asking = int(moved.port) - self._first_port, False
                await self._learn(listener)
                self._of_slot[slot] = listener
            except AskError as asks:
                listener, asking = int(asks.port) - self._first_port, True
            except TryAgainError:
                await asyncio.sleep(REHEARSAL_AGAIN_S)
            else:
                self.answered_by[listener] += 1
                return found
        raise ClusterError(f"slot {slot} was redirected {REHEARSAL_REDIRECTS_MAX} times")

    def _client(self, listener: int) -> redis.Redis:
        client = self._clients.get(listener)
        if client is None:
            port = self._first_port + listener
            raise ClusterError(f"the gateway named port {port}: no node is there")
        return client

    async def _learn(self, listener: int) -> None:
        """Ask a listener which of them has which slots, as cluster clients do after a MOVED."""
        rows = await answered(self._client(listener).execute_command("CLUSTER", "SLOTS"))
        self._of_slot = {
            slot: int(master[1]) - self._first_port
            for first, last, master, *_ in rows
            for slot in range(int(first), int(last) + 1)
        }

    async def close(self) -> None:
        """End the connections."""
        for client in self._clients.values():
            await client.aclose()
