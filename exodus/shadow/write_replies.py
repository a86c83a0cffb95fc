"""Replies to writes: each write is run again on the follower, on the state that it found.

`Histories` says which state that was, which writes followed, and which state they led to. The
writes are run in their order on a scratch copy of the first state. What this leads to has to be the
last state: that proves the first one, and that no other write came between. Only then the replies
are compared, each by the rule of its command (`rules.py`).

A difference is confirmed only where one write stands alone, changed the key, and all gateways told
of themselves afterwards; several writes may have run in another order than they were told in. It is
tried once more: a reply that is another one each time is of a command that is not deterministic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from exodus.control import registry
from exodus.copy.impact import Turn
from exodus.engine import Engine
from exodus.net.leg import NoDatabase, Reply
from exodus.plan.bounds import COMPARE_REPLAYS_PER_S_MAX, COMPARE_TOLD_MS, COMPARE_TRIES_MAX
from exodus.shadow.causes import Cause, cause_of_refusal, near
from exodus.shadow.copies import SampledCopies
from exodus.shadow.exchange import Exchange
from exodus.shadow.histories import NOT_TRIED, OUTSIDE, HistoryStep, Snapshot
from exodus.shadow.investigation import KeyFinding
from exodus.shadow.lives import Lives
from exodus.shadow.replays import NoReplay, replay
from exodus.shadow.reports import Reporter
from exodus.shadow.requests import Requests
from exodus.shadow.rules import INFRASTRUCTURE, codes_of, error_code, parse
from exodus.shadow.scratch import UNDECLARED, Names, NoScratch, Scratch, TextUnknown, TrialOutcome
from exodus.shadow.tally import Tally
from exodus.shadow.trials import TooSlow
from exodus.verify.decode import same_value

LIVE_SYNC = "live sync keeps the copies up"
NO_PAYLOADS = "the target lets nobody see payloads"
RENAMED = "its keys have other names on the target"
OTHER_STATE = "run again, it led to another state"
NO_EFFECT = "the reply differs, and the key did not change"
ORDER = "the reply differs, and several writes came together"
SILENT = "a gateway did not tell of itself"
NAMES = "under other names of its keys, the script has another effect or reply"
UNSEEN = "the script may depend on its keys' names, and it failed where it was to see them"
UNSTEADY = "the reply is another one each time"
NO_DATABASE = "the target lacks the database"
SLOW = "it took longer than Compare waits"
TROUBLE = "a server was in trouble"
LOST = "a connection was lost each time that it was tried"


@dataclass(frozen=True)
class ReplayedWrites:
    """The replies to writes that were run again, one each."""

    replies: list[Reply]
    doubtful: bool  # a script looked for keys that are not there


class WriteReplies:
    """Compares replies to writes, over connections of one engine."""

    def __init__(
        self,
        engine: Engine,
        copies: SampledCopies,
        scratch: Scratch,
        requests: Requests,
        tally: Tally,
        reporter: Reporter,
        lives: Lives,
        too_slow: Callable[[bytes, bool], Awaitable[None]],
        now: Callable[[], float],
        turn: Turn,
    ) -> None:
        """`too_slow` gets each slow command, and whether it is a script.

        Each try waits for `turn`.
        """
        self._engine = engine
        self._copies = copies
        self._scratch = scratch
        self._requests = requests
        self._tally = tally
        self._reporter = reporter
        self._lives = lives
        self._too_slow = too_slow
        self._now = now
        self._turn = turn
        self._left, self._at = COMPARE_REPLAYS_PER_S_MAX, now()

    @property
    def waiting(self) -> Counter[str]:
        """Return how many writes of each command wait for their replies to be compared."""
        return Counter(map(_name, self._copies.state.histories.waiting))

    async def wrote(self, exchange: Exchange, *, tried: bool) -> None:
        """Take a write that a gateway told of. One that was not tried only counts as a write of its
        keys.
        """
        if self._engine.route.sync:
            if tried:
                self._tally.unproved(exchange.command, LIVE_SYNC)
            return
        marks = self._requests.written(exchange)
        keys = {key: marks[key] for key in self._requests.keys_of(exchange)}
        why_not = "" if tried else NOT_TRIED
        if self._engine.follower_facts.payload_version is None:
            why_not = why_not or NO_PAYLOADS
        if any(self._copies.joined(key) for key in keys):
            why_not = why_not or OUTSIDE
        read = [key for key, count in keys.items() if not count]
        if read and not why_not:
            await self._copies.keep_before(read, dict.fromkeys(read, exchange.at_ms))
        self._copies.state.histories.wrote(exchange, keys, why_not=why_not, told=not tried)

    async def step(self, told_until_ms: int) -> None:
        """Compare the replies of what has ended, a bounded number a second; sampled requests were
        taken up to `told_until_ms`.
        """
        histories = self._copies.state.histories
        histories.end(min(self._copies.state.read_until_ms, told_until_ms))
        given_up, histories.given_up = histories.given_up, []
        for exchange, why in given_up:
            self._tally.unproved(exchange.command, why)
        now = self._now()
        earned = (now - self._at) * COMPARE_REPLAYS_PER_S_MAX
        self._left, self._at = min(COMPARE_REPLAYS_PER_S_MAX, self._left + earned), now
        steps = histories.steps
        for _ in range(len(steps)):
            if self._left < 1:
                break
            step = steps[0]  # it stays there while a connection may be lost
            self._left -= len(step.writes)
            await self._turn()
            histories.tries += 1
            why = LOST if histories.tries > COMPARE_TRIES_MAX else await self._why_not(step)
            histories.tries = 0
            steps.popleft()
            if why == SILENT and self._copies.state.read_until_ms < step.at_ms + COMPARE_TOLD_MS:
                steps.append(step)  # its heartbeat may be under way
                continue
            for write in step.writes if why else ():
                self._tally.unproved(write.exchange.command, why)

    async def _why_not(self, step: HistoryStep) -> str:
        """Compare the replies of one step; return why that cannot be done."""
        try:
            replayed = [replay(each.exchange, parse(each.exchange.reply)) for each in step.writes]
            found = await self._run(step, [exchange for exchange, _ in replayed])
            if isinstance(found, str):
                return found
            for (exchange, wanted), there in zip(replayed, found.replies, strict=True):
                if not self._requests.same(exchange, wanted, there):
                    return await self._differs(step, exchange, wanted, there, found)
        except (NoReplay, NoScratch) as exc:
            return str(exc)
        except NoDatabase:
            return NO_DATABASE
        except TooSlow:
            for write in step.writes:
                script = self._requests.is_script(write.exchange)
                await self._too_slow(write.exchange.command, script)
            return SLOW
        for write in step.writes:
            row = self._tally.row(write.exchange.command)
            row["by_reply"] += 1
            await self._reporter.equal(step.keys, write.exchange)
        self._copies.state.judge(step.keys)
        return ""

    async def _run(
        self, step: HistoryStep, exchanges: list[Exchange], *, names: Names = Names.LIKE_KEYS
    ) -> ReplayedWrites | str:
        """Run writes on the state before; their replies, or why these prove nothing."""
        requests: list[list[bytes]] = []
        ends: list[int] = []
        for exchange in exchanges:
            wire = self._requests.wire(exchange)
            if wire is None:
                return RENAMED
            requests += wire
            ends.append(len(requests) - 1)
        places = {key: self._requests.place(key)[1] for key in step.before}
        script = any(map(self._requests.is_script, exchanges))
        before = {places[key]: state for key, state in step.before.items()}
        outcome = await self._scratch.replayed(before, requests, script=script, names=names)
        replies = [outcome.replies[end] for end in ends]
        if any(code in INFRASTRUCTURE for reply in replies for code in codes_of(reply)):
            return TROUBLE
        if outcome.strays:
            return UNDECLARED
        if not self._led_to(step, outcome):
            return await self._other_state(step, before, requests, outcome, script, names)
        return ReplayedWrites(replies, doubtful=outcome.misses > 0)

    async def _other_state(
        self,
        step: HistoryStep,
        before: dict[bytes, Snapshot],
        requests: list[list[bytes]],
        outcome: TrialOutcome,
        script: bool,
        names: Names,
    ) -> str:
        """Return why writes led to another state: for the sake of names, or for another one."""
        if not script or not self._scratch.renames:
            return OTHER_STATE
        if names is Names.HIDDEN:
            return UNSEEN
        other = Names.LIKE_KEYS if names is Names.OWN else Names.OWN
        again = await self._scratch.replayed(before, requests, script=script, names=other)
        if not _same_effect(outcome, again):
            return NAMES
        try:
            seen = await self._scratch.replayed(before, requests, script=script, names=Names.HIDDEN)
        except TextUnknown:
            return OTHER_STATE
        return NAMES if self._led_to(step, seen) else OTHER_STATE

    def _led_to(self, step: HistoryStep, outcome: TrialOutcome) -> bool:
        """Return whether a trial led to the state that the writes led to."""
        return all(
            _same_state(outcome.after[self._requests.place(key)[1]], state)
            for key, state in step.after.items()
        )

    async def _differs(
        self,
        step: HistoryStep,
        exchange: Exchange,
        wanted: Reply,
        there: Reply,
        ran: ReplayedWrites,
    ) -> str:
        """Confirm a difference; return why it is not one."""
        if len(step.writes) > 1:
            return ORDER
        if all(step.before[key] == step.after[key] for key in step.keys):
            return NO_EFFECT
        if ran.doubtful:
            return UNDECLARED
        if not await self._all_gateways_told(step):
            return SILENT
        await self._lives.check()
        again = await self._run(step, [exchange], names=Names.OWN)
        if isinstance(again, str):
            return again
        if self._requests.same(exchange, wanted, again.replies[0]):
            return UNSTEADY
        steady = not self._requests.moved(exchange, there, again.replies[0])
        if self._scratch.renames and self._requests.is_script(exchange):
            why = await self._by_name(step, exchange, wanted, there) if steady else NAMES
            if why:
                return why
        write = step.writes[0].exchange
        row = self._tally.row(write.command)
        row["by_reply"] += 1
        row["divergences"] += 1
        self._copies.state.judge(step.keys)
        await self._reporter.confirmed(
            write,
            step.keys,
            parse(write.reply),
            there,
            rule=self._requests.rules.told(write.command, write.args),
            finding=KeyFinding(
                _cause(wanted, there, steady=steady), "run on the state that it found"
            ),
        )
        return ""

    async def _by_name(
        self, step: HistoryStep, exchange: Exchange, wanted: Reply, there: Reply
    ) -> str:
        """Return why a script's difference may come from the names of its copies; empty: it does
        not, since it stays where the script sees the names of its keys.

        Raises:
            TextUnknown: nobody tells the script's text.
        """
        seen = await self._run(step, [exchange], names=Names.HIDDEN)
        if isinstance(seen, str):
            return seen
        if self._requests.same(exchange, wanted, seen.replies[0]):
            return NAMES
        failed = error_code(seen.replies[0]) not in (None, error_code(there))
        return UNSEEN if failed else ""

    async def _all_gateways_told(self, step: HistoryStep) -> bool:
        """Return whether each gateway told of itself after the step: it has told of its writes."""
        beats = await registry.heartbeats(self._engine.store, "gateway")
        return all(beat.at_ms > step.at_ms for beat in beats)


def _same_state(one: Snapshot, other: Snapshot) -> bool:
    """Return whether two states are shown to be equal; of expiries only that there is one."""
    if one.payload is None or other.payload is None:
        return one.payload is other.payload
    return bool(one.expiry_ms) == bool(other.expiry_ms) and (
        one.payload == other.payload or same_value(one.payload, other.payload)
    )


def _same_effect(one: TrialOutcome, other: TrialOutcome) -> bool:
    """Return whether two trials led to the same states."""
    return all(_same_state(state, other.after[key]) for key, state in one.after.items())


def _cause(wanted: Reply, there: Reply, *, steady: bool) -> Cause:
    if not steady:
        return Cause.NON_DETERMINISTIC
    if error_code(there) is not None:
        refusal = cause_of_refusal(str(there))
        return Cause.VERSION if refusal is Cause.UNKNOWN else refusal
    return Cause.PRECISION if near(wanted, there) else Cause.VERSION


def _name(exchange: Exchange) -> str:
    return exchange.command.decode("ascii", "replace")
