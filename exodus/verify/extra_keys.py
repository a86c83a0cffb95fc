"""Keys of the follower that the authority does not have."""

from __future__ import annotations

from collections.abc import Sequence

from exodus.copy.filtered import filtered_keys
from exodus.engine import Engine
from exodus.net.leg import Leg, close_all
from exodus.verify.comparison import Divergence, entered


class ExtraKeys:
    """Finds keys of the follower that are not to be there. `behind` is a leg of the follower's,
    where rules have to be asked after a cutover.
    """

    def __init__(self, engine: Engine, authority: Leg, behind: Leg | None) -> None:
        self._engine = engine
        self._authority = authority
        self._behind = behind
        self.spared = 0  # keys of others, which neither are compared nor counted
        self.left_behind = 0  # keys that the rules left on the source, after a cutover

    async def close(self) -> None:
        """End the connections."""
        await close_all((self._authority, self._behind))

    async def among(self, db: int, keys: Sequence[bytes]) -> list[tuple[int, Divergence]]:
        """Return those of the follower's keys in database `db` that the authority lacks, or that
        the rules filter by name.

        Each with the database that it has on the authority, and under its name there, so that
        copying it again removes it; one that no key of the authority comes to keeps its own.
        """
        if not keys:
            return []
        scope = self._engine.scope
        if not scope:
            found = await self._lacking(db, keys)
            found -= await self._behind_among(db, found)
            return [
                (db, Divergence(db, key, "extra", "not on the authority"))
                for key in keys
                if key in found
            ]
        extra: list[tuple[int, Divergence]] = []
        by_db: dict[int, list[bytes]] = {}
        for key in keys:
            origin = scope.source_key(db, key)
            why = (
                "no key of the authority comes to this name"
                if origin is None
                else scope.filtered_by(*origin)
            )
            if why is not None and self._engine.spare_others:
                self.spared += 1
            elif origin is None or why is not None:
                at, name = origin or (db, key)
                extra.append((at, Divergence(at, name, "extra", why or "")))
            else:
                by_db.setdefault(origin[0], []).append(origin[1])
        for origin_db, names in by_db.items():
            lacking = await self._lacking(origin_db, names)
            extra += [
                (origin_db, Divergence(origin_db, name, "extra", "not on the authority"))
                for name in names
                if name in lacking
            ]
        return extra

    async def _lacking(self, db: int, keys: Sequence[bytes]) -> set[bytes]:
        """Return the keys that the authority lacks. One question serves for all keys while it has
        them all.
        """
        if not await entered(self._authority, db):
            return set(keys)
        if await self._authority.call("EXISTS", *keys) == len(keys):
            return set()
        there = await self._authority.pipeline([("EXISTS", key) for key in keys])
        return {key for key, exists in zip(keys, there, strict=True) if not exists}

    async def _behind_among(self, db: int, keys: set[bytes]) -> set[bytes]:
        if self._behind is None or not keys:
            return set()
        await self._behind.select(db)
        found = set(
            await filtered_keys(
                self._behind, self._engine.follower_facts, self._engine.left_behind, db, list(keys)
            )
        )
        self.left_behind += len(found)
        return found


async def open_extra_keys(engine: Engine, *, name: str) -> ExtraKeys:
    """Connections of their own for looking for keys that are not to be there."""
    authority = await engine.authority_leg(name=name)
    try:
        behind = await engine.follower.connect(name=name) if engine.left_behind else None
    except BaseException:
        await authority.close()
        raise
    return ExtraKeys(engine, authority, behind)
