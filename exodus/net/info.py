"""Reading the reply of INFO."""

from __future__ import annotations


def info_of(raw: bytes) -> dict[str, str]:
    """Return the fields of an INFO reply."""
    pairs = (
        line.partition(":") for line in raw.decode("utf-8", "replace").splitlines() if ":" in line
    )
    return {key: value.strip() for key, _, value in pairs}


def databases_of(info: dict[str, str]) -> dict[int, int]:
    """Database → keys, of an INFO with its keyspace section."""
    return {
        int(key[2:]): int(value.partition("keys=")[2].partition(",")[0])
        for key, value in info.items()
        if key.startswith("db") and key[2:].isdigit()
    }
