"""Verdicts: whether a reply that differs is a divergence.

The application's reply stands for the authority. It was true at one moment, and the follower has
the key's writes a little later. So a difference is no verdict yet:

1. Wait until the follower has what the journal has for the key (`SampledCopies.keep_up`).
2. Ask the follower. An equal reply ends it: *equal*.
3. Ask the authority again. If its reply moved, or the journal names the key again: *inconclusive*.
4. Ask again after each pause of `looks_s`. A reply that becomes equal is equal, and *late*.
5. A difference that stays is *confirmed*. Only then, and only where the plan says
   `compare_repair`, the key is copied again. Nothing heals a key before it is judged.

A script is never asked of the authority: it may cost what the application did not mean to pay
twice. Its reply is judged by what the application got, and only where the journal does not name its
key meanwhile.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from exodus.commands.semantics import COMPARED_READS, COMPARED_WRITES, NOT_COMPARABLE
from exodus.commands.table import CommandTable
from exodus.control.changes import Key
from exodus.engine import Engine
from exodus.net.leg import Leg, NoDatabase, Reply
from exodus.plan.bounds import COMPARE_ASKS_PER_S_MAX, COMPARE_PENDING_MAX, VERDICTS_KILL_S
from exodus.shadow.copies import SampledCopies
from exodus.shadow.exchange import Exchange
from exodus.shadow.reports import Reporter
from exodus.shadow.rules import INFRASTRUCTURE, TIME_LEFT, Rules, error_code, parse
from exodus.shadow.scratch import NoScratch, Scratch
from exodus.shadow.trials import Slow, TooSlow, TrialConnection, kill_script

MOVED = "the authority's reply moved"
WRITTEN = "the key was written meanwhile"
LAGGING = "live sync did not come to the key"
NOT_ALLOWED = "Exodus may not ask the authority this"
WAITS = "the same request waits to be asked again"
CROWDED = "too many replies waited to be asked for again"
NO_SCRIPT = "the target has not been given the script"
REFUSED_STATE = "the state of the scratch copy may be another one"


@dataclass(order=True)
class Pending:
    """A reply that differs and is asked for again."""

    due: float
    number: int  # of two that are due together, the first comes first
    exchange: Exchange = field(compare=False)
    keys: list[Key] = field(compare=False)
    here: Reply = field(compare=False)
    version: int = field(compare=False)
    looks: int = field(default=0, compare=False)
    kept: bool = field(default=False, compare=False)  # the ledger has it as pending


@dataclass
class Tally:
    """What became of the exchanges of one sampling."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)  # command → outcome → replies
    inconclusive: Counter[str] = field(default_factory=Counter)  # by reason
    not_tried: Counter[str] = field(default_factory=Counter)  # by reason

    def row(self, command: bytes) -> Counter[str]:
        """Return the counters of a command."""
        return self.rows.setdefault(command.decode("ascii", "replace"), Counter())

    def undecided(self, row: Counter[str], why: str) -> None:
        """Count a reply that nothing can be said of."""
        row["inconclusive"] += 1
        self.inconclusive[why] += 1


class Judge:
    """Tries exchanges on the follower and gives verdicts, over connections of one engine."""

    def __init__(
        self,
        engine: Engine,
        copies: SampledCopies,
        authority: TrialConnection,
        follower: TrialConnection,
        ours: Leg,
        table: CommandTable,
        slow: Slow,
        rules: Rules,
        tally: Tally,
        reporter: Reporter,
        now: Callable[[], float],
        looks_s: Sequence[float],
    ) -> None:
        """`follower` connects as an application's user, `ours` as Exodus.

        Both sides are asked again after each pause of `looks_s`.
        """
        self._engine = engine
        self._looks_s = looks_s
        self._copies = copies
        self._authority = authority
        self._follower = follower
        self._ours = ours
        self._table = table
        self._slow = slow
        self._rules = rules
        self._tally = tally
        self._reporter = reporter
        self._now = now
        self._scratch = Scratch(engine, ours, follower)
        self._pending: list[Pending] = []
        self._waiting: dict[tuple[int, tuple[bytes, ...]], Pending] = {}
        self._numbers = 0
        self._asks_left, self._asks_at = COMPARE_ASKS_PER_S_MAX, now()

    @property
    def pending(self) -> int:
        """Return the number of replies that wait to be asked for again."""
        return len(self._pending)

    def keys_of(self, exchange: Exchange) -> list[Key]:
        """Return the keys of a request, or of a transaction; it was sampled by the first."""
        names = [name for args in exchange.requests for name in self._table.of(args).keys(args)]
        return [(exchange.db, name) for name in dict.fromkeys(names)]

    async def take(self, exchanges: Iterable[Exchange]) -> None:
        """Try exchanges on the follower, once it has what the journal has."""
        several = list(exchanges)
        await self._copies.seed(key for each in several for key in self.keys_of(each))
        await self._copies.keep_up()
        for each in several:
            if each.write:
                self._reporter.writes.add(each, self.keys_of(each))
            await self._one(each)

    async def look_again(self) -> None:
        """Ask again for the replies whose pause is over."""
        now = self._now()
        earned = (now - self._asks_at) * COMPARE_ASKS_PER_S_MAX
        self._asks_left = min(COMPARE_ASKS_PER_S_MAX, self._asks_left + earned)
        self._asks_at = now
        if not self._pending or self._pending[0].due > now:
            return
        await self._copies.keep_up()
        while self._pending and self._pending[0].due <= now and self._asks_left >= 1:
            self._asks_left -= 1
            pending = heapq.heappop(self._pending)
            del self._waiting[_identity(pending.exchange)]
            await self._look(pending)

    # ------------------------------------------------------------------ one exchange

    async def _one(self, exchange: Exchange) -> None:
        keys, row = self.keys_of(exchange), self._tally.row(exchange.command)
        why_not = self._why_not(exchange, keys)
        if why_not:
            row[why_not] += 1
            return
        await self._copies.copy(key for key in keys if self._copies.joined(key))
        if exchange.write:
            await self._try_write(exchange, keys, row)
        else:
            await self._try_read(exchange, keys, row)

    def _why_not(self, exchange: Exchange, keys: list[Key]) -> str:
        if any(key in self._copies.state.filtered for key in keys):
            return "excluded"
        names = {args[0].upper() for args in exchange.requests}
        if names & NOT_COMPARABLE or not keys or self._renamed(exchange) is None:
            return "not_comparable"
        if any(self._rules.never(args[0].upper(), args) for args in exchange.requests):
            return "not_comparable"
        if names & self._slow.names or exchange.command in self._slow.names:
            return "not_tried"
        seeded = all(key in self._copies for key in keys)
        return "" if seeded and all(map(self._allowed, exchange.requests)) else "not_tried"

    def _allowed(self, args: list[bytes]) -> bool:
        """Whether a request may be tried: a known command at a bounded cost, or any plain one of a
        key, as an application's user.
        """
        command, plan = self._table.of(args), self._engine.plan
        if args[0].upper() in (COMPARED_WRITES if command.write else COMPARED_READS):
            return True
        if plan.compare_user is None or not command.known:
            return False
        if command.script:
            return (
                self._engine.route.shadow_scripts
                and plan.compare_scripts
                and not command.write
                and bool(command.keys(args))
            )
        return command.plain and command.keys(args) == args[1:2]

    def _renamed(self, exchange: Exchange) -> list[list[bytes]] | None:
        """The requests as they have to be asked of the target; None where one names its key
        elsewhere than most do, or where their keys are in several databases there.
        """
        if not self._engine.scope.renames:
            return list(exchange.requests)
        found: list[list[bytes]] = []
        dbs: set[int] = set()
        for args in exchange.requests:
            if len(args) < 2 or self._table.of(args).keys(args) != [args[1]]:
                return None
            db, name = self._engine.scope.target_key(exchange.db, args[1])
            dbs.add(db)
            found.append([args[0], name, *args[2:]])
        return found if len(dbs) == 1 else None

    def _place(self, key: Key) -> Key:
        return self._engine.scope.target_key(*key) if self._engine.scope.renames else key

    def _version(self, keys: list[Key]) -> int:
        return sum(self._copies.version(key) for key in keys)

    def _same(self, exchange: Exchange, here: Reply, there: Reply) -> bool:
        """Whether two replies mean the same; those of a transaction one by one."""
        if not exchange.transaction or not isinstance(here, list) or not isinstance(there, list):
            return self._rules.equivalent(exchange.command, here, there, exchange.args)
        return len(here) == len(there) and all(
            self._rules.equivalent(args[0].upper(), one, other, args)
            for args, one, other in zip(exchange.requests, here, there, strict=False)
        )

    # ------------------------------------------------------------------ reads

    async def _try_read(self, exchange: Exchange, keys: list[Key], row: Counter[str]) -> None:
        here = parse(exchange.reply)
        if error_code(here) in INFRASTRUCTURE:
            row["infrastructure"] += 1
            return
        if exchange.transaction and here is None:
            row["not_comparable"] += 1  # a watched key had changed
            return
        try:
            there = await self._ask_follower(exchange, keys)
        except TooSlow:
            await self._try_no_more(exchange, row)
            return
        except NoDatabase as exc:
            row["divergences"] += 1
            await self._reporter.refused(exchange, keys, str(exc))
            return
        if error_code(there) in INFRASTRUCTURE:
            row["infrastructure"] += 1
            return
        row["compared"] += 1
        if self._same(exchange, here, there):
            await self._equal(exchange, keys, row)
        else:
            self._wait(exchange, keys, here, row)

    async def _ask_follower(self, exchange: Exchange, keys: list[Key]) -> Reply:
        wire = exchange.wire(self._renamed(exchange))
        return (await self._follower.ask_all(self._place(keys[0])[0], wire))[-1]

    def _wait(self, exchange: Exchange, keys: list[Key], here: Reply, row: Counter[str]) -> None:
        identity = _identity(exchange)
        same = self._waiting.get(identity)
        if same is not None or len(self._pending) >= COMPARE_PENDING_MAX:
            moved = same is not None and not self._same(exchange, same.here, here)
            self._tally.undecided(row, MOVED if moved else WAITS if same else CROWDED)
            return
        self._numbers += 1
        self._push(Pending(0.0, self._numbers, exchange, keys, here, self._version(keys)))

    def _push(self, pending: Pending) -> None:
        pending.due = self._now() + self._looks_s[pending.looks]
        pending.looks += 1
        heapq.heappush(self._pending, pending)
        self._waiting[_identity(pending.exchange)] = pending

    async def _look(self, pending: Pending) -> None:
        exchange, keys = pending.exchange, pending.keys
        row = self._tally.row(exchange.command)
        if any(key in self._copies.state.filtered for key in keys):
            row["excluded"] += 1  # a rule leaves it out as it is by now
            return
        await self._copies.copy(key for key in keys if self._copies.joined(key))
        try:
            there = await self._ask_follower(exchange, keys)
            # The authority is asked last: what it says now, the follower had time to come to.
            here = (
                pending.here
                if self._is_script(exchange)
                else (await self._authority.ask_all(exchange.db, exchange.wire()))[-1]
            )
        except TooSlow:
            await self._try_no_more(exchange, row)
            return
        why = self._why_undecided(pending, here, there)
        if error_code(there) in INFRASTRUCTURE or error_code(here) in INFRASTRUCTURE:
            row["infrastructure"] += 1
        elif why != MOVED and self._same(exchange, here, there):
            await self._equal(exchange, keys, row)
            row["late"] += 1
        elif why:
            self._tally.undecided(row, why)
        elif pending.looks < len(self._looks_s):
            if pending.looks == len(self._looks_s) - 1:
                await self._reporter.pending(exchange, keys, f"look {pending.looks}")
                pending.kept = True
            self._push(pending)
            return
        else:
            await self._judge_last(pending, there, row)
        if pending.kept:  # a confirmed row is not pending any more, and stays
            await self._reporter.withdrawn(exchange, keys)

    def _why_undecided(self, pending: Pending, here: Reply, there: Reply) -> str:
        exchange = pending.exchange
        if error_code(here) == "NOPERM" and error_code(pending.here) != "NOPERM":
            return NOT_ALLOWED
        if not self._runs_on(exchange) and not self._same(exchange, pending.here, here):
            return MOVED
        if self._version(pending.keys) != pending.version:
            return WRITTEN
        return NO_SCRIPT if error_code(there) == "NOSCRIPT" else ""

    async def _judge_last(self, pending: Pending, there: Reply, row: Counter[str]) -> None:
        """Confirm, unless the journal tells only now of a write between the two replies."""
        exchange, keys = pending.exchange, pending.keys
        await self._copies.keep_up()
        if self._version(keys) != pending.version:
            self._tally.undecided(row, WRITTEN)
            return
        if not all(map(self._copies.caught_up, keys)):
            self._tally.undecided(row, LAGGING)
            return
        row["divergences"] += 1
        self._copies.state.judge(keys)
        await self._reporter.confirmed(
            exchange,
            keys,
            pending.here,
            there,
            rule=self._rules.of(exchange.command, exchange.args).rule,
            script=self._is_script(exchange),
        )
        if self._engine.plan.compare_repair:
            await self._copies.copy(keys)

    async def _equal(self, exchange: Exchange, keys: list[Key], row: Counter[str]) -> None:
        row["equal"] += 1
        self._copies.state.judge(keys)
        await self._reporter.equal(keys, exchange.command.decode("ascii", "replace"))

    def _runs_on(self, exchange: Exchange) -> bool:
        """Whether the reply is another one later although nothing is written."""
        return any(args[0].upper() in TIME_LEFT for args in exchange.requests)

    def _is_script(self, exchange: Exchange) -> bool:
        return any(self._table.of(args).script for args in exchange.requests)

    # ------------------------------------------------------------------ writes

    async def _try_write(self, exchange: Exchange, keys: list[Key], row: Counter[str]) -> None:
        """Whether the target accepts a write, tried on scratch copies of its keys."""
        places = [self._place(key) for key in keys]
        wire = exchange.wire(self._renamed(exchange))
        try:
            there = (await self._scratch.tried(places[0][0], [name for _, name in places], wire))[
                -1
            ]
        except TooSlow:
            await self._try_no_more(exchange, row)
            return
        except NoScratch as exc:
            row["not_tried"] += 1
            self._tally.not_tried[str(exc)] += 1
            return
        except NoDatabase as exc:
            row["divergences"] += 1
            await self._reporter.refused(exchange, keys, str(exc))
            return
        here = parse(exchange.reply)
        codes, codes_there = _codes(here), _codes(there)
        if INFRASTRUCTURE.intersection(codes + codes_there):
            row["infrastructure"] += 1
            return
        row["compared"] += 1
        if codes == codes_there:
            await self._equal(exchange, keys, row)
        elif "NOPERM" in codes_there or await self._lacks(exchange):
            row["divergences"] += 1
            said = next(str(each) for each in _elements(there) if error_code(each) is not None)
            await self._reporter.refused(exchange, keys, said)
        else:
            self._tally.undecided(row, REFUSED_STATE)

    async def _lacks(self, exchange: Exchange) -> bool:
        """Whether the target lacks a command, rather than the state that it needs."""
        for args in exchange.requests:
            there = await self._ours.call("COMMAND", "INFO", args[0])
            if not there or there[0] is None:
                return True
        return False

    # ------------------------------------------------------------------ what takes too long

    async def _try_no_more(self, exchange: Exchange, row: Counter[str]) -> None:
        self._slow.names.add(exchange.command)
        row["too_slow"] += 1
        if self._is_script(exchange):  # its server serves nobody else until it ends
            self._slow.script_runs = True
            # A busy server may begin the script only after a first SCRIPT KILL: only the reply
            # shows that it ended.
            while not await self._follower.ends_within(VERDICTS_KILL_S):
                await kill_script(self._ours)
            self._slow.script_runs = False


def _identity(exchange: Exchange) -> tuple[int, tuple[bytes, ...]]:
    return exchange.db, tuple(word for args in exchange.wire() for word in (*args, b"\n"))


def _elements(reply: Reply) -> list[Reply]:
    """A reply and, of a transaction, what is in it."""
    return [reply, *reply] if isinstance(reply, list) else [reply]


def _codes(reply: Reply) -> list[str | None]:
    """The error codes of a reply, of a transaction command by command."""
    return [error_code(each) for each in reply] if isinstance(reply, list) else [error_code(reply)]
