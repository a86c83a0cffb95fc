"""The comparer: replays sampled requests on the target, compares what comes back, and keeps a
ledger of divergences.

A sampled key is *seeded* first: its state is copied. Then its reads are asked of the target and
compared with what the application got, and its writes are tried there (does the target accept
them?), after which the key's state is copied again: states converge whatever the order of writes
was.

What is tried is what the authority answered without an error (gateways publish nothing else), and
of that only commands of an allow-list (`semantics.COMPARED_READS`, `COMPARED_WRITES`): Compare runs
it with Exodus's rights. Where the plan names an application's user of the target (`compare_user`),
it runs as that user, and what the list leaves out is tried too. What takes too long is tried no
more.

Scripts run only where the plan says `compare_scripts`: read-only ones, as `compare_user`, on the
target. Exodus never runs an application's script on the source. So a reply that differs is a
divergence where the key was not written since.

A reply that differs is no verdict: the key is copied and both sides are asked again, and only what
differs three times is a divergence. The journal's sampled keys (scripts, transactions and multi-key
writes among them) are copied in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import orjson

from exodus.cancellation import end_all
from exodus.commands.semantics import COMPARED_READS, COMPARED_WRITES, NOT_COMPARABLE
from exodus.commands.table import CommandTable
from exodus.control import journal
from exodus.control.changes import Key, pack, partition_of
from exodus.control.heartbeats import ComparerFacts, ComparerHeartbeat, ProcessKind, ProcessState
from exodus.control.process import STORE_ERRORS, RouteFollower
from exodus.control.route import Route
from exodus.control.store import ControlStore
from exodus.copy.key import Copier
from exodus.engine import Engine, open_engine
from exodus.errors import ExodusError
from exodus.net.client import answered
from exodus.net.leg import Leg, NoDatabase, Reply, ReplyError
from exodus.plan.address import Address
from exodus.plan.bounds import COMPARE_SECONDS_MAX
from exodus.plan.own_keys import is_own
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side, UserRole
from exodus.resp.scanner import RequestScanner
from exodus.shadow.rules import INFRASTRUCTURE, equivalent, error_code, parse, rule_of
from exodus.telemetry.sample import Sample
from exodus.telemetry.states import WAITS

log = logging.getLogger(__name__)
_BATCH = 200
_WAIT_MS = 200
_LOOKS = 3
_PAUSE_S = 0.05
_KILL_S = 0.2  # between two attempts to end a script
_EARLIER_MS = 1_000  # a write may stand in the journal so long before the sample that shows it


class TooSlow(Exception):
    """A request that was tried took longer than it may."""


@dataclass
class Slow:
    """Commands that took too long once, kept for as long as one sampling lasts, whatever connection
    is lost meanwhile.
    """

    names: set[bytes] = field(default_factory=set)
    script_runs: bool = False  # the target may still run a script that Compare started


class TrialConnection:
    """One connection for trial requests. Its server continues a request that takes too long."""

    def __init__(self, leg: Leg) -> None:
        self._leg = leg
        self._late: asyncio.Task[list[Reply]] | None = (
            None  # the reply to a request that took too long
        )

    async def ask(self, db: int, args: list[bytes]) -> Reply:
        """The reply, an error as a value.

        Raises:
            TooSlow: it did not come in time.
            NoDatabase: the server has no such database.
            SourceError, TargetError, OperatorError: it does not answer.
        """
        if self._late is not None:
            await self.close()
            before = self._leg
            self._leg = await Leg.connect(before.address, before.side, name=before.name)
        asked = asyncio.create_task(self._ask(db, args))
        try:
            done, _ = await asyncio.wait([asked], timeout=COMPARE_SECONDS_MAX)
        except asyncio.CancelledError:
            await end_all([asked])
            raise
        if not done:
            self._late = asked
            raise TooSlow
        return asked.result()[0]

    async def _ask(self, db: int, args: list[bytes]) -> list[Reply]:
        await self._leg.select(db)
        return await self._leg.pipeline([tuple(args)])

    async def ends_within(self, seconds: float) -> bool:
        """Return whether the server has ended the request that took too long, after waiting for it
        this long at most.
        """
        if self._late is None:
            return True
        done, _ = await asyncio.wait([self._late], timeout=seconds)
        return bool(done)

    async def close(self) -> None:
        """End the connection."""
        await end_all([self._late])
        self._late = None
        await self._leg.close()


async def kill_script(ours: Leg) -> None:
    """End a read-only script on the follower. The server answers once the script has run for its
    `lua-time-limit`.
    """
    await ours.pipeline([("SCRIPT", "KILL"), ("FUNCTION", "KILL")])


class SamplingPeriod:
    """One period in which the route asks for shadowing."""

    def __init__(
        self,
        engine: Engine,
        copier: Copier,
        authority: TrialConnection,
        follower: TrialConnection,
        ours: Leg,
        table: CommandTable,
        slow: Slow,
    ) -> None:
        """`follower` connects as an application's user, `ours` as Exodus."""
        self.engine = engine
        self._table = table
        self.copier = copier
        self.authority = authority
        self.follower = follower
        self._ours = ours
        self._slow = slow
        self.seeded: set[Key] = set()
        self.filtered: set[Key] = (
            set()
        )  # left out by the migration's rules, as they were when they were copied last
        self.rows: dict[str, Counter[str]] = {}

    async def copy(self, keys: Iterable[Key]) -> None:
        """Seed or refresh keys on the target, and write down that they are ours."""
        store = self.engine.store
        by_db: dict[int, list[bytes]] = {}
        for db, key in keys:
            if not is_own(key):
                by_db.setdefault(db, []).append(key)
        for db, names in by_db.items():
            fresh = [(db, name) for name in names if (db, name) not in self.seeded]
            if fresh:
                await answered(
                    store.client.sadd(store.keys.seeded, *[pack([key]) for key in fresh])
                )
                self.seeded.update(fresh)
            report = await self.copier.sync_keys(db, names)
            if self.engine.scope:
                self.filtered.difference_update((db, name) for name in names)
                self.filtered.update((db, name) for name in report.filtered_keys)
            for failure in report.failed:
                await self._diverged(
                    failure.db, failure.key, "(copy)", "cannot be carried", failure.reason
                )

    def key_of(self, args: list[bytes]) -> bytes:
        """Return the key by which a request was sampled."""
        keys = self._table.of(args).keys(args)
        return keys[0] if keys else args[1] if len(args) > 1 else b""

    async def one(
        self, db: int, args: list[bytes], reply: bytes, *, write: bool, at_ms: int
    ) -> bool:
        """Compare one request's replies; return whether its key has to be copied afterwards.

        Args:
            at_ms: when the authority's reply came, in the control store's time.
        """
        name, key = args[0].upper(), self.key_of(args)
        row = self.rows.setdefault(name.decode("ascii", "replace"), Counter())
        there_args = self._renamed(db, args)
        if (db, key) in self.filtered:
            why_not = "excluded"
        elif name in NOT_COMPARABLE or there_args is None:
            why_not = "not_comparable"
        else:
            why_not = "" if self._allowed(name, args, write=write) else "not_tried"
        if why_not or there_args is None:
            row[why_not] += 1
            return write  # a write may bring a filtered key in
        to_db = self.engine.scope.target_key(db, key)[0] if self.engine.scope.renames else db
        try:
            there = await self.follower.ask(to_db, there_args)
        except TooSlow:
            await self._try_no_more(name, args, row)
            return write
        except NoDatabase as exc:
            row["divergences"] += 1
            await self._diverged(db, key, name.decode(), "the target refuses it", str(exc))
            return False
        here = parse(reply)
        code, code_there = error_code(here), error_code(there)
        if code in INFRASTRUCTURE or code_there in INFRASTRUCTURE:
            row["infrastructure"] += 1
            return write
        row["compared"] += 1
        if write:
            if code == code_there:
                row["equal"] += 1
            elif code_there is not None and code is None and await self._refused(db, args):
                row["divergences"] += 1
                await self._diverged(db, key, name.decode(), "the target refuses it", code_there)
            else:
                row["inconclusive"] += 1
            return True
        if equivalent(name, here, there, args):
            row["equal"] += 1
            return False
        if self._table.of(args).script:
            await self._ask_the_script_again(db, args, here, row, at_ms)
        else:
            await self._look_again(db, name, args, key, row)
        return False

    async def _try_no_more(self, name: bytes, args: list[bytes], row: Counter[str]) -> None:
        self._slow.names.add(name)
        row["too_slow"] += 1
        if self._table.of(args).script:  # its server serves nobody else until it ends
            self._slow.script_runs = True
            # A busy server may begin the script only after a first SCRIPT KILL: only the reply
            # shows that it ended.
            while not await self.follower.ends_within(_KILL_S):
                await kill_script(self._ours)
            self._slow.script_runs = False

    async def _ask_the_script_again(
        self, db: int, args: list[bytes], here: Reply, row: Counter[str], at_ms: int
    ) -> None:
        name, key = args[0].upper(), self.key_of(args)
        there: Reply = None
        for look in range(_LOOKS):
            await self.copy([(db, key)])
            try:
                there = await self.follower.ask(db, args)
            except TooSlow:
                await self._try_no_more(name, args, row)
                return
            if equivalent(name, here, there, args):
                row["equal"] += 1
                return
            await asyncio.sleep(_PAUSE_S * 4**look)
        store, partitions = self.engine.store, self.engine.plan.partitions
        since = {partition_of(db, key, partitions): b"%d-0" % (at_ms - _EARLIER_MS)}
        changes = await journal.since(store, since)
        if (
            changes.gap
            or changes.barriers
            or (db, key) in changes.keys
            or error_code(there) == "NOSCRIPT"
        ):
            row["inconclusive"] += (
                1  # the key was written since; or the target has not been given the script yet
            )
            return
        row["divergences"] += 1
        cause = f"error {error_code(there)}" if error_code(there) else "a script's reply differs"
        await self._diverged(db, key, name.decode(), "replies differ", cause)

    def _allowed(self, name: bytes, args: list[bytes], *, write: bool) -> bool:
        """Whether a request may be tried: a known command at a bounded cost, or any plain one of a
        key, as an application's user.
        """
        if name in self._slow.names:
            return False
        if name in (COMPARED_WRITES if write else COMPARED_READS):
            return True
        command, plan = self._table.of(args), self.engine.plan
        if plan.compare_user is None or not command.known:
            return False
        if command.script:
            return (
                self.engine.route.shadow_scripts
                and plan.compare_scripts
                and not command.write
                and len(command.keys(args)) == 1
            )
        return command.plain and command.keys(args) == args[1:2]

    def _renamed(self, db: int, args: list[bytes]) -> list[bytes] | None:
        """The request as it has to be asked of the target; None where it names its key elsewhere
        than most do.
        """
        if not self.engine.scope.renames:
            return args
        if len(args) < 2 or self._table.of(args).keys(args) != [args[1]]:
            return None
        return [args[0], self.engine.scope.target_key(db, args[1])[1], *args[2:]]

    async def _refused(self, db: int, args: list[bytes]) -> bool:
        """Whether the target lacks the command or its form, rather than the state that it needs."""
        del db
        there = await self._ours.call("COMMAND", "INFO", args[0])
        return not there or there[0] is None

    async def _look_again(
        self, db: int, name: bytes, args: list[bytes], key: bytes, row: Counter[str]
    ) -> None:
        for look in range(_LOOKS):
            await self.copy([(db, key)])
            if (db, key) in self.filtered:
                row["excluded"] += 1  # a rule leaves it out as it is by now
                return
            there_args = self._renamed(db, args) or args
            try:
                there_db = self.engine.scope.target_key(db, key)[0]
                here, there = await asyncio.gather(
                    self.authority.ask(db, args), self.follower.ask(there_db, there_args)
                )
            except TooSlow:
                await self._try_no_more(name, args, row)
                return
            if error_code(here) == "NOPERM":
                row["inconclusive"] += (
                    # An application's command, which Exodus itself may not ask the authority again
                    1
                )
                return
            if equivalent(name, here, there, args):
                row["inconclusive"] += 1  # the key moved on between the application's read and ours
                return
            await asyncio.sleep(_PAUSE_S * 4**look)
        row["divergences"] += 1
        cause = (
            f"error {error_code(there)}"
            if error_code(there)
            else f"replies differ under the rule '{rule_of(name, args)}'"
        )
        await self._diverged(db, key, name.decode("ascii", "replace"), "replies differ", cause)

    async def _diverged(self, db: int, key: bytes, command: str, kind: str, cause: str) -> None:
        store = self.engine.store
        detail = {
            "db": db,
            "key": key.decode("utf-8", "backslashreplace"),
            "command": command,
            "kind": kind,
            "cause": cause,
            "at_ms": await store.now_ms(),
        }
        await answered(
            store.client.hset(store.keys.divergence, pack([(db, key)]), orjson.dumps(detail))
        )


class Comparer(RouteFollower):
    """The process: it follows the route, and compares while the route asks for shadow traffic."""

    kind = ProcessKind.COMPARER

    def __init__(self, store: ControlStore, plan: Plan, process: str) -> None:
        super().__init__(store, process, log)
        self._plan = plan.acting(UserRole.COMPARER)
        self._work: asyncio.Task[None] | None = None
        self._opened = False  # the sampled requests are read from a known position on
        self._rows: dict[str, Counter[str]] = {}
        self._slow = Slow()
        self._behind = 0

    async def _follow(self, route: Route) -> None:
        if route.epoch == self._route.epoch:
            return
        before, self._route = self._route, route
        if (route.shadow_rate, route.shadow_salt) != (before.shadow_rate, before.shadow_salt):
            await self._stop_work()
            if route.shadow_rate > 0:
                self._rows = {}
                self._slow = Slow()
                self._work = asyncio.create_task(self._keep_comparing(route))
        self._beat_now.set()

    async def _stop_work(self) -> None:
        await end_all([self._work])
        self._work = None
        self._opened = False

    async def _keep_comparing(self, route: Route) -> None:
        shadow_at = await self._last_id()
        positions = await journal.ends(self._store, self._plan.partitions)
        self._opened = True
        self._beat_now.set()
        while True:
            try:
                if (
                    self._slow.script_runs
                ):  # its server refuses everything else, the engine's first look included
                    await self._kill_left_script(route)
                engine = await open_engine(self._store, self._plan, route)
                async with contextlib.AsyncExitStack() as opened:
                    ours = await opened.enter_async_context(
                        await engine.follower.connect(name="exodus-compare")
                    )
                    authority = await self._tries(
                        (await engine.authority.any_node()).address, engine.route.authority, opened
                    )
                    follower = await self._tries(
                        self._as_application(ours.address), engine.route.follower, opened
                    )
                    copier = await engine.copier(engine.guard(), name="exodus-compare")
                    opened.push_async_callback(copier.close)
                    async with await engine.authority_leg(name="exodus-compare") as asked:
                        table = CommandTable.from_replies(await asked.call("COMMAND"))
                    run = SamplingPeriod(
                        engine, copier, authority, follower, ours, table, self._slow
                    )
                    run.rows = self._rows
                    self._why = ""
                    self._states.away("comparing", "", verbs=WAITS)
                    while True:
                        shadow_at = await self._batch(run, shadow_at)
                        positions = await self._refresh(run, positions)
            except (ExodusError, ReplyError, *STORE_ERRORS) as exc:
                self._why = (
                    exc.what if isinstance(exc, ExodusError) else f"{type(exc).__name__}: {exc}"
                )
                self._states.away("comparing", self._why, verbs=WAITS)
                await asyncio.sleep(0.5)

    async def _kill_left_script(self, route: Route) -> None:
        """End the script that a lost connection left on the follower."""
        async with await Leg.connect(
            self._plan.address(route.follower), route.follower, name=""
        ) as ours:
            await kill_script(ours)
        self._slow.script_runs = False

    async def _tries(
        self, address: Address, side: Side, opened: contextlib.AsyncExitStack
    ) -> TrialConnection:
        tries = TrialConnection(await Leg.connect(address, side, name="exodus-compare"))
        opened.push_async_callback(tries.close)
        return tries

    def _as_application(self, address: Address) -> Address:
        user = self._plan.compare_user
        return address if user is None else user.at(address)

    async def _last_id(self) -> bytes:
        found = await answered(self._store.client.xrevrange(self._store.keys.shadow, count=1))
        return found[0][0] if found else b"0-0"

    async def _batch(self, run: SamplingPeriod, after: bytes) -> bytes:
        name = self._store.keys.shadow
        found = await answered(
            self._store.client.xread({name: after}, count=_BATCH, block=_WAIT_MS)
        )
        if not found:
            self._behind = 0
            return after
        entries = next(iter(found.values()))[0] if isinstance(found, dict) else found[0][1]
        pairs = [(int(entry_id.partition(b"-")[0]), *_pair(fields)) for entry_id, fields in entries]
        new = {(db, run.key_of(args)) for _, db, args, *_ in pairs} - run.seeded
        await run.copy(new)
        dirty: set[Key] = set()
        for at_ms, db, args, reply, write in pairs:
            # A key copied just now shows the state after later writes too: what it is asked settles
            # by looking again.
            if await run.one(db, args, reply, write=write, at_ms=at_ms):
                dirty.add((db, run.key_of(args)))
        await run.copy(dirty)
        self._behind = len(entries)
        return bytes(entries[-1][0])

    async def _refresh(self, run: SamplingPeriod, positions: dict[int, bytes]) -> dict[int, bytes]:
        """Copy the sampled keys that the journal names, whatever wrote them."""
        after = await journal.ends(self._store, self._plan.partitions)
        if after == positions:
            return positions
        changes = await journal.since(self._store, positions)
        await run.copy(dict.fromkeys(changes.keys))
        return after

    async def _measure(self, now_ms: int, *, asked: bool) -> None:
        """Nothing: its counters are kept up to date by the work itself."""

    def heartbeat(self, at_ms: int) -> ComparerHeartbeat:
        """What this process says of itself."""
        return ComparerHeartbeat(
            process=self.process,
            at_ms=at_ms,
            epoch=self._route.epoch,
            state=ProcessState.COMPARING if self._opened else ProcessState.IDLE,
            why=self._store_why or self._why,
            facts=ComparerFacts(
                behind=self._behind,
                rows={name: dict(row) for name, row in self._rows.items()},
            ),
        )

    def metrics(self) -> Iterable[Sample]:
        """For Prometheus."""
        for name, row in list(self._rows.items()):
            for outcome, count in row.items():
                yield (
                    "exodus_comparer_replies_total",
                    "sampled replies by outcome",
                    {"command": name, "outcome": outcome},
                    count,
                )


def _pair(fields: Mapping[bytes, bytes]) -> tuple[int, list[bytes], bytes, bool]:
    args = RequestScanner().feed(fields[b"q"])[0].args
    return int(fields[b"db"]), args, fields[b"r"], fields[b"w"] == b"1"


async def run_comparer(store: ControlStore, plan: Plan, process: str) -> None:
    """`exodus comparer`."""
    comparer = Comparer(store, plan, process)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, comparer.stop)
    await comparer.run()
