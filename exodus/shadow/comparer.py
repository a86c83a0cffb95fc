"""The comparer: a process that tries sampled requests on the target, compares what comes back, and
keeps a ledger of divergences.

What is tried is what the authority answered without an error (gateways publish nothing else), and
of that only commands of an allow-list (`semantics.COMPARED_READS`, `COMPARED_WRITES`): Compare runs
it with Exodus's rights. Where the plan names an application's user of the target (`compare_user`),
it runs as that user, and what the list leaves out is tried too. What takes too long is tried no
more.

Scripts run only where the plan says `compare_scripts`, as `compare_user`, on the target; those that
may write on scratch copies, and only where that user cannot leave the database. Exodus never runs
an application's script on the source.

`copies.py` keeps the sampled keys on the target, `verdicts.py` judges replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from exodus.cancellation import end_all
from exodus.commands.table import CommandTable
from exodus.control import journal
from exodus.control.changes import Key, id_order, pack
from exodus.control.heartbeats import ComparerFacts, ComparerHeartbeat, ProcessKind, ProcessState
from exodus.control.process import STORE_ERRORS, RouteProcess
from exodus.control.route import Route
from exodus.control.shadow_pairs import UnreadablePairs, unpack_pairs
from exodus.control.store import ControlStore
from exodus.copy.key import Failure
from exodus.engine import Engine, open_engine
from exodus.errors import ExodusError
from exodus.net.client import answered
from exodus.net.leg import Leg, ReplyError
from exodus.plan.address import Cluster, Place
from exodus.plan.bounds import (
    COMPARE_ENTRIES,
    COMPARE_LOOKS_S,
    COMPARE_STEP_TOLD_S,
    COMPARE_WAIT_MS,
    COMPARE_WAIT_PENDING_MS,
)
from exodus.plan.plan import Plan
from exodus.plan.sample import KeySample
from exodus.plan.vocabulary import Side, UserRole
from exodus.shadow import divergences, resume
from exodus.shadow.cluster_trials import ClusterTrials
from exodus.shadow.copies import CopiesState, SampledCopies
from exodus.shadow.exchange import Exchange
from exodus.shadow.investigation import Baseline, Investigation
from exodus.shadow.lives import Lives
from exodus.shadow.pace import BothPaces, both_paces
from exodus.shadow.reports import Reporter, Writes
from exodus.shadow.requests import Requests
from exodus.shadow.resume import work_of
from exodus.shadow.rules import Rules
from exodus.shadow.scratch import Scratch, remove_left, scratch_database
from exodus.shadow.scratch_cluster import ClusterScratch
from exodus.shadow.sweep import Sweep
from exodus.shadow.tally import Intake, Tally
from exodus.shadow.trials import (
    Slow,
    TrialConnection,
    Trials,
    kill_script,
    try_no_more,
    unconfined,
)
from exodus.shadow.verdicts import Judge
from exodus.shadow.write_replies import WriteReplies
from exodus.telemetry.sample import Sample
from exodus.telemetry.states import WAITS
from exodus.topology.endpoint import Endpoint
from exodus.topology.watch import TopologyWatch

log = logging.getLogger(__name__)
_ALWAYS = 2**63  # a time that never comes


class Comparer(RouteProcess):
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
        self._judge: Judge | None = None
        self._replies: WriteReplies | None = None
        self._shadow_at: bytes | None = None  # the last sampled request that was taken
        self._told_until_ms = _ALWAYS  # up to which time sampled requests were taken
        self._tally = Tally()
        self._intake = Intake()
        self._copies = CopiesState({})
        self._slow = Slow()
        self._baseline: Baseline | None = None
        self._away_ms = 0  # for which no comparer ran
        self._lost_before = 0  # rows that the ledger had no room for, over earlier connections
        self._writes = Writes()
        self._reporter: Reporter | None = None
        self._pace = BothPaces()
        self._states_compared = 0
        self._step_began: float | None = None  # by the event loop's clock
        self._behind = 0
        self._pending = 0
        self._sample = KeySample()
        self._rules = Rules(plan.compare_rules, masked=plan.compare_masked)

    def _works(self) -> tuple[Coroutine[Any, Any, None], ...]:
        return (self._topology.run(),)

    async def _follow(self, route: Route) -> None:
        if route.epoch == self._route.epoch:
            return
        before, self._route = self._route, route
        self._sample = route.sample
        on, was_on = route.shadow_rate > 0, before.shadow_rate > 0
        if on != was_on or work_of(route) != work_of(before):
            await self._stop_work()
            if on:
                self._tally = Tally()
                self._slow = Slow()
                self._baseline, self._states_compared, self._away_ms = None, 0, 0
                self._reporter, self._lost_before = None, 0
                self._judge = self._replies = self._shadow_at = None
                self._intake = Intake()
                self._work = self._tasks.keep_running(partial(self._keep_comparing, route))
        self._beat_now.set()

    async def _stop_work(self) -> None:
        self._opened = False  # before its end, which may take a while
        await end_all([self._work])
        self._work = self._step_began = None
        self._pace = BothPaces()

    async def _keep_comparing(self, route: Route) -> None:
        while True:
            try:
                if self._shadow_at is None:
                    await self._begin(route)
                # Its server refuses everything else, the engine's first look included.
                if self._slow.script_runs:
                    await self._kill_left_script(route)
                engine = await open_engine(self._store, self._plan, route)
                async with contextlib.AsyncExitStack() as opened:
                    copies, judge, replies, sweep = await self._open(engine, opened)
                    sample = self._sample
                    await copies.follow(sample)  # it may have changed while no comparer ran
                    await copies.copy_again(engine.run_ids, await self._open_keys())
                    self._why = ""
                    self._states.away("comparing", "", verbs=WAITS)
                    while True:
                        self._step_began = asyncio.get_running_loop().time()
                        if self._sample != sample:
                            sample = self._sample
                            await copies.follow(sample)
                        await self._batch(judge, copies)
                        await judge.look_again()
                        await replies.step(self._told_until_ms)
                        await sweep.step()
                        self._pending = judge.pending + replies.waiting.total() + sweep.suspects
                        self._states_compared += sweep.taken()
            except (ExodusError, ReplyError, *STORE_ERRORS) as exc:
                self._step_began, self._pace = None, BothPaces()
                if self._judge is not None:
                    self._judge.give_up()
                self._why = (
                    exc.what if isinstance(exc, ExodusError) else f"{type(exc).__name__}: {exc}"
                )
                self._states.away("comparing", self._why, verbs=WAITS)
                await asyncio.sleep(0.5)

    async def _begin(self, route: Route) -> None:
        """Take the sampling up where another comparer left it; else note from where on sampled
        requests and the journal are read.
        """
        store = self._store
        left = await resume.load(store, route)
        if left is None:
            # What an earlier sampling seeded is not known to be a copy of now.
            await answered(store.client.delete(store.keys.sampling, store.keys.seeding))
            shadow_at, published = await self._published()
            self._intake = Intake(before=published)
            self._copies = CopiesState(await journal.ends(store, self._plan.partitions))
        else:
            shadow_at = left.shadow_at.encode()
            self._copies = await resume.copies_of(store, left)
            self._tally, self._intake = resume.tally_of(left), Intake(**left.intake)
            self._baseline = Baseline(**left.baseline) if left.baseline else None
            self._states_compared, self._lost_before = left.states_compared, left.lost
            self._away_ms = left.away_ms + await store.now_ms() - left.at_ms
            await divergences.begin(store)  # what was pending is counted as inconclusive
        self._shadow_at = shadow_at
        self._opened = True
        self._beat_now.set()

    async def _open(
        self, engine: Engine, opened: contextlib.AsyncExitStack
    ) -> tuple[SampledCopies, Judge, WriteReplies, Sweep]:
        """Open the connections to both sides."""
        self._pace = await opened.enter_async_context(both_paces(engine))
        turn = self._pace.turn
        ours = await opened.enter_async_context(
            await engine.follower.connect(name="exodus-compare")
        )
        authority = await self._tries(engine.authority.place, engine.route.authority, opened)
        follower = await self._tries(
            self._as_application(ours.place), engine.route.follower, opened, enters=ours.place
        )
        copier = await engine.copier(engine.guard(), name="exodus-compare")
        opened.push_async_callback(copier.close)
        copier.turn = turn
        async with await engine.authority_leg(name="exodus-compare") as asked:
            table = CommandTable.from_replies(await asked.call("COMMAND"))

        async def not_copied(failure: Failure) -> None:
            await reporter.not_copied(failure)

        copies = SampledCopies(engine, copier, ours, self._copies, not_copied, self._sample, turn)
        investigation = Investigation(engine, copies, copier, ours, turn)
        opened.push_async_callback(investigation.close)
        if self._baseline is None:
            self._baseline = await investigation.baseline()
        await divergences.begin(self._store)  # pending rows are of connections before these
        reporter = Reporter(
            self._store,
            investigation,
            self._baseline,
            self._writes,
            masked=self._plan.compare_masked,
        )
        self._lost_before, self._reporter = self._lost, reporter
        await reporter.begin()
        now = asyncio.get_running_loop().time
        requests = Requests(table, engine.scope, self._rules)
        await remove_left(self._store, ours)
        scripts = await self._tries_scripts(engine, ours.place, opened)
        scratch = await _scratch(engine, ours, follower, requests.table, opened, scripts)
        lives = Lives(engine, now)

        async def too_slow(command: bytes, script: bool) -> None:
            tries = [follower] if scripts is None else [follower, scripts]
            await try_no_more(command, self._slow, tries, ours, script=script)

        replies = WriteReplies(
            engine, copies, scratch, requests, self._tally, reporter, lives, too_slow, now, turn
        )
        judge = Judge(
            engine,
            copies,
            authority,
            follower,
            ours,
            scratch,
            requests,
            replies,
            self._slow,
            self._tally,
            reporter,
            lives,
            too_slow,
            now,
            self._looks_s,
            await unconfined(self._plan, follower, ours),
            turn,
        )
        self._judge, self._replies = judge, replies
        sweep = Sweep(copies, investigation, reporter, lives, now, self._looks_s, turn)
        return copies, judge, replies, sweep

    async def _kill_left_script(self, route: Route) -> None:
        """End the script that a lost connection left on the follower."""
        endpoint = Endpoint(route.follower, self._plan.address(route.follower))
        for node in await endpoint.each_node():
            async with await node.connect(name="") as ours:
                await kill_script(ours)
        self._slow.script_runs = False

    async def _open_keys(self) -> set[Key]:
        """Return the keys of open divergences."""
        rows = await divergences.rows(self._store)
        return {divergences.key_of(row) for row in rows if divergences.is_open(row)}

    async def _tries(
        self,
        place: Place,
        side: Side,
        opened: contextlib.AsyncExitStack,
        *,
        enters: Place | None = None,
    ) -> Trials:
        tries: Trials
        if isinstance(place, Cluster):
            within = enters if isinstance(enters, Cluster) else None
            tries = ClusterTrials(place, side, self._slow, name="exodus-compare", enters=within)
        else:
            leg = await Leg.connect(place, side, name="exodus-compare")
            tries = TrialConnection(leg, enters=enters)
        opened.push_async_callback(tries.close)
        return tries

    async def _tries_scripts(
        self, engine: Engine, place: Place, opened: contextlib.AsyncExitStack
    ) -> Trials | None:
        """Return where scripts that write are tried on a cluster; None: they are not, or it is a
        single server.
        """
        user = self._plan.compare_script_user
        if user is None or not self._plan.compare_scripts or not isinstance(place, Cluster):
            return None
        # The node that was asked about the user's rights runs the script, and no other.
        tries = ClusterTrials(
            user.at(place),
            engine.route.follower,
            self._slow,
            name="exodus-compare",
            redirects_max=1,
        )
        opened.push_async_callback(tries.close)
        return tries

    def _as_application(self, place: Place) -> Place:
        user = self._plan.compare_user
        return place if user is None else user.at(place)

    async def _published(self) -> tuple[bytes, int]:
        """Return the last entry of the shadow stream, and how many requests were published."""
        names = self._store.keys
        pipe = self._store.client.pipeline(transaction=True)
        pipe.xrevrange(names.shadow, count=1)
        pipe.get(names.shadow_published)
        entries, count = await pipe.execute()
        return entries[0][0] if entries else b"0-0", int(count or 0)

    async def _batch(self, judge: Judge, copies: SampledCopies) -> None:
        """Judge the next sampled requests, or keep the copies up while there are none."""
        name, after = self._store.keys.shadow, self._shadow_at or b"0-0"
        found = await answered(
            self._store.client.xread(
                {name: after},
                count=COMPARE_ENTRIES,
                block=COMPARE_WAIT_PENDING_MS if judge.pending else COMPARE_WAIT_MS,
            )
        )
        self._told_until_ms = _ALWAYS
        if not found:
            self._behind = 0
            last, published = await self._published()
            if id_order(last) <= id_order(after):  # nothing came meanwhile
                self._intake.published(published)
            await copies.keep_up()
            return
        entries = next(iter(found.values()))[0] if isinstance(found, dict) else found[0][1]
        exchanges = self._exchanges(entries)
        await judge.take(exchanges)
        self._behind = len(exchanges)
        self._intake.taken += len(exchanges)
        if len(entries) == COMPARE_ENTRIES:  # more may be there
            self._told_until_ms = int(entries[-1][0].partition(b"-")[0])
        self._shadow_at = bytes(entries[-1][0])

    def _exchanges(self, entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> list[Exchange]:
        found: list[Exchange] = []
        for entry_id, fields in entries:
            at_ms = int(entry_id.partition(b"-")[0])
            try:
                pairs = unpack_pairs(fields.get(b"p", b"no field p"))
                found += [Exchange.of(at_ms, pair) for pair in pairs]
            except UnreadablePairs as exc:
                self._tally.not_tried["an entry of the shadow stream cannot be read"] += 1
                log.warning("the shadow stream: %s", exc)
        return found

    async def _measure(self, now_ms: int, *, asked: bool) -> None:
        """Raise what ended the work, if anything but the route did: the process ends by it."""
        del asked
        await self._tell_judged()
        await self._tell_sampling(now_ms)
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

    @property
    def _lost(self) -> int:
        return self._lost_before + (0 if self._reporter is None else self._reporter.lost)

    async def _tell_sampling(self, now_ms: int) -> None:
        """Write down where the sampling stands: another comparer takes it up from there."""
        if not self._opened or self._shadow_at is None:
            return
        baseline = {} if self._baseline is None else asdict(self._baseline)
        sampling = resume.Sampling(
            of=work_of(self._route),
            at_ms=now_ms,
            shadow_at=self._shadow_at.decode(),
            positions={number: at.decode() for number, at in self._copies.positions.items()},
            baseline=baseline,
            tally=resume.told_of(self._tally),
            waiting={} if self._judge is None else dict(self._judge.waiting),
            writes_waiting={} if self._replies is None else dict(self._replies.waiting),
            states_compared=self._states_compared,
            intake=asdict(self._intake),
            refused=self._copies.refused,
            lost=self._lost,
            lives=self._copies.lives,
            copied_again=self._copies.copied_again,
            away_ms=self._away_ms,
        )
        await resume.save(self._store, sampling)

    @property
    def _slow_step(self) -> str:
        """Return a message if the current step takes long. Otherwise return an empty string."""
        began = self._step_began
        seconds = 0.0 if began is None else asyncio.get_running_loop().time() - began
        if seconds < COMPARE_STEP_TOLD_S:
            return ""
        return f"a step of comparing takes {seconds:.0f} s already: a server answers slowly"

    def heartbeat(self, at_ms: int) -> ComparerHeartbeat:
        """What this process says of itself."""
        return ComparerHeartbeat(
            process=self.process,
            at_ms=at_ms,
            epoch=self._route.epoch,
            state=ProcessState.COMPARING if self._opened else ProcessState.IDLE,
            why=self._store_why
            or self._tasks.why
            or self._why
            or self._pace.why
            or self._slow_step,
            facts=ComparerFacts(
                behind=self._behind,
                pending=self._pending,
                rows={name: dict(row) for name, row in self._tally.rows.items()},
                inconclusive=dict(self._tally.inconclusive),
                not_tried=dict(self._tally.not_tried),
                by_error={name: dict(row) for name, row in self._tally.by_error.items()},
                why_not_tried={name: dict(row) for name, row in self._tally.why_not.items()},
                keys_unsettled=len(self._copies.histories),
                expired=self._intake.expired,
                away_ms=self._away_ms,
                keys=len(self._copies.keys),
                keys_judged=max(len(self._copies.judged), self._copies.judged_before),
                dirty=self._copies.dirty,
                lags_ms=list(self._copies.lags_ms),
                divergences_lost=self._lost,
                states_compared=self._states_compared,
                keys_refused=self._copies.refused,
                copied_again=self._copies.copied_again,
                task_failures=self._tasks.failures,
            ),
        )

    def metrics(self) -> Iterable[Sample]:
        """For Prometheus."""
        yield (
            "exodus_comparer_expired_total",
            "sampled requests that expired before they were taken",
            {},
            self._intake.expired,
        )
        for name, row in list(self._tally.rows.items()):
            for outcome, count in row.items():
                yield (
                    "exodus_comparer_replies_total",
                    "sampled replies by outcome",
                    {"command": name, "outcome": outcome},
                    count,
                )


async def _scratch(
    engine: Engine,
    ours: Leg,
    follower: Trials,
    table: CommandTable,
    opened: contextlib.AsyncExitStack,
    scripts: Trials | None,
) -> Scratch:
    """Return what makes scratch copies on the follower."""
    if engine.follower.cluster is not None:
        return ClusterScratch(engine, ours, follower, table, scripts)
    db, into = scratch_database(engine), None
    if db is not None:
        into = await Leg.connect(ours.place, ours.side, db=db, name=ours.name)
        await opened.enter_async_context(into)
    return Scratch(engine, ours, follower, into)


async def run_comparer(store: ControlStore, plan: Plan, process: str) -> None:
    """`exodus comparer`."""
    comparer = Comparer(store, plan, process)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, comparer.stop)
    await comparer.run()
