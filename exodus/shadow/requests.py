"""Sampled requests: their keys, how they are asked of the follower, and when replies are equal."""

from __future__ import annotations

from collections import Counter

from exodus.commands.table import CommandTable
from exodus.control.changes import Key
from exodus.net.leg import Reply
from exodus.plan.scope import Scope
from exodus.shadow.exchange import Exchange
from exodus.shadow.rules import Rules, canonical


class Requests:
    """What is known of requests between one authority and one follower."""

    def __init__(self, table: CommandTable, scope: Scope, rules: Rules) -> None:
        self.table = table
        self.rules = rules
        self._scope = scope

    def keys_of(self, exchange: Exchange) -> list[Key]:
        """Return the keys of a request, or of a transaction; it was sampled by the first."""
        names = [name for args in exchange.requests for name in self.table.of(args).keys(args)]
        return [(exchange.db, name) for name in dict.fromkeys(names)]

    def written(self, exchange: Exchange) -> Counter[Key]:
        """Return how often a gateway marks each key for this exchange: once for each time that a
        write names it.
        """
        found: Counter[Key] = Counter()
        for args in exchange.requests:
            command = self.table.of(args)
            if command.write:
                found.update((exchange.db, name) for name in command.keys(args))
        return found

    def place(self, key: Key) -> Key:
        """Return where the follower has a key."""
        return self._scope.target_key(*key) if self._scope.renames else key

    def wire(self, exchange: Exchange) -> list[list[bytes]] | None:
        """Return the requests as they are asked of the follower; None where one names its key
        elsewhere than most do, or where their keys are in several databases there.
        """
        if not self._scope.renames:
            return exchange.wire()
        found: list[list[bytes]] = []
        dbs: set[int] = set()
        for args in exchange.requests:
            if len(args) < 2 or self.table.of(args).keys(args) != [args[1]]:
                return None
            db, name = self._scope.target_key(exchange.db, args[1])
            dbs.add(db)
            found.append([args[0], name, *args[2:]])
        return exchange.wire(found) if len(dbs) == 1 else None

    def same(self, exchange: Exchange, here: Reply, there: Reply) -> bool:
        """Return whether two replies mean the same; those of a transaction one by one."""
        rules = self.rules
        if not exchange.transaction or not isinstance(here, list) or not isinstance(there, list):
            return rules.equivalent(exchange.command, here, there, exchange.args)
        return len(here) == len(there) and all(
            rules.equivalent(args[0].upper(), one, other, args)
            for args, one, other in zip(exchange.requests, here, there, strict=False)
        )

    def moved(self, exchange: Exchange, before: Reply, now: Reply) -> bool:
        """Return whether a side answers otherwise than before. The same reply has not moved, even
        where the function of a rule cannot judge it.
        """
        return canonical(before) != canonical(now) and not self.same(exchange, before, now)

    def is_script(self, exchange: Exchange) -> bool:
        """Return whether a request runs a script."""
        return any(self.table.of(args).script for args in exchange.requests)
