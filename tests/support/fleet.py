"""A whole data plane as processes that can be killed and frozen: gateways, syncers, and switchers.
The application is in the test.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import redis.asyncio as redis
import yaml

from examples.shop.check import check
from examples.shop.model import Model
from examples.shop.place import Place, connect
from examples.shop.preload import preload
from examples.shop.workload import Writer, WriterTally
from exodus.backfill.slices import copy_slice
from exodus.control import registry
from exodus.control.route import ask_for_beats, change_route, read_route
from exodus.control.schema import guard_key
from exodus.control.store import ControlStore
from exodus.copy.guard import set_writer_epoch
from exodus.copy.scan import plan_slices
from exodus.cutover.fence import read_record
from exodus.engine import open_engine
from exodus.feeds.feed import JournalFeed
from exodus.native import link, replica
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import CopyStrategy, Feed, Hold, JournalMode, Side
from exodus.stack.home import free_port
from exodus.topology.endpoint import Endpoint
from exodus.verify.reconcile import verify
from tests.support.clocks import WallClock
from tests.support.libraries import Clients
from tests.support.servers import DatabaseServer
from tests.support.wait import until

_BLOCKS_S = 0.3  # a pause waits for it
ROOT = Path(__file__).resolve().parents[2]


class Member:
    """One process of the fleet, started again under the same id."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name, self._command, self._log = name, command, log
        self.clock = WallClock(log.with_suffix(".clock"))
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self.clock.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()


class GatedWriter(Writer):
    """A writer of the shop that can be made to wait between two actions."""

    def pausable(self, gate: asyncio.Event, busy: set[int]) -> None:
        self._gate, self._busy = gate, busy

    async def act(self, action: Callable[[], Awaitable[None]]) -> None:
        await self._gate.wait()
        self._busy.add(self.number)
        try:
            await action()
        finally:
            self._busy.discard(self.number)


class Application:
    """The shop, over several gateways, with blocked consumers. It can be paused, to be compared
    with a server at any time.
    """

    def __init__(
        self,
        ports: Sequence[int],
        *,
        seed: int,
        keys: int,
        writers: int,
        writes_per_s: float,
        libraries: Sequence[str] = ("redis-py",),
        pipelined: int = 0,
        password: str = "",
    ) -> None:
        self.login = f":{password}@" if password else ""
        self.urls = [f"redis://{self.login}127.0.0.1:{port}" for port in ports]
        self.model = Model(seed=seed, keys=keys, began_ms=0)
        self.tally = WriterTally()
        self._gate, self._stop, self._busy = asyncio.Event(), asyncio.Event(), set[int]()
        self._writers, self._per_s = writers, writes_per_s / writers
        self._libraries, self._pipelined = Clients(libraries), pipelined
        self._consumers = max(2, len(libraries))
        self._tasks: list[asyncio.Task[None]] = []
        self._clients: list[redis.Redis] = []
        self._gate.set()

    async def fill(self, now_ms: int) -> None:
        self.model.began_ms = now_ms
        client = connect(self.urls[0])
        await preload(client, self.model)
        await client.aclose()

    async def start(self) -> None:
        for number in range(self._writers):
            url = self.urls[number % len(self.urls)]
            client = self._libraries.open(number, url)
            writer = GatedWriter(
                number,
                Place(url),
                self.model,
                self.tally,
                writers=self._writers,
                client=client,
                pipelined=self._pipelined,
            )
            writer.pausable(self._gate, self._busy)
            self._clients.append(writer.client)
            self._tasks.append(asyncio.create_task(writer.run(self._stop, self._per_s)))
        self._tasks.append(asyncio.create_task(self._produce()))
        self._tasks += [
            asyncio.create_task(self._consume(1000 + number)) for number in range(self._consumers)
        ]

    async def _produce(self) -> None:
        client, number = connect(self.urls[0]), 0
        self._clients.append(client)
        while not self._stop.is_set():
            await self._gate.wait()
            job = b"job-%d" % number
            number += 1
            self._busy.add(999)
            try:
                await client.lpush("shop:jobs", job)
                self.model.jobs_pushed.add(job)
                self.tally.acknowledged += 1
            except (redis.RedisError, OSError) as exc:
                self.tally.error(exc)
                self.model.jobs_unknown.add(job)
            finally:
                self._busy.discard(999)
            await asyncio.sleep(0.02)
        await client.aclose()

    async def _consume(self, number: int) -> None:
        client = self._libraries.open(number, self.urls[number % len(self.urls)], blocks=True)
        self._clients.append(client)
        while not self._stop.is_set():
            await self._gate.wait()
            self._busy.add(number)
            try:
                found: Any = await client.brpop(["shop:jobs"], timeout=_BLOCKS_S)  # type: ignore[arg-type]
                if found is not None:
                    self.model.jobs_consumed.append(found[1])
            except (redis.RedisError, OSError) as exc:
                self.tally.error(exc)
                self.model.pops_unknown += 1
                await asyncio.sleep(0.05)
            finally:
                self._busy.discard(number)
        await client.aclose()

    async def pause(self) -> None:
        self._gate.clear()

        async def quiet() -> bool:
            return not self._busy

        await until(quiet, within_s=70, otherwise="the application never came to rest")

    def go_on(self) -> None:
        self._gate.set()

    async def flows(self, count: int = 50, within_s: float = 20) -> None:
        """Wait until writes are acknowledged."""
        wanted = self.tally.acknowledged + count

        async def more() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return self.tally.acknowledged >= wanted

        await until(
            more, within_s=within_s, otherwise=f"writes do not flow: {self.tally.texts[-3:]}"
        )

    async def cancel(self) -> None:
        """End it after a test that failed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=5) if self._tasks else None
        for client in self._clients:
            await client.aclose()

    async def end(self) -> None:
        self._stop.set()
        self._gate.set()
        await asyncio.wait_for(asyncio.gather(*self._tasks), 70)


class Fleet:
    """Start with `open`; everything ends with `close`."""

    def __init__(
        self,
        source: DatabaseServer,
        target: DatabaseServer,
        store: DatabaseServer,
        folder: Path,
        *,
        gateways: int = 2,
        syncers: int = 2,
        **plan: object,
    ) -> None:
        self.servers = {Side.SOURCE: source, Side.TARGET: target}
        self.store_box = store
        self.ports = [free_port() for _ in range(gateways)]
        self.folder = folder
        name = f"f{secrets.token_hex(4)}"
        gateway = {"host": "127.0.0.1", "port": self.ports[0]}
        fields = {"hold_seconds_max": 2.0, "rehearsal_hours_max": None, **plan}
        self.plan = Plan(
            name=name, source=source.address(), target=target.address(), gateway=gateway, **fields
        )  # type: ignore[arg-type]
        self.file = folder / "migration.yaml"
        self._gateways, self._syncers = gateways, syncers
        self.members: dict[str, Member] = {}
        self.store: ControlStore
        self.applications: list[Application] = []
        self.was_authority = {Side.SOURCE}

    def _server(self, box: DatabaseServer) -> dict[str, str]:
        address = box.address()
        return {"url": address.url, "password_file": str(address.password_file)}

    async def open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        more = self.plan.model_dump(mode="json", exclude={"source", "target"})
        sides = {str(side): self._server(box) for side, box in self.servers.items()}
        self.file.write_text(
            yaml.safe_dump({**more, **sides, "control_store": self._server(self.store_box)})
        )
        self.store = await ControlStore.connect(self.store_box.address(), self.plan.name)
        await self.store.save_plan(self.plan)
        for number, port in enumerate(self.ports, 1):
            self._start(
                "gateway",
                f"gateway-{number}",
                "--listen",
                f"127.0.0.1:{port}",
                "--state-dir",
                str(self.folder / f"gateway-{number}"),
            )
        for number in range(1, self._syncers + 1):
            self._start("syncer", f"syncer-{number}")
        await self.everybody(await self.epoch())

    def _start(self, kind: str, name: str, *more: str) -> None:
        command = [
            sys.executable,
            "-m",
            "exodus.cli.app",
            kind,
            "--id",
            name,
            "--file",
            str(self.file),
            *more,
        ]
        self.members[name] = Member(name, command, self.folder / f"{name}.log")

    async def epoch(self) -> int:
        return (await read_route(self.store)).epoch

    async def everybody(self, epoch: int, within_s: float = 30) -> None:
        for kind, count in (("gateway", self._gateways), ("syncer", self._syncers)):
            await registry.wait_for(
                self.store,
                kind,
                lambda beat: beat.epoch >= epoch,
                within_s=within_s,
                otherwise=f"a {kind} does not follow",
                at_least=count,
            )

    async def migrate(self) -> None:
        """Start live sync, and copy everything."""
        route = await read_route(self.store)
        native = self.plan.strategy is CopyStrategy.NATIVE
        feed = Feed.GATEWAY if self.plan.feed is Feed.AUTO else self.plan.feed
        if native:
            await replica.grant_writes(self.plan, route.writer_epoch)
        else:
            await set_writer_epoch(
                Endpoint(Side.TARGET, self.plan.target), self.plan.name, route.writer_epoch
            )
        route = await change_route(
            self.store,
            route,
            route.next(why="test", journal=JournalMode.ALL, sync=True, native=native, feed=feed),
        )
        await self.everybody(route.epoch)
        if native:  # which the syncers make it

            async def up() -> bool:
                return (await link.look(self.plan)).up

            await until(up, within_s=20, otherwise="the target never became a replica")
            return
        engine = await open_engine(self.store, self.plan)
        for piece in await plan_slices(engine.authority, self.plan.slices):
            await copy_slice(engine, "run", piece, budget_s=60)

    def switcher(self, to: Side, stop_before: str = "") -> Switcher:
        return Switcher(self.file, to, stop_before)

    async def settled(self, within_s: float = 40) -> None:
        """Wait until nothing of a switch is left: writes flow, changes flow to the follower, and
        the fence is where it must be and nowhere else.
        """
        state = ""

        async def right() -> bool:
            nonlocal state
            state = await self._what_is_not_right()
            return not state

        try:
            await until(right, within_s=within_s, otherwise="-")
        except AssertionError:
            raise AssertionError(
                f"the fleet is not settled within {within_s} s: {state}; "
                f"{await read_route(self.store)}"
            ) from None

    async def _what_is_not_right(self) -> str:
        try:
            route = await read_route(self.store)
            now_ms = await self.store.now_ms()
            beats = [
                beat
                for kind in ("gateway", "syncer")
                for beat in await registry.heartbeats(self.store, kind)
            ]
        except (redis.RedisError, OSError) as exc:
            return f"the store: {exc}"
        if route.hold is Hold.WRITES or not route.sync:
            return "writes are held, or changes do not flow"
        late = [
            beat.process
            for beat in beats
            if beat.stale(now_ms)
            or beat.epoch != route.epoch
            or beat.state not in ("serving", "syncing")
        ]
        if late or len(beats) != self._gateways + self._syncers:
            return f"late: {late}"
        self.was_authority.add(route.authority)
        for side in Side:
            rules = self.servers[side].client().acl_getuser("default")["categories"]
            fenced = side is not route.authority and side in self.was_authority
            up = await read_record(self.store, side) is not None
            if ("-@write" in rules) is not fenced or up is not fenced:
                return f"the {side} is {'not ' if fenced else ''}fenced: {rules}, recorded: {up}"
        right = self.servers[route.follower].client().get(guard_key(self.plan.name))
        if right != b"%d" % route.writer_epoch:
            return (
                f"the writers' right on the {route.follower} is {right!r}, the route's "
                f"{route.writer_epoch}"
            )
        return ""

    async def agrees(self, application: Application) -> None:
        """Stop the application and check: both sides are equal, and the authority has every
        acknowledged write and nothing else.
        """
        await application.pause()
        paused_ms = await ask_for_beats(self.store)
        feed = JournalFeed(self.store, self.plan.partitions)

        left: list[object] = []

        async def quiet() -> bool:
            beats = await registry.heartbeats(self.store, "gateway")
            # A beat of before the pause knows nothing of the last writes.
            left[:] = [
                (beat.process, beat.at_ms - paused_ms, beat.facts.unflushed)
                for beat in beats
                if beat.facts.unflushed or beat.at_ms < paused_ms
            ]
            if not await feed.drained():
                left.append((await feed.positions(), await feed.synced()))
            return not left

        try:
            await until(quiet, within_s=30, otherwise="-")
        except AssertionError:
            syncers = [
                beat.model_dump() for beat in await registry.heartbeats(self.store, "syncer")
            ]
            raise AssertionError(
                f"the journal never drained: {left}; {await read_route(self.store)}; {syncers}"
            ) from None
        engine = await open_engine(self.store, self.plan)
        report = await verify(engine, settle_s=0.1, attempts=4)
        assert report.divergences == [], report.divergences[:5]
        found = await check(
            application.model,
            f"redis://{application.login}127.0.0.1:{self.servers[engine.route.authority].port}",
        )
        wrong = {name: found[name] for name in ("lost_writes", "duplicated", "resurrected_keys")}
        assert wrong == {"lost_writes": 0, "duplicated": 0, "resurrected_keys": 0}, (
            found["problems"],
            application.tally.texts[-5:],
        )
        assert found["keys_checked"] > application.model.keys // 2
        application.go_on()

    async def application(self, **more: Any) -> Application:
        """Return one that has filled its keys and writes."""
        application = Application(
            self.ports, **{"seed": 7, "keys": 500, "writers": 6, "writes_per_s": 400, **more}
        )
        self.applications.append(application)
        await application.fill(int(time.time() * 1000))
        await self.migrate()
        await application.start()
        return application

    async def close(self) -> None:
        for application in self.applications:
            await application.cancel()
        for member in self.members.values():
            member.signal(signal.SIGCONT)
            member.signal(signal.SIGTERM)
        for member in self.members.values():
            try:
                await asyncio.to_thread(member.process.wait, 10)
            except subprocess.TimeoutExpired:
                member.kill()
        await self.store.close()


class Switcher:
    """`tests/support/switcher.py`, as a process."""

    def __init__(self, file: Path, to: Side, stop_before: str) -> None:
        self.to, self._stop_before = to, stop_before
        self.said: list[str] = []
        self._file = file
        self.clock = WallClock(file.with_name("switcher.clock"))
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.switcher",
            str(self._file),
            str(self.to),
            "--stop-before",
            self._stop_before,
            cwd=ROOT,
            env=self.clock.environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )

    async def _line(self) -> str:
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode().strip()
        self.said.append(line)
        return line

    async def reached(self) -> bool:
        """Wait until it stands before its step; False if it ended earlier."""
        while line := await self._line():
            if line == f"step {self._stop_before}":
                return True
            if line.startswith("{"):
                return False
        return False

    def go_on(self) -> None:
        assert self.process.stdin is not None
        if self.process.returncode is None:
            self.process.stdin.write(b"\n")

    def signal(self, number: int) -> None:
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def ended(self, within_s: float = 90) -> dict:
        """Return its report; `{"outcome": "killed"}` if it made none."""
        async with asyncio.timeout(within_s):
            while not self.said or not self.said[-1].startswith("{"):
                if not await self._line():
                    break
            await self.process.wait()
        told = [line for line in self.said if line.startswith("{")]
        return json.loads(told[-1]) if told else {"outcome": "killed"}
