"""Reading the reply of INFO."""

from __future__ import annotations

import re

_SENTINEL = re.compile(r"sentinel-[0-9a-f]{8}-(cmd|pubsub)")


def info_of(raw: bytes) -> dict[str, str]:
    """Return the fields of an INFO reply."""
    pairs = (
        line.partition(":") for line in raw.decode("utf-8", "replace").splitlines() if ":" in line
    )
    return {key: value.strip() for key, _, value in pairs}


def is_sentinel(name: str) -> bool:
    """Return whether a connection's name is one that a Sentinel gives itself."""
    return _SENTINEL.fullmatch(name) is not None


def databases_of(info: dict[str, str]) -> dict[int, int]:
    """Database → keys, of an INFO with its keyspace section."""
    return {
        int(key[2:]): int(value.partition("keys=")[2].partition(",")[0])
        for key, value in info.items()
        if key.startswith("db") and key[2:].isdigit()
    }


_BUFFERS = (
    "mem_clients_normal",
    "mem_clients_slaves",
    "mem_replication_backlog",
    "mem_aof_buffer",
)


def buffer_bytes(info: dict[str, str]) -> int:
    """Return what clients, replicas and the append-only file take of a server's memory."""
    return sum(int(info.get(name, 0)) for name in _BUFFERS)


_COPIED = ("rdb_last_cow_size", "aof_last_cow_size", "module_fork_last_cow_size")


def copied_bytes(info: dict[str, str]) -> int:
    """Return what a server's last background saves copied, since the data changed meanwhile."""
    return max(int(info.get(name, 0)) for name in _COPIED)


def data_bytes(info: dict[str, str]) -> int:
    """Return what the keys take of a server's memory: all but the server's own and its buffers."""
    own = int(info.get("used_memory_startup", 0)) + buffer_bytes(info)
    return max(0, int(info["used_memory"]) - own)
