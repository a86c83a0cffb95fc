"""The newest evidence bundles, kept in the control store: the disk of the worker that made them may
be gone.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from exodus.control.store import ControlStore
from exodus.errors import OperatorError
from exodus.net.client import answered
from exodus.plan.bounds import BUNDLE_BYTES_MAX, BUNDLES_KEPT


async def keep(store: ControlStore, name: str, files: Mapping[str, bytes]) -> str:
    """Keep a bundle; the oldest go. Returns why it was not kept, or an empty text."""
    packed: dict[Any, Any] = {file: zlib.compress(raw) for file, raw in files.items()}
    size = sum(map(len, packed.values()))
    if size > BUNDLE_BYTES_MAX:
        return f"{size:,} bytes, and the control store keeps {BUNDLE_BYTES_MAX:,} at most"
    pipe = store.client.pipeline(transaction=True)
    pipe.delete(store.keys.bundle(name))
    pipe.hset(store.keys.bundle(name), mapping=packed)
    pipe.lrem(store.keys.bundles, 0, name)
    pipe.lpush(store.keys.bundles, name)
    await pipe.execute()
    for old in (await names(store))[BUNDLES_KEPT:]:
        await answered(store.client.delete(store.keys.bundle(old)))
        await answered(store.client.lrem(store.keys.bundles, 0, old))
    return ""


async def names(store: ControlStore) -> list[str]:
    """Return the names of the bundles that are kept, newest first."""
    return [
        name.decode() for name in await answered(store.client.lrange(store.keys.bundles, 0, -1))
    ]


async def files_of(store: ControlStore, name: str | None = None) -> tuple[str, dict[str, bytes]]:
    """Return a bundle's name and files; the newest where none is named.

    Raises:
        OperatorError: it is not kept.
    """
    kept = await names(store)
    chosen = name or (kept[0] if kept else "")
    packed = await answered(store.client.hgetall(store.keys.bundle(chosen))) if chosen else {}
    if not packed:
        raise OperatorError(
            f"the control store keeps no bundle {chosen}".rstrip(),
            why=f"it keeps {', '.join(kept) or 'none yet'}",
            next_step="name one of those; or write what is known now: exodus evidence write FOLDER",
        )
    return chosen, {file.decode(): zlib.decompress(raw) for file, raw in packed.items()}
