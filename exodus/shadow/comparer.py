"""The comparer: a process that tries sampled requests on the target, compares what comes back, and
keeps a ledger of divergences.

What is tried is what the authority answered without an error (gateways publish nothing else), and
of that only commands of an allow-list (`semantics.COMPARED_READS`, `COMPARED_WRITES`): Compare runs
it with Exodus's rights. Where the plan names an application's user of the target (`compare_user`),
it runs as that user, and what the list leaves out is tried too. What takes too long is tried no
more.

Scripts run only where the plan says `compare_scripts`: read-only ones, as `compare_user`, on the
target. Exodus never runs an application's script on the source.

`copies.py` keeps the sampled keys on the target, `verdicts.py` judges replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

from exodus.cancellation import end_all
from exodus.commands.table import CommandTable
from exodus.control import journal
from exodus.control.changes import pack
from exodus.control.heartbeats import ComparerFacts, ComparerHeartbeat, ProcessKind, ProcessState
from exodus.control.process import STORE_ERRORS, RouteFollower
from exodus.control.route import Route
from exodus.control.store import ControlStore
from exodus.copy.key import Failure
from exodus.engine import Engine, open_engine
from exodus.errors import ExodusError
from exodus.net.client import answered
from exodus.net.leg import Leg, ReplyError
from exodus.plan.address import Place
from exodus.plan.bounds import COMPARE_LOOKS_S
from exodus.plan.plan import Plan
from exodus.plan.sample import KeySample
from exodus.plan.vocabulary import Side, UserRole
from exodus.shadow import divergences
from exodus.shadow.copies import CopiesState, SampledCopies
from exodus.shadow.exchange import Exchange, Unreadable
from exodus.shadow.investigation import Baseline, Investigation
from exodus.shadow.reports import Reporter, Writes
from exodus.shadow.rules import Rules
from exodus.shadow.sweep import Sweep
from exodus.shadow.trials import Slow, TrialConnection, kill_script
from exodus.shadow.verdicts import Judge, Tally
from exodus.telemetry.sample import Sample
from exodus.telemetry.states import WAITS
from exodus.topology.watch import TopologyWatch

log = logging.getLogger(__name__)
_BATCH = 200
_WAIT_MS = 200
_WAIT_PENDING_MS = 20  # while replies are to be asked for again


class Comparer(RouteFollower):
    """The process: it follows the route, and compares while the route asks for shadow traffic."""

    kind = ProcessKind.COMPARER

    def __init__(
        self,
        store: ControlStore,
        plan: Plan,
        process: str,
        *,
        looks_s: Sequence[float] = COMPARE_LOOKS_S,
    ) -> None:
        """A difference is asked for again after each pause of `looks_s`."""
        super().__init__(store, process, log)
        self._looks_s = looks_s
        self._plan = plan.acting(UserRole.COMPARER)
        self._topology = TopologyWatch(self._plan, store)
        self._work: asyncio.Task[None] | None = None
        self._opened = False  # the sampled requests are read from a known position on
        self._tally = Tally()
        self._copies = CopiesState({})
        self._slow = Slow()
        self._baseline: Baseline | None = None
        self._writes = Writes()
        self._reporter: Reporter | None = None
        self._states_compared = 0
        self._behind = 0
        self._pending = 0
        self._sample = KeySample()
        self._rules = Rules(plan.compare_rules)

    def _works(self) -> tuple[Coroutine[Any, Any, None], ...]:
        return (self._topology.run(),)

    async def _follow(self, route: Route) -> None:
        if route.epoch == self._route.epoch:
            return
        before, self._route = self._route, route
        self._sample = route.sample
        on, was_on = route.shadow_rate > 0, before.shadow_rate > 0
        if on != was_on or _work_of(route) != _work_of(before):
            await self._stop_work()
            if on:
                self._tally = Tally()
                self._slow = Slow()
                self._baseline, self._states_compared = None, 0
                self._work = self._tasks.keep_running(partial(self._keep_comparing, route))
        self._beat_now.set()

    async def _stop_work(self) -> None:
        await end_all([self._work])
        self._work = None
        self._opened = False

    async def _keep_comparing(self, route: Route) -> None:
        shadow_at: bytes | None = None
        while True:
            try:
                if shadow_at is None:
                    shadow_at = await self._begin()
                # Its server refuses everything else, the engine's first look included.
                if self._slow.script_runs:
                    await self._kill_left_script(route)
                engine = await open_engine(self._store, self._plan, route)
                async with contextlib.AsyncExitStack() as opened:
                    copies, judge, sweep = await self._open(engine, opened)
                    sample = self._sample
                    self._why = ""
                    self._states.away("comparing", "", verbs=WAITS)
                    while True:
                        if self._sample != sample:
                            sample = self._sample
                            await copies.follow(sample)
                        shadow_at = await self._batch(judge, copies, shadow_at)
                        await judge.look_again()
                        await sweep.step()
                        self._pending = judge.pending + sweep.suspects
                        self._states_compared += sweep.taken()
            except (ExodusError, ReplyError, *STORE_ERRORS) as exc:
                self._why = (
                    exc.what if isinstance(exc, ExodusError) else f"{type(exc).__name__}: {exc}"
                )
                self._states.away("comparing", self._why, verbs=WAITS)
                await asyncio.sleep(0.5)

    async def _begin(self) -> bytes:
        """Note from where on sampled requests and the journal are read; the request's position."""
        shadow_at = await self._last_id()
        self._copies = CopiesState(await journal.ends(self._store, self._plan.partitions))
        self._opened = True
        self._beat_now.set()
        return shadow_at

    async def _open(
        self, engine: Engine, opened: contextlib.AsyncExitStack
    ) -> tuple[SampledCopies, Judge, Sweep]:
        """Open the connections to both sides."""
        ours = await opened.enter_async_context(
            await engine.follower.connect(name="exodus-compare")
        )
        authority = await self._tries(
            (await engine.authority.any_node()).place, engine.route.authority, opened
        )
        follower = await self._tries(
            self._as_application(ours.place), engine.route.follower, opened
        )
        copier = await engine.copier(engine.guard(), name="exodus-compare")
        opened.push_async_callback(copier.close)
        async with await engine.authority_leg(name="exodus-compare") as asked:
            table = CommandTable.from_replies(await asked.call("COMMAND"))

        async def not_copied(failure: Failure) -> None:
            await reporter.not_copied(failure)

        copies = SampledCopies(engine, copier, ours, self._copies, not_copied, self._sample)
        investigation = Investigation(engine, copies, copier, ours)
        opened.push_async_callback(investigation.close)
        if self._baseline is None:
            self._baseline = await investigation.baseline()
            await divergences.begin(self._store)
        reporter = Reporter(
            self._store,
            investigation,
            self._baseline,
            self._writes,
            masked=self._plan.compare_masked,
        )
        self._reporter = reporter
        await reporter.begin()
        now = asyncio.get_running_loop().time
        judge = Judge(
            engine,
            copies,
            authority,
            follower,
            ours,
            table,
            self._slow,
            self._rules,
            self._tally,
            reporter,
            now,
            self._looks_s,
        )
        return copies, judge, Sweep(copies, investigation, reporter, now, self._looks_s)

    async def _kill_left_script(self, route: Route) -> None:
        """End the script that a lost connection left on the follower."""
        async with await Leg.connect(
            self._plan.address(route.follower), route.follower, name=""
        ) as ours:
            await kill_script(ours)
        self._slow.script_runs = False

    async def _tries(
        self, place: Place, side: Side, opened: contextlib.AsyncExitStack
    ) -> TrialConnection:
        tries = TrialConnection(await Leg.connect(place, side, name="exodus-compare"))
        opened.push_async_callback(tries.close)
        return tries

    def _as_application(self, place: Place) -> Place:
        user = self._plan.compare_user
        return place if user is None else user.at(place)

    async def _last_id(self) -> bytes:
        found = await answered(self._store.client.xrevrange(self._store.keys.shadow, count=1))
        return found[0][0] if found else b"0-0"

    async def _batch(self, judge: Judge, copies: SampledCopies, after: bytes) -> bytes:
        """Judge the next sampled requests, or keep the copies up while there are none."""
        name = self._store.keys.shadow
        found = await answered(
            self._store.client.xread(
                {name: after},
                count=_BATCH,
                block=_WAIT_PENDING_MS if judge.pending else _WAIT_MS,
            )
        )
        if not found:
            self._behind = 0
            await copies.keep_up()
            return after
        entries = next(iter(found.values()))[0] if isinstance(found, dict) else found[0][1]
        await judge.take(self._exchanges(entries))
        self._behind = len(entries)
        return bytes(entries[-1][0])

    def _exchanges(self, entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> Iterable[Exchange]:
        for entry_id, fields in entries:
            try:
                yield Exchange.of(entry_id, fields)
            except Unreadable as exc:
                self._tally.not_tried["an entry of the shadow stream cannot be read"] += 1
                log.warning("the shadow stream: %s", exc)

    async def _measure(self, now_ms: int, *, asked: bool) -> None:
        """Raise what ended the work, if anything but the route did: the process ends by it."""
        del now_ms, asked
        await self._tell_judged()
        if self._work is not None and self._work.done() and not self._work.cancelled():
            self._work.result()

    async def _tell_judged(self) -> None:
        """Add the keys that were judged to those of the run: a sketch, which runs can be added
        from.
        """
        untold = self._copies.untold
        if not untold:
            return
        name = self._store.keys.judged(self._route.shadow_salt)
        pipe = self._store.client.pipeline(transaction=False)
        pipe.pfadd(name, *[pack([key]) for key in untold])
        pipe.expire(name, int(self._plan.evidence_hours_max * 3_600))
        self._copies.untold = []
        await pipe.execute()

    def heartbeat(self, at_ms: int) -> ComparerHeartbeat:
        """What this process says of itself."""
        return ComparerHeartbeat(
            process=self.process,
            at_ms=at_ms,
            epoch=self._route.epoch,
            state=ProcessState.COMPARING if self._opened else ProcessState.IDLE,
            why=self._store_why or self._tasks.why or self._why,
            facts=ComparerFacts(
                behind=self._behind,
                pending=self._pending,
                rows={name: dict(row) for name, row in self._tally.rows.items()},
                inconclusive=dict(self._tally.inconclusive),
                not_tried=dict(self._tally.not_tried),
                keys=len(self._copies.keys),
                keys_judged=len(self._copies.judged),
                dirty=self._copies.dirty,
                lags_ms=list(self._copies.lags_ms),
                divergences_lost=self._reporter.lost if self._reporter is not None else 0,
                states_compared=self._states_compared,
                keys_refused=self._copies.refused,
                task_failures=self._tasks.failures,
            ),
        )

    def metrics(self) -> Iterable[Sample]:
        """For Prometheus."""
        for name, row in list(self._tally.rows.items()):
            for outcome, count in row.items():
                yield (
                    "exodus_comparer_replies_total",
                    "sampled replies by outcome",
                    {"command": name, "outcome": outcome},
                    count,
                )


def _work_of(route: Route) -> tuple[object, ...]:
    """Return what the work depends on: a change of it ends one sampling and begins another."""
    return route.shadow_salt, route.authority, route.sync, route.native, route.writer_epoch


async def run_comparer(store: ControlStore, plan: Plan, process: str) -> None:
    """`exodus comparer`."""
    comparer = Comparer(store, plan, process)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, comparer.stop)
    await comparer.run()
