"""The invariant under drawn interleavings, on two real servers: once writes stop and the journal is
drained, both sides are equal.

What is drawn: application writes of every kind and their journal entries, which come later (race
rule 1), backfill chunks cut open between reading and writing, lane steps, processes that end in the
middle of either, expiry, flushes, changed epochs with a writer of the old one still under way. The
pieces are the product's own; only the order is drawn. With a rule taken out, the same drawings end
with unequal sides: that is tested too.
"""

from __future__ import annotations

import asyncio
import random
import secrets

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exodus.backfill.slices import mark_overtaken
from exodus.control import journal
from exodus.control.changes import Barrier, Key
from exodus.control.route import change_route, read_route
from exodus.control.store import ControlStore
from exodus.copy.guard import Guard, set_writer_epoch
from exodus.copy.key import BatchReport, Copier
from exodus.copy.scan import scan_once
from exodus.engine import Engine, open_engine
from exodus.errors import EpochEnded
from exodus.live.rescan import rescan
from exodus.net.leg import Leg
from exodus.plan.own_keys import RESERVED_PREFIX
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import JournalMode, Side
from exodus.topology.endpoint import Endpoint
from exodus.verify.reconcile import verify
from tests.support.full import FULL
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.property
KEYS = 8
# A flush and a rename are rare: what they mark as changed would hide what another rule forgot.
STEPS = (
    *["write", "journal"] * 12,
    *["lane"] * 10,
    *["read chunk", "write chunk"] * 4,
    "expire",
    "expire",
    "epoch",
    "epoch",
    "kill",
    "kill",
    "rename",
    "flush",
)


class World:
    """Source, target, journal, and what is under way between them."""

    def __init__(
        self, store: ControlStore, plan: Plan, draw: random.Random, without: str | None
    ) -> None:
        self.store, self.plan, self.draw = store, plan, draw
        self.source: Leg
        self.engine: Engine
        self.copiers: list[Copier] = []
        self.lane: Copier
        self.unjournalled: list[tuple[list[Key], Barrier | None]] = []
        self.position = b"0-0"
        self.chunks: list[tuple[Engine, Copier, list[bytes], list, dict[int, bytes]]] = []
        self.guarded = without != "guard"
        self.marks_overtaken = without != "overtaken keys"
        self.rescans = without != "rescan"

    async def open(self) -> None:
        self.source = await Leg.connect(self.plan.source, Side.SOURCE)
        route = await read_route(self.store)
        await change_route(
            self.store, route, route.next(why="test", journal=JournalMode.ALL, sync=True)
        )
        for number in range(KEYS):
            await self.source.call("SET", f"k{number}", f"before {number}")
        await self.epoch()
        await self.read_chunk()
        await self.write_chunk()

    async def close(self) -> None:
        await self.source.close()
        for copier in self.copiers:
            await copier.close()

    async def copier(self) -> Copier:
        copier = await self.engine.copier(self.engine.guard() if self.guarded else Guard())
        self.copiers.append(copier)
        return copier

    async def epoch(self) -> None:
        """Begin a new epoch: writers of the old one may not write any more."""
        route = await read_route(self.store)
        route = await change_route(
            self.store, route, route.next(why="test", writer_epoch=route.writer_epoch + 1)
        )
        await set_writer_epoch(
            Endpoint(Side.TARGET, self.plan.target), self.plan.name, route.writer_epoch
        )
        self.engine = await open_engine(self.store, self.plan, route)
        self.lane = await self.copier()

    def key(self) -> bytes:
        return b"k%d" % self.draw.randrange(KEYS)

    async def write(self) -> None:
        key = self.key()
        commands = [
            ("SET", key, secrets.token_hex(4)),
            ("DEL", key),
            ("SET", key, "timed", "PX", 3_600_000),
            ("PERSIST", key),
            ("APPEND", key, "x"),
            ("DEL", key),
            ("INCR", key),
            ("RPUSH", key, "a"),
            ("HSET", key, "f", secrets.token_hex(2)),
            ("SADD", key, secrets.token_hex(2)),
        ]
        await self.source.pipeline([self.draw.choice(commands)])
        self.unjournalled.append(([(0, key)], None))

    async def expire(self) -> None:
        key = self.key()
        await self.source.pipeline([("SET", key, "short", "PX", self.draw.choice((1, 5, 30)))])
        self.unjournalled.append(([(0, key)], None))

    async def rename(self) -> None:
        one, other = self.key(), self.key()
        await self.source.pipeline([("RENAME", one, other)])
        self.unjournalled.append(([(0, one), (0, other)], None))

    async def flush(self) -> None:
        await self.source.call("FLUSHDB")
        self.unjournalled.append(([], Barrier("flushdb", (0,))))

    async def journal(self) -> None:
        """A journal entry arrives, late and in any order."""
        if self.unjournalled:
            keys, barrier = self.unjournalled.pop(self.draw.randrange(len(self.unjournalled)))
            await journal.append(self.store, keys, 1, [barrier] if barrier else [])

    async def step_lane(self) -> None:
        changes = await journal.since(self.store, {0: self.position})
        ends = await journal.ends(self.store, 1)
        await self.lane.sync_keys(0, [key for _, key in dict.fromkeys(changes.keys)])
        for barrier in changes.barriers:
            if self.rescans:
                await rescan(self.engine, barrier)
        self.position = ends[0]
        await self.store.client.hset(self.store.keys.position, "0", self.position)

    async def read_chunk(self) -> None:
        """The whole keyspace is one chunk. Up to three are open at once, some of an old epoch."""
        if len(self.chunks) < 3:
            copier = await self.copier()
            positions = await journal.ends(self.store, 1)
            _, keys = await scan_once(self.source, 0, 1000)
            self.chunks.append(
                (self.engine, copier, keys, await copier.read(0, keys, BatchReport()), positions)
            )

    async def write_chunk(self) -> None:
        if self.chunks:
            engine, copier, keys, states, positions = self.chunks.pop(
                self.draw.randrange(len(self.chunks))
            )
            try:
                await copier.write(0, states, BatchReport())
            except EpochEnded:
                return
            # No process reads the marks of an old epoch
            if self.marks_overtaken and engine is self.engine:
                await mark_overtaken(self.engine, 0, keys, positions)

    async def kill(self) -> None:
        """A process ends before its work is recorded: a lane before its position is stored, a
        backfill before it marked what changed under it. The work is done again.
        """
        if self.draw.random() < 0.5:
            changes = await journal.since(self.store, {0: self.position})
            keys = [key for _, key in dict.fromkeys(changes.keys)]
            await self.lane.sync_keys(0, keys[: self.draw.randrange(len(keys) + 1)])
        elif self.chunks and self.chunks[-1][0] is self.engine:
            _, copier, _, states, _ = self.chunks.pop()
            await copier.write(0, states, BatchReport())
            await self.read_chunk()

    async def end(self) -> None:
        """Stop writes, finish open chunks, and drain everything."""
        while self.chunks:
            await self.write_chunk()
        while self.unjournalled:
            await self.journal()
        # A rescan marks more keys, so one step may not be the last.
        for _ in range(10):
            await self.step_lane()
            if (await journal.ends(self.store, 1))[0] == self.position:
                return
        raise AssertionError("the journal never drained")


async def _play(
    plan: Plan, control: DatabaseServer, seed: int, steps: list[str], without: str | None = None
) -> bool:
    """Return whether both sides were equal at the end."""
    async with await ControlStore.connect(control.address(), plan.name) as store:
        world = World(store, plan, random.Random(seed), without)
        await world.open()
        acts = {
            "write": world.write,
            "journal": world.journal,
            "lane": world.step_lane,
            "read chunk": world.read_chunk,
            "write chunk": world.write_chunk,
            "expire": world.expire,
            "rename": world.rename,
            "flush": world.flush,
            "epoch": world.epoch,
            "kill": world.kill,
        }
        try:
            for step in steps:
                await acts[step]()
            await world.end()
            report = await verify(world.engine, settle_s=0.05, attempts=3)
            return not report.divergences and not report.dirty
        finally:
            await world.close()


def _empty(source: DatabaseServer, target: DatabaseServer) -> Plan:
    for box in (source, target):
        with box.client() as client:
            client.flushall()
    return Plan(
        name=f"p{secrets.token_hex(6)}",
        source=source.address(),
        target=target.address(),
        partitions=1,
    )


@settings(
    max_examples=500 if FULL else 200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32), steps=st.lists(st.sampled_from(STEPS), max_size=40))
def test_drained_means_equal(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    seed: int,
    steps: list[str],
) -> None:
    assert asyncio.run(_play(_empty(redis62, valkey91), control_server, seed, steps))
    with valkey91.client() as client:
        assert all(key.startswith((b"k", RESERVED_PREFIX)) for key in client.keys("*"))


@pytest.mark.parametrize("without", ["guard", "overtaken keys", "rescan"])
def test_without_its_rule_the_sides_differ(
    redis62: DatabaseServer, valkey91: DatabaseServer, control_server: DatabaseServer, without: str
) -> None:
    """The property above can fail: without a rule, some drawing of the same kind finds unequal
    sides.
    """
    draw = random.Random(1)
    for _ in range(60):
        steps = draw.choices(STEPS, k=40)
        if not asyncio.run(
            _play(_empty(redis62, valkey91), control_server, draw.randrange(2**32), steps, without)
        ):
            return
    pytest.fail(f"sixty drawings without the rule ({without}) ended with equal sides")
