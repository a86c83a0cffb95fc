"""Session groups: sessions that follow one part of the route."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from exodus.commands.table import CommandTable
from exodus.gateway.orders import Orders
from exodus.gateway.relay import Connection
from exodus.plan.vocabulary import Side
from exodus.telemetry.counters import Telemetry


@dataclass
class SessionGroup:
    """One group, and its hold."""

    orders: Orders
    hold_deadline: float | None = None
    held_at: Side | None = None  # the authority when the hold began
    held: bool = False  # the hold is complete: no write is under way or unflushed
    released_alone: bool = False  # the gateway ended the hold by itself, the store being away
    holding: asyncio.Task[None] | None = None  # completes the hold


class SessionGroups:
    """The applications' sessions, and a rehearsal's sessions."""

    def __init__(self, table: CommandTable, telemetry: Telemetry) -> None:
        self.connections: set[Connection] = set()
        self.main = SessionGroup(Orders(table, telemetry))
        self.rehearsal = SessionGroup(Orders(table, telemetry))
        self.rehearsal_name: bytes | None = None  # client name of a rehearsal's sessions

    def orders_for(self, name: bytes) -> Orders:
        """Return the orders that a client of this name follows."""
        if self.rehearsal_name is not None and name == self.rehearsal_name:
            return self.rehearsal.orders
        return self.main.orders

    def members(self, group: SessionGroup) -> list[Connection]:
        """Return the connections of a group."""
        return [each for each in self.connections if each.orders is group.orders]

    @property
    def holding(self) -> bool:
        """Tell whether a group is under a hold."""
        return self.main.orders.hold or self.rehearsal.orders.hold

    @property
    def overdue(self) -> bool:
        """Tell whether a hold has lasted longer than it may."""
        now = asyncio.get_running_loop().time()
        return any(
            group.hold_deadline is not None and now >= group.hold_deadline
            for group in (self.main, self.rehearsal)
        )
