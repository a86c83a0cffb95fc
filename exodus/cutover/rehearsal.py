"""The rehearsal: the switch there and back, for sessions of a reserved key prefix only.

A session with the rehearsal's client name (CLIENT SETNAME) follows orders of its own in every
gateway. So the rehearsal holds, moves, and releases sessions as a cutover does, while applications
notice nothing. The name is drawn anew for each rehearsal and only the route has it, so no
application has it by chance. Keys under the reserved prefix are copied in both directions by
`sync(key)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import redis.asyncio as redis

from exodus.control import ledger, registry
from exodus.control.route import Route, change_route, read_route
from exodus.control.store import ControlStore
from exodus.copy.guard import set_writer_epoch
from exodus.engine import open_engine
from exodus.errors import CutoverAborted, DecisionRefused, ExodusError
from exodus.feeds.feed import JournalFeed
from exodus.net.client import answered, make_client
from exodus.net.leg import Leg
from exodus.plan.address import Address
from exodus.plan.bounds import CONNECT_TIMEOUT_S, REHEARSAL_SESSIONS, REHEARSAL_WITHIN_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Hold, Side
from exodus.topology.applications import connect_as_application, takes_nobody
from exodus.topology.endpoint import Endpoint
from exodus.verify.reconcile import copy_now

_HOUR_MS = 3_600_000
REPORT = "rehearsal"


class _Writers:
    """Sessions of the prefix that increment counters, and two that push and blocked-pop; they
    remember what was acknowledged.

    A counter belongs to one session, so each answer must be one more than the last: a state that
    was put back is seen at once, though later increments would hide it.
    """

    def __init__(self, gateway: Address, prefix: str, name: str, *, timeout_s: float) -> None:
        self.acknowledged: dict[str, int] = {}
        self.count = 0
        self.lost = 0
        self.errors: list[str] = []
        self.stall_ms_max = 0.0
        self._prefix = prefix
        self._jobs = f"{prefix}jobs"
        self._pushed: set[bytes] = set()
        self._popped: list[bytes] = []
        self._stop = asyncio.Event()
        # Never sent twice by the client itself, which would be counted as ours.
        self._clients = [
            make_client(
                gateway,
                field="gateway",
                timeout_s=timeout_s,
                client_name=name,
                single_connection_client=True,
            )
            for _ in range(REHEARSAL_SESSIONS + 2)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to write, once all sessions are there: one that comes while the prefix is switched
        is ended, and over TLS that takes a while.
        """
        await asyncio.gather(*map(self._come, self._clients))
        *counting, pushing, popping = self._clients
        work = [self._write(client, number) for number, client in enumerate(counting)]
        self._tasks = [
            asyncio.create_task(each) for each in (*work, self._push(pushing), self._pop(popping))
        ]

    async def _come(self, client: redis.Redis) -> None:
        try:
            await answered(client.ping())
        except redis.RedisError as exc:
            self._failed(exc)

    def _failed(self, exc: redis.RedisError) -> None:
        self.errors.append(f"{type(exc).__name__}: {exc}"[:200])

    async def _write(self, client: redis.Redis, number: int) -> None:
        step = 0
        while not self._stop.is_set():
            key = f"{self._prefix}counter:{number}:{step % 20}"
            with self._timed():
                value = int(await answered(client.incr(key)))
                self.lost += max(0, self.acknowledged.get(key, 0) + 1 - value)
                self.acknowledged[key] = value
            step += 1
            await asyncio.sleep(0.002)

    async def _push(self, client: redis.Redis) -> None:
        while not self._stop.is_set():
            job = b"%d" % len(self._pushed)
            with self._timed():
                await answered(client.rpush(self._jobs, job))
                self._pushed.add(job)
            await asyncio.sleep(0.02)

    async def _pop(self, client: redis.Redis) -> None:
        while not self._stop.is_set():
            with self._timed(stall=False):  # it waits because it is asked to
                found = await answered(client.blpop([self._jobs], timeout=1))
                if found is not None:
                    self._popped.append(found[1])
            await asyncio.sleep(0.002)  # a gateway that is away refuses at once

    @contextlib.contextmanager
    def _timed(self, *, stall: bool = True) -> Iterator[None]:
        """Around one request."""
        began = time.monotonic()
        try:
            yield
            self.count += 1
        except redis.RedisError as exc:
            self._failed(exc)
        if stall:
            self.stall_ms_max = max(self.stall_ms_max, (time.monotonic() - began) * 1000)

    async def stop(self) -> None:
        """End, and wait for what is under way."""
        self._stop.set()
        await asyncio.gather(*self._tasks)
        for client in self._clients:
            await client.aclose()

    async def lost_on(self, leg: Leg) -> int:
        """Return how many acknowledged writes `leg`'s side has not, and those that were missed on
        the way: increments, and jobs that came never or twice.
        """
        values = await leg.pipeline([("GET", key) for key in self.acknowledged])
        behind = sum(
            max(0, wanted - int(value or 0))
            for wanted, value in zip(self.acknowledged.values(), values, strict=True)
        )
        left = await leg.call("LRANGE", self._jobs, 0, -1)
        found = Counter([*self._popped, *left])
        return self.lost + behind + sum(found[job] != 1 for job in self._pushed)


async def rehearse(store: ControlStore, plan: Plan) -> dict[str, Any]:
    """Switch the reserved prefix to the target and back under writes; the findings as JSON, also
    kept as report `rehearsal`, failed or not.

    Raises:
        OperatorError: no gateway answers at the plan's `gateway`.
        CutoverAborted: a step was not done in time; the prefix is back at the source.
        DecisionRefused: the target is a replica now.
    """
    at_ms = await store.now_ms()
    if (await read_route(store)).native:
        raise DecisionRefused(
            "the switch cannot be rehearsed now",
            why="the target is the source's replica and takes no writes, not even a rehearsal's",
            next_step="rehearse in the phase Test, before Migrate; exodus start rollback ends the "
            "replication",
        )
    try:
        found = await _rehearse(store, plan)
    except ExodusError as exc:
        await store.save_report(
            REPORT, {"at_ms": at_ms, "ok": False, "why": f"{exc.what}: {exc.why}"}
        )
        raise
    bad = [
        f"{found[name]} {name.replace('_', ' ')}"
        for name in ("lost_writes", "error_count")
        if found[name]
    ]
    found = {**found, "at_ms": at_ms, "ok": not bad, "why": ", ".join(bad)}
    await store.save_report(REPORT, found)
    return found


async def check_rehearsal(store: ControlStore, plan: Plan) -> str:
    """When the switch was rehearsed, in words.

    Raises:
        DecisionRefused: never, longer ago than `rehearsal_hours_max`, or it failed.
    """
    if plan.rehearsal_hours_max is None:
        return "no rehearsal is asked for"
    found = await store.report(REPORT)
    age_h = (await store.now_ms() - found["at_ms"]) / _HOUR_MS if found is not None else 0.0
    if found is None:
        why = "the switch was never rehearsed"
    elif (
        voided := ledger.voided_ms(await ledger.read(store), ledger.REHEARSAL)
    ) is not None and voided >= found["at_ms"]:
        why = (
            f"the plan was changed after the last rehearsal, {age_h:.1f} h ago, in what it "
            "rehearses"
        )
    elif not found["ok"]:
        why = f"the last rehearsal, {age_h:.1f} h ago, did not go well: {found['why']}"
    elif age_h > plan.rehearsal_hours_max:
        why = (
            f"the last rehearsal is {age_h:.1f} h old, and counts for "
            f"{plan.rehearsal_hours_max:.0f} h (rehearsal_hours_max)"
        )
    else:
        return f"rehearsed {age_h:.1f} h ago, longest stall {found['stall_ms_max']} ms"
    raise DecisionRefused(
        "a cutover needs a rehearsal",
        why=why,
        next_step="exodus start test, which rehearses it, then start commit again",
    )


async def _rehearse(store: ControlStore, plan: Plan) -> dict[str, Any]:
    prefix = plan.rehearsal_prefix
    route = await read_route(store)
    target = Endpoint(Side.TARGET, plan.target)
    await set_writer_epoch(target, plan.name, route.writer_epoch)
    await set_writer_epoch(Endpoint(Side.SOURCE, plan.source), plan.name, route.writer_epoch)
    gateway = await _login(plan)
    # An answer may come as late as a hold may take.
    name = f"exodus-rehearsal-{secrets.token_hex(16)}"
    writers = _Writers(gateway, prefix, name, timeout_s=plan.hold_seconds_max + CONNECT_TIMEOUT_S)
    rows: list[dict[str, Any]] = []
    route = await _change(
        store,
        route,
        rehearsal_prefix=prefix,
        rehearsal_name=name,
        rehearsal_authority=Side.SOURCE,
        rehearsal_hold=Hold.NONE,
    )
    try:
        await writers.start()
        for to in (Side.TARGET, Side.SOURCE):
            await asyncio.sleep(0.3)
            route, row = await _switch_prefix(store, plan, route, to)
            rows.append(row)
        await asyncio.sleep(0.2)
    finally:
        await writers.stop()
        route = await read_route(store)
        route = await _change(
            store,
            route,
            rehearsal_prefix=None,
            rehearsal_name=None,
            rehearsal_authority=Side.SOURCE,
            rehearsal_hold=Hold.NONE,
        )
        async with await Endpoint(Side.SOURCE, plan.source).connect(name="exodus-rehearsal") as leg:
            lost = await writers.lost_on(leg)
        await _clean(plan, prefix)
    return {
        "switches": rows,
        "acknowledged_writes": writers.count,
        "lost_writes": lost,
        "errors": writers.errors[:20],
        "error_count": len(writers.errors),
        "stall_ms_max": round(writers.stall_ms_max, 1),
    }


async def _login(plan: Plan) -> Address:
    """Return the gateway with the login of the rehearsal's sessions: none where both sides take
    that.

    Else Exodus's own, which the gateways say to each side as that side's own (`Logins.with_own`).
    """
    mapped = any(login.secret() is None for login in plan.logins)
    async with await connect_as_application(plan, Side.SOURCE, name="exodus-rehearsal") as leg:
        address = leg.address
    if mapped or await takes_nobody(plan, Side.TARGET):
        return address
    return plan.through_gateway(Side.SOURCE)


async def _change(store: ControlStore, route: Route, **changes: object) -> Route:
    after = await change_route(store, route, route.next(why="rehearsal", **changes))
    await registry.wait_for_gateways(
        store,
        lambda beat: beat.epoch == after.epoch,
        within_s=REHEARSAL_WITHIN_S,
        otherwise="a gateway did not follow the rehearsal",
    )
    return after


async def _switch_prefix(
    store: ControlStore, plan: Plan, route: Route, to: Side
) -> tuple[Route, dict[str, Any]]:
    began = time.monotonic()
    try:
        route = await change_route(
            store, route, route.next(why=f"rehearsal: hold for {to}", rehearsal_hold=Hold.WRITES)
        )
        epoch = route.epoch
        await registry.wait_for_gateways(
            store,
            lambda beat: beat.epoch == epoch and beat.facts.rehearsal_held,
            within_s=plan.hold_seconds_max,
            otherwise="a gateway could not hold the rehearsal's writes",
        )
        if route.sync:
            await _synced(store, plan)
        copied = await _copy_prefix(store, plan, to)
        route = await _change(store, route, rehearsal_authority=to)
    except CutoverAborted:
        await _change(store, await read_route(store), rehearsal_hold=Hold.NONE)
        raise
    route = await _change(store, route, rehearsal_hold=Hold.NONE)
    return route, {
        "to": str(to),
        "hold_ms": round((time.monotonic() - began) * 1000, 1),
        "keys": copied,
    }


async def _synced(store: ControlStore, plan: Plan) -> None:
    """Wait until live sync has no change of the prefix left: later it would put an older state over
    what is written at the other side.
    """
    feed, prefix = JournalFeed(store, plan.partitions), plan.rehearsal_prefix.encode()
    deadline = time.monotonic() + plan.hold_seconds_max
    # Not what is in the journal by now: a key that changed while it was copied is marked once more,
    # behind that, and a barrier marks every key.
    while (left := await feed.changes_since(await feed.synced())).barriers or any(
        key.startswith(prefix) for _, key in left.keys
    ):
        if time.monotonic() > deadline:
            raise CutoverAborted(
                "live sync did not come to the rehearsal's keys",
                why="it is behind",
                next_step="exodus status; rehearse again later",
            )
        await asyncio.sleep(0.005)


async def _copy_prefix(store: ControlStore, plan: Plan, to: Side) -> int:
    """Make the prefix's keys on `to` equal to the other side's. Not by live sync, which goes one
    way only, and has nothing of these keys to do.
    """
    route = await read_route(store)
    engine = await open_engine(store, plan, route.model_copy(update={"authority": to.other}))
    keys = [
        (0, key)
        for side in (engine.authority, engine.follower)
        for key in await _prefix_keys(side, plan.rehearsal_prefix)
    ]
    failed = await copy_now(engine, list(dict.fromkeys(keys)))
    if failed:
        raise CutoverAborted(
            f"{failed} keys of the rehearsal could not be carried to the {to}",
            why="see dead letters",
            next_step="exodus status --json",
        )
    return len(keys)


async def _prefix_keys(side: Endpoint, prefix: str) -> list[bytes]:
    found: list[bytes] = []
    for node in await side.each_node():
        async with await node.connect(name="exodus-rehearsal") as leg:
            cursor = b"0"
            while True:
                cursor, keys = await leg.call("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", 1000)
                found.extend(keys)
                if cursor == b"0":
                    break
    return found


async def _clean(plan: Plan, prefix: str) -> None:
    for side in Side:
        endpoint = Endpoint(side, plan.address(side))
        keys = await _prefix_keys(endpoint, prefix)
        async with await endpoint.connect(name="exodus-rehearsal") as leg:
            await leg.pipeline([("UNLINK", key) for key in keys])
