"""A workload profile: what was seen of the traffic, bounded in memory whatever the traffic is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from exodus.commands.table import CommandTable
from exodus.plan.own_keys import is_own

_NAMES_MAX = 10_000


def prefix_of(key: bytes) -> str:
    """The part of a key before its first colon, which is how most applications name things."""
    return key.split(b":", 1)[0][:40].decode("utf-8", "replace")


@dataclass
class Profile:
    """Counts of one observation."""

    seconds: float = 0.0
    requests: int = 0
    writes: int = 0
    on_keys: int = 0  # requests that name a key of an application: Exodus's own name none
    unreadable: int = 0
    from_scripts: int = 0  # executed by a script; counted apart, since the script was counted too
    commands: Counter[str] = field(default_factory=Counter)
    prefixes: Counter[str] = field(default_factory=Counter)
    databases: Counter[int] = field(default_factory=Counter)
    clients: set[str] = field(default_factory=set)
    argument_bytes: int = 0

    def add(self, table: CommandTable, args: list[bytes], db: int, client: str) -> None:
        """Count one request."""
        command = table.of(args)
        self.requests += 1
        self.writes += command.write
        name = command.name.decode("ascii", "replace")
        self.commands[
            name if len(self.commands) < _NAMES_MAX or name in self.commands else "(other)"
        ] += 1
        self.databases[db] += 1
        if len(self.clients) < _NAMES_MAX:
            self.clients.add(client)
        self.argument_bytes += sum(map(len, args))
        keys = command.keys(args)
        self.on_keys += any(not is_own(key) for key in keys)
        for key in keys[:8]:
            prefix = prefix_of(key)
            self.prefixes[
                prefix if len(self.prefixes) < _NAMES_MAX or prefix in self.prefixes else "(other)"
            ] += 1

    def report(self, table: CommandTable) -> dict[str, Any]:
        """As JSON."""
        return {
            "seconds": round(self.seconds, 3),
            "requests": self.requests,
            "requests_per_s": round(self.requests / self.seconds, 1) if self.seconds else 0.0,
            "writes": self.writes,
            "on_keys": self.on_keys,
            "unreadable": self.unreadable,
            "from_scripts": self.from_scripts,
            "clients": len(self.clients),
            "databases": {str(db): count for db, count in self.databases.items()},
            "argument_bytes": self.argument_bytes,
            "commands": [
                {
                    "command": name,
                    "calls": count,
                    "write": table.of(name.encode().split(b"|")).write,
                }
                for name, count in self.commands.most_common(200)
            ],
            "prefixes": [
                {"prefix": name, "keys": count} for name, count in self.prefixes.most_common(50)
            ],
        }
