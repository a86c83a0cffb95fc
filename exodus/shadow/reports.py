"""What the comparer writes into the ledger of divergences: rows with their cause, the values, and
the writes before them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

from exodus.control.changes import Key
from exodus.control.store import ControlStore
from exodus.copy.key import Failure
from exodus.net.leg import Reply
from exodus.plan.bounds import COMPARE_KEYS_MAX, COMPARE_WRITES_KEPT, DIVERGENCE_REQUESTS_MAX
from exodus.shadow import divergences
from exodus.shadow.causes import Cause, cause_of_refusal
from exodus.shadow.divergences import COPYING, REFUSED, REQUESTS, STATE, DivergenceState, shown
from exodus.shadow.exchange import Exchange
from exodus.shadow.investigation import Baseline, Investigation, KeyFinding
from exodus.verify.comparison import Divergence


class Writes:
    """The last writes of each sampled key, as the shadow stream told of them."""

    def __init__(self) -> None:
        self._by_key: dict[Key, deque[str]] = {}

    def add(self, exchange: Exchange, keys: list[Key]) -> None:
        """Note a write."""
        at = datetime.fromtimestamp(exchange.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
        command = exchange.command.decode("ascii", "replace")
        for key in keys:
            if key in self._by_key or len(self._by_key) < COMPARE_KEYS_MAX:
                kept = self._by_key.setdefault(key, deque(maxlen=COMPARE_WRITES_KEPT))
                kept.append(f"{at} {command} from {exchange.client}")

    def of(self, keys: list[Key]) -> list[str]:
        """Return the last writes of these keys."""
        return [line for key in keys for line in self._by_key.get(key, ())]


@dataclass
class OpenRow:
    """What is known of an open row."""

    kind: str
    cause: str
    requests: set[str] = field(default_factory=set)  # digests of its different requests


class Reporter:
    """Writes rows for one engine's connections."""

    def __init__(
        self,
        store: ControlStore,
        investigation: Investigation,
        since: Baseline,
        writes: Writes,
        *,
        masked: bool,
    ) -> None:
        self._store = store
        self._investigation = investigation
        self._since = since
        self._masked = masked
        self.writes = writes
        self.lost = 0  # rows that the ledger had no room for
        self._open: dict[bytes, OpenRow] = {}  # field of the row -> what is known of it

    async def begin(self) -> None:
        """Learn which rows are open."""
        self._open = {
            name: OpenRow(row["kind"], row["cause"], set(row.get(REQUESTS, [])))
            for name, row in (await divergences.open_rows(self._store)).items()
        }

    async def equal(self, keys: list[Key], exchange: Exchange) -> None:
        """Heal an open row, if no other request of it differs than the one that is equal now."""
        if not self._open:
            return
        command = _command(exchange)
        name = divergences.row_id(keys[0], command)
        row = self._open.get(name)
        if row is None:
            return
        if row.requests:
            if exchange.digest not in row.requests:
                return
            left = await divergences.equal_now(self._store, keys[0], command, exchange.digest)
            row.requests = set(left)
            if left:
                return
        del self._open[name]
        await divergences.heal(self._store, keys[0], command)

    async def state_is_equal(self, key: Key) -> None:
        """Heal an open row of a state that was seen to be equal now."""
        if self._open.pop(divergences.row_id(key, STATE), None) is not None:
            await divergences.heal(self._store, key, STATE)

    async def accepted(self, keys: list[Key], exchange: Exchange) -> None:
        """Heal an open row of what the target refused, and takes now.

        A right is of the command. An option that the target lacks is of the request.
        """
        row = self._open.get(divergences.row_id(keys[0], _command(exchange)))
        if row is None or row.kind != REFUSED:
            return
        if row.cause != Cause.VERSION:
            row.requests = set()
        await self.equal(keys, exchange)

    async def pending(self, exchange: Exchange, keys: list[Key], detail: str) -> None:
        """Keep a difference that is not judged to the end."""
        await self._note(
            keys,
            _command(exchange),
            kind="replies differ",
            cause="",
            detail=detail,
            state=DivergenceState.PENDING,
        )

    async def withdrawn(self, exchange: Exchange, keys: list[Key]) -> None:
        """Drop it again: the difference went away, or nothing can be said of it."""
        await divergences.withdraw(self._store, keys[0], _command(exchange))

    async def confirmed(
        self,
        exchange: Exchange,
        keys: list[Key],
        here: Reply,
        there: Reply,
        *,
        rule: str,
        script: bool = False,
        finding: KeyFinding | None = None,
    ) -> None:
        """Keep a confirmed difference of replies; `finding` is its cause where that is known."""
        found = finding or await self._investigation.cause(
            keys, here, there, script=script, since=self._since
        )
        await self._note(
            keys,
            _command(exchange),
            kind="replies differ",
            cause=found.cause,
            detail=f"{found.detail}; rule: {rule}" if found.detail else f"rule: {rule}",
            request=exchange.digest,
            values={
                "request": shown([list(args) for args in exchange.requests], masked=self._masked),
                "authority_value": shown(here, masked=self._masked),
                "follower_value": shown(there, masked=self._masked),
            },
        )

    async def refused(self, exchange: Exchange, keys: list[Key], said: str) -> None:
        """Keep that the target refuses a request that the authority took."""
        await self._note(
            keys,
            _command(exchange),
            kind=REFUSED,
            cause=cause_of_refusal(said),
            detail=divergences.shown_error(said, masked=self._masked),
            request=exchange.digest,
        )

    async def state_differs(self, found: Divergence) -> None:
        """Keep that the states of a key differ."""
        cause = await self._investigation.of_state(found, self._since)
        await self._note(
            [(found.db, found.key)],
            STATE,
            kind=f"the state differs: {found.kind}",
            cause=cause,
            detail=found.detail,
        )

    async def not_copied(self, failure: Failure) -> None:
        """Keep that a key failed to copy."""
        await self._note(
            [(failure.db, failure.key)],
            COPYING,
            kind="cannot be carried",
            cause=cause_of_refusal(failure.reason),
            detail=divergences.shown_error(failure.reason, masked=False),
        )

    async def _note(
        self,
        keys: list[Key],
        command: str,
        *,
        kind: str,
        cause: str,
        detail: str,
        state: DivergenceState = DivergenceState.CONFIRMED,
        values: dict[str, str] | None = None,
        request: str = "",
    ) -> None:
        kept = await divergences.note(
            self._store,
            keys[0],
            command,
            kind=kind,
            cause=cause,
            state=state,
            values=values,
            request=request,
            detail=detail,
            keys=len(keys),
            writes=self.writes.of(keys)[-COMPARE_WRITES_KEPT:],
        )
        self.lost += not kept
        if state is DivergenceState.CONFIRMED:
            name = divergences.row_id(keys[0], command)
            row = self._open.setdefault(name, OpenRow(kind, cause))
            row.kind, row.cause = kind, cause
            if request and len(row.requests) <= DIVERGENCE_REQUESTS_MAX:
                row.requests.add(request)


def _command(exchange: Exchange) -> str:
    return exchange.command.decode("ascii", "replace")
