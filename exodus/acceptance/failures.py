"""A slow, a full, and a restarted target, tried on a disposable server in the target's place.

It has the target's engine and settings. Keys of a second disposable server are copied to it by the
engine's own `sync(key)` while it fails, and compared in full afterwards. The target itself is only
asked for its settings.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from exodus.acceptance.disposable import DisposableServer, kind_of
from exodus.acceptance.rows import Checked, not_done, told
from exodus.control.changes import Key
from exodus.control.route import Route
from exodus.control.schema import guard_key
from exodus.control.store import ControlStore
from exodus.engine import Engine, open_engine
from exodus.errors import NoRoom, SourceError, StackError, TargetError
from exodus.net.info import info_of
from exodus.net.leg import Leg
from exodus.plan.bounds import (
    FAILURES_KEYS,
    FAILURES_ROOM_BYTES,
    FAILURES_SLOW_MS,
    FAILURES_VALUE_BYTES,
)
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from exodus.verify.comparison import open_comparison
from exodus.verify.reconcile import compare_now

_SETTINGS = ("maxmemory-policy", "appendonly", "appendfsync", "save")


async def check_failures(plan: Plan, store: ControlStore) -> list[Checked]:
    """Try the three failures, or say why they cannot be tried here."""
    facts = await Endpoint(Side.TARGET, plan.target).facts()
    settings = await _settings(plan)
    kind = kind_of(facts)
    try:
        async with (
            DisposableServer(kind, {}) as source,
            DisposableServer(kind, settings) as target,
        ):
            await _fill(source)
            trial = _Trial(plan, store, source, target, settings)
            return [
                told("failures: tried on", f"a disposable {kind}, as {_words(settings)}"),
                await trial.slow(),
                await trial.full(),
                *await trial.restarted(),
            ]
    except StackError as exc:
        return [not_done("failures", f"{exc.what}: {exc.why}", exc.next_step)]


def _words(settings: dict[str, str]) -> str:
    return ", ".join(f"{name} {value or 'off'}" for name, value in sorted(settings.items()))


async def _settings(plan: Plan) -> dict[str, str]:
    async with await Endpoint(Side.TARGET, plan.target).connect(name="exodus-failures") as leg:
        replies = await leg.pipeline([("CONFIG", "GET", name) for name in _SETTINGS])
    return {
        reply[0].decode(): reply[1].decode()
        for reply in replies
        if isinstance(reply, list) and reply
    }


def _keys() -> list[Key]:
    return [(0, b"key:%d" % number) for number in range(FAILURES_KEYS)]


async def _fill(server: DisposableServer) -> None:
    value = b"v" * FAILURES_VALUE_BYTES
    async with await Leg.connect(server.address, Side.SOURCE, name="exodus-failures") as leg:
        await leg.pipeline([("SET", key, value) for _, key in _keys()])


class _Trial:
    """The failures, one after the other; each begins with an empty target."""

    def __init__(
        self,
        plan: Plan,
        store: ControlStore,
        source: DisposableServer,
        target: DisposableServer,
        settings: dict[str, str],
    ) -> None:
        self._target = target
        self._store = store
        self._settings = settings
        self._name = f"trial-{secrets.token_hex(4)}"
        self._plan = plan.model_copy(
            update={
                "name": self._name,
                "source": source.address,
                "target": target.address,
                "filters": type(plan.filters)(),
                "renames": (),
            }
        )

    @asynccontextmanager
    async def _side(self) -> AsyncIterator[Leg]:
        async with await Leg.connect(
            self._target.address, Side.TARGET, name="exodus-failures"
        ) as leg:
            yield leg

    async def _engine(self) -> Engine:
        async with self._side() as leg:
            await leg.call("SET", guard_key(self._name), 1)
        return await open_engine(self._store, self._plan, Route(writer_epoch=1))

    async def _copy(self, keys: Sequence[Key]) -> None:
        engine = await self._engine()
        copier = await engine.copier(engine.guard(), name="exodus-failures")
        try:
            await copier.sync_keys(0, [key for _, key in keys])
        finally:
            await copier.close()

    async def _differing(self) -> int:
        comparison = await open_comparison(await self._engine())
        try:
            return len(await compare_now(comparison, _keys()))
        finally:
            await comparison.close()

    async def _empty(self) -> None:
        # SYNC: a server that frees in the background counts the old keys for a while, and would be
        # given room for them.
        async with self._side() as leg:
            await leg.pipeline([("CONFIG", "SET", "maxmemory", 0), ("FLUSHALL", "SYNC")])

    async def slow(self) -> Checked:
        """A target that answers nobody for a while delays the copy, and loses nothing."""
        async with self._side() as leg:
            await leg.call("CLIENT", "PAUSE", FAILURES_SLOW_MS, "ALL")
        began = time.monotonic()
        await self._copy(_keys())
        took_ms = (time.monotonic() - began) * 1000
        left = await self._differing()
        return Checked(
            "failures: a slow target",
            not left,
            f"it was silent for {FAILURES_SLOW_MS} ms; the copy took {took_ms:.0f} ms, and {left} "
            f"of {FAILURES_KEYS:,} keys differ",
            "a copy that waited was not complete afterwards",
            "report this with the evidence bundle",
        )

    async def full(self) -> Checked:
        """A full target refuses the copy, which goes on when there is room; it evicts nothing."""
        what = "failures: a full target"
        policy = self._settings.get("maxmemory-policy", "noeviction")
        await self._empty()
        engine_name = f"maxmemory-policy {policy}"
        async with self._side() as leg:
            used = int(info_of(await leg.call("INFO", "memory"))["used_memory"])
            await leg.call("CONFIG", "SET", "maxmemory", used + FAILURES_ROOM_BYTES)
        refused = ""
        try:
            await self._copy(_keys())
        except (NoRoom, TargetError) as exc:
            refused = exc.what
        async with self._side() as leg:
            evicted = int(info_of(await leg.call("INFO", "stats"))["evicted_keys"])
            await leg.call("CONFIG", "SET", "maxmemory", 0)
        await self._copy(_keys())
        left = await self._differing()
        detail = (
            f"{engine_name}: {evicted:,} keys were evicted without a word"
            if evicted
            else f"{engine_name}: the copy was refused ({refused or 'nothing was refused'}); with "
            f"room again {left} of {FAILURES_KEYS:,} keys differ"
        )
        return Checked(
            what,
            not evicted and not left and bool(refused),
            detail,
            "keys that were copied would be missing on the target, and nobody would be told",
            "set maxmemory-policy noeviction on the target, at least until the cutover",
        )

    async def restarted(self) -> list[Checked]:
        """A killed target has what its persistence kept; the copy makes it whole again."""
        await self._empty()
        await self._copy(_keys())
        if self._settings.get("appendonly") == "yes":
            await asyncio.sleep(1.1)  # appendfsync everysec
        await self._target.kill()
        lost = ""
        try:
            await self._copy(_keys()[:1])
        except (TargetError, SourceError) as exc:
            lost = exc.what
        began = time.monotonic()
        await self._target.start()
        ready_ms = (time.monotonic() - began) * 1000
        async with self._side() as leg:
            kept = sum(map(int, await leg.pipeline([("EXISTS", key) for _, key in _keys()])))
        await self._copy(_keys())
        left = await self._differing()
        kept_share = f"{kept:,} of {FAILURES_KEYS:,} keys were there"
        return [
            Checked(
                "failures: a restarted target",
                not left and bool(lost),
                f"killed and started within {ready_ms:.0f} ms, {kept_share}; copied again, "
                f"{left} differ",
                "what a restart loses must be copied again, and was not",
                "report this with the evidence bundle",
            ),
            told(
                "failures: what a kill of the target loses",
                kept_share,
                line=f"a killed target: {kept_share} ({_words(self._settings)})",
            ),
        ]
