"""Looking for the cause of a confirmed divergence: what both servers and the gateways say."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from exodus.control import registry
from exodus.control.changes import Key
from exodus.copy.impact import Turn
from exodus.copy.key import BatchReport, Copier
from exodus.engine import Engine
from exodus.net.client import answered
from exodus.net.info import info_of
from exodus.net.leg import Leg, Reply
from exodus.plan.bounds import COMPARE_EXPIRY_MS
from exodus.shadow.causes import Cause, KeyEvidence, cause_of_refusal, cause_of_state, near
from exodus.shadow.copies import SampledCopies, print_of, print_of_state
from exodus.shadow.divergences import shown_error
from exodus.shadow.rules import Rules, error_code
from exodus.verify.comparison import Comparison, Divergence, open_comparison
from exodus.verify.reconcile import compare_now

_SCRIPTS = ("EVAL", "EVALSHA", "FCALL")
_UNORDERED = Rules()


@dataclass(frozen=True)
class KeyFinding:
    """The cause, and what differs of the key."""

    cause: Cause
    detail: str = ""


@dataclass(frozen=True)
class Baseline:
    """Counters of both servers and the gateways when a sampling began."""

    evicted_authority: int = 0
    evicted_follower: int = 0
    scripts: int = 0


class Investigation:
    """Finds causes, over connections of one engine."""

    def __init__(
        self, engine: Engine, copies: SampledCopies, copier: Copier, ours: Leg, turn: Turn
    ) -> None:
        """`turn` is waited for before each piece of a large key."""
        self._engine = engine
        self._copies = copies
        self._copier = copier
        self._ours = ours
        self._turn = turn
        self._comparison: Comparison | None = None

    async def close(self) -> None:
        """End the connections."""
        if self._comparison is not None:
            await self._comparison.close()

    async def baseline(self) -> Baseline:
        """Return the counters of now."""
        async with await self._engine.authority_leg(name="exodus-compare") as leg:
            authority = await _evicted(leg)
        return Baseline(authority, await _evicted(self._ours), await self._scripts())

    async def differences(self, keys: list[Key]) -> list[Divergence]:
        """Compare the keys' states; those that differ."""
        if self._comparison is None:
            self._comparison = await open_comparison(
                self._engine, slack_ms=expiry_slack_ms(self._engine), turn=self._turn
            )
        return await compare_now(self._comparison, keys)

    async def cause(
        self, keys: list[Key], here: Reply, there: Reply, *, script: bool, since: Baseline
    ) -> KeyFinding:
        """Return why the replies differ that both sides gave of these keys."""
        if error_code(there) is not None and error_code(here) is None:
            refusal = cause_of_refusal(str(there))
            if refusal is not Cause.UNKNOWN:
                masked = self._engine.plan.compare_masked
                return KeyFinding(refusal, shown_error(str(there), masked=masked))
        differ = await self.differences(keys)
        if not differ:
            if near(here, there):
                return KeyFinding(Cause.PRECISION, "the states are equal")
            cause = Cause.NON_DETERMINISTIC if script or _reordered(here, there) else Cause.VERSION
            return KeyFinding(cause, "the states are equal")
        found = differ[0]
        text = f"{found.kind}: {found.detail}" if found.detail else found.kind
        if found.kind == "value" and near(here, there):
            return KeyFinding(Cause.PRECISION, text)
        return KeyFinding(await self.of_state(found, since), text)

    async def of_state(self, found: Divergence, since: Baseline) -> Cause:
        """Return why a key's states differ."""
        return cause_of_state(await self._evidence(found, since))

    async def _evidence(self, found: Divergence, since: Baseline) -> KeyEvidence:
        key = (found.db, found.key)
        now = await self.baseline()
        copied = self._copies.state.keys.get(key)
        evicted = {
            "evicted_follower": now.evicted_follower > since.evicted_follower,
            "evicted_authority": now.evicted_authority > since.evicted_authority,
            "scripts_ran": now.scripts > since.scripts,
        }
        if copied is None or copied.print_authority is None:
            return KeyEvidence(found.kind, **evicted)
        states = await self._copier.read(found.db, [found.key], BatchReport())
        moved = None
        if states and not states[0].large:
            # Servers without PEXPIRETIME tell the time left, which is read a little later.
            moved = (
                print_of_state(states[0]) != copied.print_authority
                or (states[0].expiry_ms > 0) != (copied.expiry_ms > 0)
                or abs(states[0].expiry_ms - copied.expiry_ms) > COMPARE_EXPIRY_MS
            )
        to_db, to = self._engine.scope.target_key(*key)
        await self._ours.select(to_db)
        (dump,) = await self._ours.pipeline([("DUMP", to)])
        there = print_of(dump)
        now_ms = await _clock_ms(self._ours)
        return KeyEvidence(
            found.kind,
            authority_moved=moved,
            follower_moved=there != copied.print_follower,
            follower_as_before=there == copied.print_before,
            copied_absent=not copied.print_authority,
            expired=0 < copied.expiry_ms <= now_ms,
            **evicted,
        )

    async def _scripts(self) -> int:
        """Return how many scripts that may write the gateways have relayed."""
        store, count = self._engine.store, 0
        for beat in await registry.heartbeats(store, "gateway"):
            raw = await answered(store.client.get(store.keys.telemetry(beat.process)))
            commands = {} if raw is None else orjson.loads(raw)["commands"]
            count += sum(commands.get(name, {}).get("calls", 0) for name in _SCRIPTS)
        return count


def expiry_slack_ms(engine: Engine) -> int:
    """Return by how much expiries of a state may differ. Where a slot of a cluster moves, MIGRATE
    sends the time that is left: the key expires some ms later there (decision 22).
    """
    clusters = (engine.authority.cluster, engine.follower.cluster)
    return 0 if clusters == (None, None) else COMPARE_EXPIRY_MS


def _reordered(here: Reply, there: Reply) -> bool:
    return (
        isinstance(here, list)
        and isinstance(there, list)
        and _UNORDERED.equivalent(b"SMEMBERS", here, there)
    )


async def _evicted(leg: Leg) -> int:
    count = 0
    for node in await leg.nodes():
        (raw,) = await node.pipeline([("INFO", "stats")])
        count += int(info_of(raw).get("evicted_keys", 0)) if isinstance(raw, bytes) else 0
    return count


async def _clock_ms(leg: Leg) -> int:
    seconds, micros = await leg.call("TIME")
    return int(seconds) * 1000 + int(micros) // 1000
