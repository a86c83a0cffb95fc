"""Lost legs: writes that were under way when a connection to the authority was lost.

Their bytes may still lie in the socket of a server that was stopped or is behind. It would execute
them after their keys were marked and synced. So the gateway ends that connection on the server
too, and only then marks the keys again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from exodus.gateway.journaler import Journaler
from exodus.gateway.session import Unanswered
from exodus.gateway.side_clients import SideClients
from exodus.gateway.store_state import STORE_ERRORS
from exodus.net.client import answered
from exodus.plan.address import Address
from exodus.plan.bounds import LOST_LEGS_RETRY_S
from exodus.plan.vocabulary import Side

log = logging.getLogger(__name__)


class LostLegs:
    """The lost legs of one process. Each counts as unflushed until its writes are marked."""

    def __init__(
        self, journaler: Journaler, clients: SideClients, authority: Callable[[], Side]
    ) -> None:
        self._journaler = journaler
        self._clients = clients
        self._authority = authority
        self._left: dict[object, Unanswered] = {}  # by lost leg

    def __len__(self) -> int:
        return len(self._left)

    def add(self, left: Unanswered) -> object:
        """Note what a lost leg had under way; pass the result to `mark_again`."""
        leg = object()  # not the leg's address, which another leg may get meanwhile
        self._left[leg] = left
        return leg

    def log_intents(self) -> None:
        """Log the intents of these writes again: the log's old segments are about to go."""
        for left in self._left.values():
            self._journaler.intend(left.keys, None)
            for barrier in left.barriers:
                self._journaler.intend([], barrier)
            for why in left.gaps:
                self._journaler.log_gap(why)

    async def mark_again(
        self, side: Side, address: Address | None, local_address: str, leg: object
    ) -> None:
        """Mark a lost leg's writes, once the authority cannot execute them any more."""
        left = self._left[leg]
        try:
            await self._end_on_server(side, address, local_address)
        except Exception as exc:
            log.exception("the outcome of a lost connection's writes is unknown: a gap is open")
            why = f"the writes of a lost connection: {type(exc).__name__}"
            self._journaler.gap(why, left.keys or None)
        self._journaler.mark(left.keys, None)
        for barrier in left.barriers:
            self._journaler.mark([], barrier)
        for why in left.gaps:
            self._journaler.gap(why)
        del self._left[leg]  # not before: until here it counts as unflushed

    async def _end_on_server(self, side: Side, address: Address | None, local_address: str) -> None:
        while True:
            try:
                client = self._clients.server(side, address)
                if client is None:
                    return  # after a failover: what it still executes, the new master does not have
                await answered(client.execute_command("CLIENT", "KILL", "ADDR", local_address))
                await answered(client.ping())
                return
            except STORE_ERRORS as exc:
                if side is not self._authority():
                    return  # the side was given up for dead, with whatever it still executes
                log.info("waiting for the %s to end a lost connection: %s", side, exc)
                await asyncio.sleep(LOST_LEGS_RETRY_S)
