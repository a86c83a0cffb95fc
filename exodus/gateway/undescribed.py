"""Undescribed commands: renamed ones, and those of modules that were loaded later.

COMMAND lists a renamed command by its original name, but COMMAND INFO knows the name that clients
use. So the first request of such a name is answered before anybody knows what it did. The gateway
keeps it until the authority has described the command. Then it marks the keys, and reads all later
requests like any other. A command that the authority does not describe is a gap. Until then the
process does not count as flushed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import redis.asyncio as redis
from redis.exceptions import RedisError

from exodus.commands.semantics import Role
from exodus.commands.table import CommandTable
from exodus.control.changes import Barrier, Key
from exodus.control.effects import barrier_of, changed_keys
from exodus.control.gap_reasons import LONG_KEY, SCRIPTS, UNDESCRIBED
from exodus.gateway.orders import Orders
from exodus.net.client import answered
from exodus.plan.bounds import UNKNOWN_BYTES_MAX, UNKNOWN_REQUESTS_MAX
from exodus.plan.vocabulary import Side
from exodus.resp.scanner import SKIPPED

log = logging.getLogger(__name__)
_READ = frozenset(
    {
        Role.PLAIN,
        Role.BLOCKING,
        Role.SCRIPT,
        Role.MOVES_DB,
        Role.SCAN,
        Role.SCRIPTS,
        Role.WATCH,
        Role.UNWATCH,
        Role.CLUSTER,
    }
)


class UndescribedCommands:
    """The requests of one process whose command is not described yet."""

    def __init__(
        self,
        table: CommandTable,
        client: Callable[[Side], redis.Redis],
        mark: Callable[[list[Key], Barrier | None], None],
        gap: Callable[[str], None],
        orders: Orders,
    ) -> None:
        """`orders` say whether what scripts write is a gap."""
        self._table = table
        self._client = client
        self._mark = mark
        self._gap = gap
        self._orders = orders
        self._waiting: dict[tuple[Side, bytes], list[tuple[list[bytes], int]]] = {}
        self._count = self._bytes = 0
        self._asking = False

    def __len__(self) -> int:
        return self._count

    @property
    def renamed(self) -> dict[str, str]:
        """Return the names that clients use, with the commands that they stand for."""
        return self._table.renamed

    def note(self, side: Side, args: list[bytes], db: int) -> bool:
        """Keep a request that the authority executed; tell whether to run `resolve`."""
        size = sum(map(len, args))
        if self._count >= UNKNOWN_REQUESTS_MAX or self._bytes + size > UNKNOWN_BYTES_MAX:
            self._gap(UNDESCRIBED)
            return False
        self._waiting.setdefault((side, args[0].upper()), []).append((args, db))
        self._count += 1
        self._bytes += size
        begin, self._asking = not self._asking, True
        return begin

    async def resolve(self) -> None:
        """Ask the authority for the commands, and mark the keys that their requests wrote."""
        try:
            while self._waiting:
                (side, name), requests = next(iter(self._waiting.items()))
                known = await self._ask(side, name)
                requests = self._waiting.pop((side, name))  # with those that came meanwhile
                for args, db in requests:
                    if known:
                        self._take_over(args, db)
                    else:
                        self._gap(UNDESCRIBED)
                    self._count -= 1
                    self._bytes -= sum(map(len, args))
        finally:
            self._asking = False

    async def _ask(self, side: Side, name: bytes) -> bool:
        try:
            client = self._client(side)
            client.response_callbacks.pop("COMMAND INFO", None)
            client.response_callbacks.pop("COMMAND", None)
            rows: Any = await answered(client.execute_command("COMMAND", "INFO", name))
        except (RedisError, OSError, TimeoutError) as exc:
            log.warning("the %s does not tell what the command %r is: %s", side, name[:64], exc)
            return False
        row = rows[0] if isinstance(rows, list) and rows else None
        if not isinstance(row, list):
            log.warning(
                "the %s does not list the command %r, which it has executed", side, name[:64]
            )
            return False
        command = self._table.learn(name, row)
        log.info(
            "the %s calls %s by the name %r",
            side,
            command.name.decode("ascii", "replace"),
            name[:64],
        )
        return True

    def _take_over(self, args: list[bytes], db: int) -> None:
        command = self._table.of(args)
        args = [command.name, *args[1:]]
        if command.role is Role.BARRIER:
            self._mark([], barrier_of(command, args, db))
        elif command.role not in _READ:
            self._gap(UNDESCRIBED)  # it changed the session, which did not notice
        elif command.write:
            keys = changed_keys(command, args, db)
            if any(key is SKIPPED for _, key in keys):
                self._gap(LONG_KEY)
                keys = [(number, key) for number, key in keys if key is not SKIPPED]
            self._mark(keys, None)
            if command.script and self._orders.scripts_unseen:
                self._gap(SCRIPTS)
