"""Verdicts: whether a reply that differs is a divergence.

The application's reply stands for the authority. It was true at one moment, and the follower has
the key's writes a little later. So a difference is no verdict yet:

1. Wait until the follower has what the journal has for the key (`SampledCopies.keep_up`).
2. Ask the follower. An equal reply ends it: *equal*.
3. Ask the authority again. If its reply moved, or the journal names the key again: *inconclusive*.
4. Ask again after each pause of `looks_s`. A reply that becomes equal is equal, and *late*.
5. A difference that stays is *confirmed*. Only then, and only where the plan says
   `compare_repair`, the key is copied again. Nothing heals a key before it is judged.

A write is tried at once on a scratch copy of its keys: does the target take it? Its reply is
compared later, on the state that it found (`write_replies.py`).

A script is never asked of the authority: it may cost what the application did not mean to pay
twice. Its reply is judged by what the application got, and only where the journal does not name its
key meanwhile.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from exodus.commands.key_slots import slot_of
from exodus.commands.semantics import COMPARED_READS, COMPARED_WRITES, NOT_COMPARABLE
from exodus.control.changes import Key
from exodus.copy.impact import Turn
from exodus.engine import Engine
from exodus.net.leg import Leg, NoDatabase, Reply
from exodus.plan.bounds import COMPARE_ASKS_PER_S_MAX, COMPARE_PENDING_MAX
from exodus.shadow.causes import Cause, cause_of_refusal
from exodus.shadow.copies import SampledCopies
from exodus.shadow.exchange import Exchange
from exodus.shadow.lives import Lives
from exodus.shadow.reports import Reporter
from exodus.shadow.requests import Requests
from exodus.shadow.rules import INFRASTRUCTURE, TIME_LEFT, codes_of, error_code, parse
from exodus.shadow.scratch import NoScratch, Scratch
from exodus.shadow.tally import Tally
from exodus.shadow.trials import LEAVES_COPIES, Slow, TooSlow, Trials, would_leave
from exodus.shadow.write_replies import WriteReplies

MOVED = "the authority's reply moved"
WRITTEN = "the key was written meanwhile"
LAGGING = "live sync did not come to the key"
NOT_ALLOWED = "Exodus may not ask the authority this"
WAITS = "the same request waits to be asked again"
CROWDED = "too many replies waited to be asked for again"
NO_SCRIPT = "the target has not been given the script"
REFUSED_STATE = "the state of the scratch copy may be another one"
SCRIPTS_OFF = "a script, and compare_scripts is off"
SEVERAL_SLOTS = "it names keys of several slots, which the target refuses"
LOST = "a connection was lost before it was judged"
OUTCOMES = frozenset({"excluded", "not_comparable", "not_tried"})  # why an exchange is not tried


@dataclass(order=True)
class PendingDifference:
    """A reply that differs and is asked for again."""

    due: float
    number: int  # of two that are due together, the first comes first
    exchange: Exchange = field(compare=False)
    keys: list[Key] = field(compare=False)
    here: Reply = field(compare=False)
    version: int = field(compare=False)
    looks: int = field(default=0, compare=False)
    kept: bool = field(default=False, compare=False)  # the ledger has it as pending


class Judge:
    """Tries exchanges on the follower and gives verdicts, over connections of one engine."""

    def __init__(
        self,
        engine: Engine,
        copies: SampledCopies,
        authority: Trials,
        follower: Trials,
        ours: Leg,
        scratch: Scratch,
        requests: Requests,
        replies: WriteReplies,
        slow: Slow,
        tally: Tally,
        reporter: Reporter,
        lives: Lives,
        too_slow: Callable[[bytes, bool], Awaitable[None]],
        now: Callable[[], float],
        looks_s: Sequence[float],
        unconfined: str,
        turn: Turn,
    ) -> None:
        """`follower` connects as an application's user, `ours` as Exodus. `too_slow` is told of a
        command that took too long, and whether it is a script.

        Both sides are asked again after each pause of `looks_s`. `unconfined` says why no script
        that writes is tried; empty: such scripts are. `turn` is waited for before each try.
        """
        self._engine = engine
        self._unconfined = unconfined
        self._looks_s = looks_s
        self._copies = copies
        self._authority = authority
        self._follower = follower
        self._ours = ours
        self._scratch = scratch
        self._requests = requests
        self._replies = replies
        self._slow = slow
        self._tally = tally
        self._reporter = reporter
        self._lives = lives
        self._too_slow = too_slow
        self._now = now
        self._turn = turn
        self._pending: list[PendingDifference] = []
        self._waiting: dict[tuple[int, tuple[bytes, ...]], PendingDifference] = {}
        self._numbers = 0
        self._asks_left, self._asks_at = COMPARE_ASKS_PER_S_MAX, now()

    @property
    def pending(self) -> int:
        """Return the number of replies that wait to be asked for again."""
        return len(self._pending)

    @property
    def waiting(self) -> Counter[str]:
        """Return how many replies of each command wait to be asked again."""
        names = (pending.exchange.command for pending in self._pending)
        return Counter(name.decode("ascii", "replace") for name in names)

    def give_up(self) -> None:
        """Count what waits as inconclusive: the connections over which it was judged are lost."""
        for pending in self._pending:
            self._tally.undecided(self._tally.row(pending.exchange.command), LOST)
        self._pending, self._waiting = [], {}

    async def take(self, exchanges: Iterable[Exchange]) -> None:
        """Try exchanges on the follower, once it has what the journal has."""
        several = list(exchanges)
        await self._copies.seed(key for each in several for key in self._requests.keys_of(each))
        await self._copies.keep_up()
        for each in several:
            if not each.write:
                await self._one(each)
                continue
            self._reporter.writes.add(each, self._requests.keys_of(each))
            await self._replies.wrote(each, tried=await self._one(each))

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
            try:
                await self._look(pending)
            except BaseException:
                self._tally.undecided(self._tally.row(pending.exchange.command), LOST)
                raise

    # ------------------------------------------------------------------ one exchange

    async def _one(self, exchange: Exchange) -> bool:
        """Try an exchange; return whether the reply to a write can be compared next."""
        keys, row = self._requests.keys_of(exchange), self._tally.row(exchange.command)
        why_not = self._why_not(exchange, keys)
        if why_not in OUTCOMES:
            row[why_not] += 1
            return False
        if why_not:
            self._tally.left(exchange.command, why_not)
            return False
        await self._turn()
        await self._copies.copy(key for key in keys if self._copies.joined(key))
        if exchange.write:
            return await self._try_write(exchange, keys, row)
        await self._try_read(exchange, keys, row)
        return False

    def _why_not(self, exchange: Exchange, keys: list[Key]) -> str:
        if any(key in self._copies.state.filtered for key in keys):
            return "excluded"
        names = {args[0].upper() for args in exchange.requests}
        if names & NOT_COMPARABLE or not keys or self._requests.wire(exchange) is None:
            return "not_comparable"
        if any(self._requests.rules.never(args[0].upper(), args) for args in exchange.requests):
            return "not_comparable"
        if names & self._slow.names or exchange.command in self._slow.names:
            return "not_tried"
        if not all(key in self._copies for key in keys):
            return "not_tried"
        if self._slots_differ(keys):
            return SEVERAL_SLOTS
        return next((why for args in exchange.requests if (why := self._not_allowed(args))), "")

    def _not_allowed(self, args: list[bytes]) -> str:
        """Return why a request may not be tried. A known command at a bounded cost may, and any
        plain one of a key, as an application's user.
        """
        command, plan = self._requests.table.of(args), self._engine.plan
        if args[0].upper() in (COMPARED_WRITES if command.write else COMPARED_READS):
            return ""
        if plan.compare_user is None or not command.known:
            return "not_tried"
        if command.script:
            if not self._engine.route.shadow_scripts or not plan.compare_scripts:
                return SCRIPTS_OFF
            if not command.keys(args):
                return "not_tried"
            return self._unconfined if command.write else ""
        return "" if command.plain and command.keys(args) == args[1:2] else "not_tried"

    def _slots_differ(self, keys: list[Key]) -> bool:
        """Return whether the follower is a cluster, and the keys are in several of its slots."""
        if self._engine.follower.cluster is None or len(keys) == 1:
            return False
        return len({slot_of(self._requests.place(key)[1]) for key in keys}) > 1

    def _version(self, keys: list[Key]) -> int:
        return sum(self._copies.version(key) for key in keys)

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
        row["by_reply"] += 1
        if self._requests.same(exchange, here, there):
            await self._equal(exchange, keys, row)
        else:
            self._wait(exchange, keys, here, row)

    async def _ask_follower(self, exchange: Exchange, keys: list[Key]) -> Reply:
        wire = self._requests.wire(exchange) or []  # `_why_not` saw to it that there is one
        db, name = self._requests.place(keys[0])
        return (await self._follower.ask_all(db, wire, name))[-1]

    def _wait(self, exchange: Exchange, keys: list[Key], here: Reply, row: Counter[str]) -> None:
        identity = _identity(exchange)
        same = self._waiting.get(identity)
        if same is not None or len(self._pending) >= COMPARE_PENDING_MAX:
            moved = same is not None and self._requests.moved(exchange, same.here, here)
            self._tally.undecided(row, MOVED if moved else WAITS if same else CROWDED)
            return
        self._numbers += 1
        self._push(PendingDifference(0.0, self._numbers, exchange, keys, here, self._version(keys)))

    def _push(self, pending: PendingDifference) -> None:
        pending.due = self._now() + self._looks_s[pending.looks]
        pending.looks += 1
        heapq.heappush(self._pending, pending)
        self._waiting[_identity(pending.exchange)] = pending

    async def _look(self, pending: PendingDifference) -> None:
        exchange, keys = pending.exchange, pending.keys
        row = self._tally.row(exchange.command)
        if any(key in self._copies.state.filtered for key in keys):
            row["excluded"] += 1  # a rule leaves it out as it is by now
            return
        await self._turn()
        await self._copies.copy(key for key in keys if self._copies.joined(key))
        try:
            there = await self._ask_follower(exchange, keys)
            # The authority is asked last: what it says now, the follower had time to come to.
            here = (
                pending.here
                if self._requests.is_script(exchange)
                else (await self._authority.ask_all(exchange.db, exchange.wire(), keys[0][1]))[-1]
            )
        except TooSlow:
            await self._try_no_more(exchange, row)
            return
        why = self._why_undecided(pending, here, there)
        if error_code(there) in INFRASTRUCTURE or error_code(here) in INFRASTRUCTURE:
            row["infrastructure"] += 1
        elif why != MOVED and self._requests.same(exchange, here, there):
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

    def _why_undecided(self, pending: PendingDifference, here: Reply, there: Reply) -> str:
        exchange = pending.exchange
        if error_code(here) == "NOPERM" and error_code(pending.here) != "NOPERM":
            return NOT_ALLOWED
        if not self._runs_on(exchange) and self._requests.moved(exchange, pending.here, here):
            return MOVED
        if self._version(pending.keys) != pending.version:
            return WRITTEN
        return NO_SCRIPT if error_code(there) == "NOSCRIPT" else ""

    async def _judge_last(
        self, pending: PendingDifference, there: Reply, row: Counter[str]
    ) -> None:
        """Confirm, unless the journal tells only now of a write between the two replies."""
        exchange, keys = pending.exchange, pending.keys
        await self._lives.check()
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
            rule=self._requests.rules.told(exchange.command, exchange.args),
            script=self._requests.is_script(exchange),
        )
        if self._engine.plan.compare_repair:
            await self._copies.copy(keys)

    async def _equal(self, exchange: Exchange, keys: list[Key], row: Counter[str]) -> None:
        row["equal"] += 1
        self._copies.state.judge(keys)
        await self._reporter.equal(keys, exchange)

    def _runs_on(self, exchange: Exchange) -> bool:
        """Whether the reply is another one later although nothing is written."""
        return any(args[0].upper() in TIME_LEFT for args in exchange.requests)

    # ------------------------------------------------------------------ writes

    async def _try_write(self, exchange: Exchange, keys: list[Key], row: Counter[str]) -> bool:
        """Try a write on scratch copies of its keys; return whether the target takes it, or only
        misses the state that it needs.
        """
        places = [self._requests.place(key) for key in keys]
        wire = self._requests.wire(exchange) or []  # as for reads
        try:
            script = self._requests.is_script(exchange)
            names = [name for _, name in places]
            there = (await self._scratch.tried(places[0][0], names, wire, script=script))[-1]
        except TooSlow:
            await self._try_no_more(exchange, row)
            return False
        except NoScratch as exc:
            self._tally.left(exchange.command, str(exc))
            return False
        except NoDatabase as exc:
            row["divergences"] += 1
            await self._reporter.refused(exchange, keys, str(exc))
            return False
        return await self._took(exchange, keys, row, there)

    async def _took(
        self, exchange: Exchange, keys: list[Key], row: Counter[str], there: Reply
    ) -> bool:
        """Judge whether the target took a write; otherwise as `_try_write`."""
        codes, codes_there = codes_of(parse(exchange.reply)), codes_of(there)
        if INFRASTRUCTURE.intersection(codes + codes_there):
            row["infrastructure"] += 1
            return False
        row["compared"] += 1
        if codes == codes_there:
            row["equal"] += 1
            await self._reporter.accepted(keys, exchange)
            return True
        said = next((str(each) for each in _elements(there) if error_code(each) is not None), "")
        cluster = self._engine.follower.cluster is not None
        leaves = self._requests.is_script(exchange) and would_leave(said, cluster=cluster)
        if leaves or "NOSCRIPT" in codes_there:
            self._tally.undecided(row, LEAVES_COPIES if leaves else NO_SCRIPT)
            return False
        if cause_of_refusal(said) is not Cause.UNKNOWN or await self._lacks(exchange):
            row["divergences"] += 1
            await self._reporter.refused(exchange, keys, said)
            return False
        self._tally.undecided(row, REFUSED_STATE)
        return True

    async def _lacks(self, exchange: Exchange) -> bool:
        """Whether the target lacks a command, rather than the state that it needs."""
        for args in exchange.requests:
            there = await self._ours.call("COMMAND", "INFO", args[0])
            if not there or there[0] is None:
                return True
        return False

    # ------------------------------------------------------------------ what takes too long

    async def _try_no_more(self, exchange: Exchange, row: Counter[str]) -> None:
        row["too_slow"] += 1
        await self._too_slow(exchange.command, self._requests.is_script(exchange))


def _identity(exchange: Exchange) -> tuple[int, tuple[bytes, ...]]:
    return exchange.db, tuple(word for args in exchange.wire() for word in (*args, b"\n"))


def _elements(reply: Reply) -> list[Reply]:
    """A reply and, of a transaction, what is in it."""
    return [reply, *reply] if isinstance(reply, list) else [reply]
