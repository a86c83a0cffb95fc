"""A trial copy: a sample of the source's keys in an empty database of the target. On a cluster it
is in database 0, under a prefix that nobody has.

Keys are copied by the engine's own `sync(key)` and compared by its own comparison, in full. The
copy stays until `remove_trial`, because business checks read it. A key that changed since it was
copied is copied again before it is judged: only a difference of a key that stood still counts.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from exodus.acceptance.rows import Checked, told
from exodus.control.changes import Key
from exodus.control.route import read_route
from exodus.control.schema import guard_key
from exodus.control.store import ControlStore
from exodus.copy.cluster_grants import guard_keys
from exodus.copy.guard import no_room, set_writer_epoch
from exodus.copy.impact import Paces
from exodus.copy.key import Copier
from exodus.copy.scan import plan_slices, scan_once
from exodus.engine import Engine, open_engine
from exodus.errors import DecisionRefused, NoRoom, TargetError
from exodus.net.leg import ReplyError
from exodus.plan.bounds import (
    ACCEPTANCE_NAMED,
    MEMORY_MARGIN,
    TRIAL_BATCH_KEYS,
    TRIAL_BUSINESS_KEYS_MAX,
    TRIAL_LOOKS,
    TRIAL_SETTLE_S,
    TRIAL_SLICES,
    TRIAL_WEIGHED_KEYS_MIN,
)
from exodus.plan.own_keys import is_own
from exodus.plan.plan import Plan
from exodus.plan.scope import Rename
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from exodus.verify.comparison import Divergence, open_comparison
from exodus.verify.reconcile import compare_now

REPORT = "test.trial"  # where the copy is, until it is removed
_PREFIX = "exodus:trial:"


@dataclass
class TrialCopy:
    """What was copied, and where."""

    database: int  # of the target
    prefix: str = ""  # of the copy's keys, where other keys may be in that database
    keys: list[Key] = field(default_factory=list)
    whole: dict[str, int] = field(default_factory=dict)  # pattern of business checks → its keys
    failed: dict[str, str] = field(default_factory=dict)  # key → reason
    stood: dict[Key, bytes] = field(default_factory=dict)  # as each key was before its copy
    memory_source: int = 0  # of the copied keys, by MEMORY USAGE
    memory_target: int = 0
    wanted: int = 0  # keys of the sample
    full: str = ""  # why the target took no more keys; the rest of the sample is not there

    @property
    def place(self) -> str:
        """Return where the copy is, in words."""
        where = f"database {self.database} of the target"
        return f"{where}, as {self.prefix}*" if self.prefix else where


def _scratch_engine(engine: Engine, trial: TrialCopy, guard_name: str) -> Engine:
    """Return the engine with a copy's keys in one database; those of other databases than the
    first get a prefix.
    """
    databases = sorted(engine.authority_facts.databases)
    renames = [
        Rename(
            database=db,
            to_database=trial.database,
            to_prefix=trial.prefix + (f"db{db}:" if db != databases[0] else "") or None,
        )
        for db in databases
    ]
    plan = engine.plan.model_copy(update={"name": guard_name, "renames": tuple(renames)})
    return Engine(
        plan,
        engine.store,
        engine.route.model_copy(update={"writer_epoch": 1, "native": False}),
        engine.authority,
        engine.follower,
        engine.authority_facts,
        engine.follower_facts,
    )


@asynccontextmanager
async def _opened(
    plan: Plan, store: ControlStore, trial: TrialCopy, *, writes: bool = True
) -> AsyncIterator[Engine]:
    """Around the work on one copy: its guard is there, and gone afterwards. Without `writes` there
    is none.

    Raises:
        NoRoom: the target takes no guard.
    """
    guard_name = f"trial-{secrets.token_hex(4)}"
    engine = await open_engine(store, plan, await read_route(store))
    engine = _scratch_engine(engine, trial, guard_name)
    if not writes:
        yield engine
        return
    cluster = engine.follower.cluster is not None
    guards = guard_keys(guard_name) if cluster else [guard_key(guard_name)]
    async with await engine.follower.connect(name="exodus-trial") as leg:
        try:
            try:
                await set_writer_epoch(engine.follower, guard_name, 1)
            except ReplyError as exc:
                raise no_room(Side.TARGET, str(exc)[:200]) from exc
            yield engine
        finally:
            await leg.call("UNLINK", *guards)


async def _free_place(plan: Plan) -> TrialCopy:
    """Return a copy that has no key yet, in the last database that has none on either side; or
    under a prefix, on a cluster: clients of business checks know database 0 only there.
    """
    target = Endpoint(Side.TARGET, plan.target)
    if target.cluster is not None:
        return TrialCopy(0, f"{_PREFIX}{secrets.token_hex(4)}:")
    facts = await target.facts()
    source = await Endpoint(Side.SOURCE, plan.source).facts()
    taken = facts.databases.keys() | source.databases.keys()
    for database in range(facts.database_count - 1, 0, -1):
        if database not in taken:
            return TrialCopy(database)
    raise DecisionRefused(
        "there is no empty database for a trial copy",
        why=f"the target lets Exodus into {facts.database_count} database(s), and database 0 is "
        "where the migration goes",
        next_step="give the target another database, or set test_checks.data: off",
    )


async def why_not_now(store: ControlStore) -> str | None:
    """Return why no trial copy can be made now, or None."""
    route = await read_route(store)
    if route.sync or route.native or route.authority is not Side.SOURCE:
        return "the migration itself copies to the target now; exodus verify compares both sides"
    return None


async def copy_trial(plan: Plan, store: ControlStore) -> TrialCopy:
    """Copy the sample, within the impact budget, as far as the target has room (`full`).

    Raises:
        DecisionRefused: the target has no empty database.
        SourceError, TargetError: a side was lost.
    """
    await remove_trial(plan, store)
    if (why := await why_not_now(store)) is not None:
        raise DecisionRefused(
            "no trial copy is made now", why=why, next_step="exodus verify compares both sides"
        )
    trial = await _free_place(plan)
    try:
        async with _opened(plan, store, trial) as engine:
            await _copy_sample(engine, trial)
    except NoRoom as exc:
        trial.full = exc.why
    async with _opened(plan, store, trial, writes=False) as engine:
        await _weigh(engine, trial)
    return trial


async def _copy_sample(engine: Engine, trial: TrialCopy) -> None:
    what = "trial copy"
    async with Paces(engine.store, engine.authority, engine.plan.budget, what=what) as pace:
        keys = await _sample(engine, engine.plan, trial)
        trial.wanted = len(keys)
        await _note(engine, trial, keys)
        copier = await engine.copier(engine.guard(), name="exodus-trial")
        try:
            for start in range(0, len(keys), TRIAL_BATCH_KEYS):
                await pace.turn()
                await _copy(engine, copier, trial, keys[start : start + TRIAL_BATCH_KEYS])
        finally:
            await copier.close()


async def _note(engine: Engine, trial: TrialCopy, keys: Sequence[Key]) -> None:
    """Write down what will be there, so that a later run can remove what a dead one left."""
    names = [engine.scope.target_key(db, key)[1].hex() for db, key in keys]
    place = {"database": trial.database, "prefix": trial.prefix}
    await engine.store.save_report(REPORT, {**place, "keys": names})


async def _sample(engine: Engine, plan: Plan, trial: TrialCopy) -> list[Key]:
    """Draw keys from every part of the keyspace, and all that business checks ask for."""
    wanted = plan.test_checks.data_keys
    slices = await plan_slices(engine.authority, TRIAL_SLICES)
    total = sum(engine.authority_facts.databases.values()) or 1
    nodes = len({piece.node for piece in slices})
    found: list[Key] = []
    for piece in slices:
        # Of a cluster each node counts alike: slots, and so keys, are spread over them.
        share = engine.authority_facts.databases[piece.db] / total / piece.count / nodes
        quota, cursor = -(-int(wanted * share * 1000) // 1000) + 1, piece.start
        node = await engine.authority.node(piece.node)
        async with await node.connect(piece.db, name="exodus-trial") as leg:
            while quota > 0:
                cursor, keys = await scan_once(leg, cursor, TRIAL_BATCH_KEYS)
                some = [key for key in keys if _carried(engine, piece.db, key)][:quota]
                found += [(piece.db, key) for key in some]
                quota -= len(some)
                if piece.ended(cursor):
                    break
    for pattern in plan.test_checks.business_patterns:
        whole = await _matching(engine, pattern)
        trial.whole[pattern] = len(whole)
        found += whole
    return list(dict.fromkeys(found))


def _carried(engine: Engine, db: int, key: bytes) -> bool:
    probes = engine.plan.rehearsal_prefix.encode()
    return not is_own(key) and not key.startswith(probes) and not engine.scope.filtered_by(db, key)


async def _matching(engine: Engine, pattern: str) -> list[Key]:
    found: list[Key] = []
    places = [
        (node, db)
        for node in await engine.authority.each_node()
        for db in engine.authority_facts.databases
    ]
    for node, db in places:
        async with await node.connect(db, name="exodus-trial") as leg:
            cursor = b"0"
            while len(found) < TRIAL_BUSINESS_KEYS_MAX:
                cursor, keys = await leg.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
                found += [(db, key) for key in keys if _carried(engine, db, key)]
                if cursor == b"0":
                    break
    return found[:TRIAL_BUSINESS_KEYS_MAX]


async def _states(endpoint: Endpoint, keys: Sequence[Key]) -> dict[Key, bytes]:
    """Return a digest of each key's value and expiry; of one that is not there, of that."""
    found: dict[Key, bytes] = {}
    for db in sorted({db for db, _ in keys}):
        mine = [key for at, key in keys if at == db]
        async with await endpoint.connect(db=db, name="exodus-trial") as leg:
            now = await leg.call("TIME")
            replies = await leg.pipeline(
                [(command, key) for key in mine for command in ("DUMP", "PTTL")]
            )
        at_ms = int(now[0]) * 1000 + int(now[1]) // 1000
        for key, value, left in zip(mine, replies[::2], replies[1::2], strict=True):
            expires = isinstance(left, int) and left >= 0
            # Two readings of one expiry differ by what passes between TIME and PTTL.
            rounded = round((at_ms + left) / 1000) if expires else left
            text = b"%r %r" % (value if isinstance(value, bytes) else None, rounded)
            found[db, key] = hashlib.sha256(text).digest()
    return found


async def _copy(engine: Engine, copier: Copier, trial: TrialCopy, keys: Sequence[Key]) -> None:
    before = await _states(engine.authority, keys)
    for db in sorted({db for db, _ in keys}):
        report = await copier.sync_keys(db, [key for at, key in keys if at == db])
        for failure in report.failed:
            trial.failed[f"{db}:{failure.key.decode('utf-8', 'backslashreplace')}"] = failure.reason
    for key in keys:
        if key not in trial.stood:
            trial.keys.append(key)
    trial.stood |= before


async def _weigh(engine: Engine, trial: TrialCopy) -> None:
    async with await engine.follower.connect(db=trial.database, name="exodus-trial") as target:
        for db in sorted({db for db, _ in trial.keys}):
            mine = [key for at, key in trial.keys if at == db]
            there = [engine.scope.target_key(db, key)[1] for key in mine]
            async with await engine.authority.connect(db=db, name="exodus-trial") as source:
                ours = await source.pipeline([("MEMORY", "USAGE", key) for key in mine])
            theirs = await target.pipeline([("MEMORY", "USAGE", key) for key in there])
            # A longer name there is no memory that the key itself needs.
            both = [
                (here + len(name) - len(key), over)
                for key, name, here, over in zip(mine, there, ours, theirs, strict=True)
                if isinstance(here, int) and isinstance(over, int)
            ]
            trial.memory_source += sum(here for here, _ in both)
            trial.memory_target += sum(over for _, over in both)


async def verify_trial(plan: Plan, store: ControlStore, trial: TrialCopy) -> list[Checked]:
    """Compare every copied key in full, and the memory with the estimate."""
    async with _opened(plan, store, trial, writes=not trial.full) as engine:
        wrong, moving = await _differences(engine, trial)
        alone = await _alone(engine, trial)
    return [
        *_judged(trial, wrong, moving),
        *alone,
        _memory(
            trial,
            engine.authority_facts.used_memory,
            engine.follower_facts.maxmemory,
            engine.follower_facts.used_memory,
        ),
    ]


async def _differences(engine: Engine, trial: TrialCopy) -> tuple[dict[Key, Divergence], list[Key]]:
    """Return what differs although the source stood still, and the keys that never stood still."""
    wrong: dict[Key, Divergence] = {}
    left = [key for key in trial.keys if f"{key[0]}:{_text(key[1])}" not in trial.failed]
    comparison = await open_comparison(engine)
    copier = await engine.copier(engine.guard(), name="exodus-trial")
    try:
        for _ in range(TRIAL_LOOKS):
            found = {(each.db, each.key): each for each in await compare_now(comparison, left)}
            if not found:
                return wrong, []
            now = await _states(engine.authority, list(found))
            stood = {key for key in found if now[key] == trial.stood[key]}
            wrong |= {key: found[key] for key in stood}
            left = [key for key in found if key not in stood]
            if trial.full:
                break
            await asyncio.sleep(TRIAL_SETTLE_S)
            await _copy(engine, copier, trial, left)
    except NoRoom as exc:
        trial.full = exc.why
    finally:
        await comparison.close()
        await copier.close()
    return wrong, left


async def _alone(engine: Engine, trial: TrialCopy) -> list[Checked]:
    """Look for keys in the copy's database that are not of the copy. Under a prefix, on a cluster,
    other keys are expected.
    """
    if trial.prefix:
        return []
    ours = {engine.scope.target_key(db, key)[1] for db, key in trial.keys}
    others: dict[bytes, None] = {}  # SCAN may name a key twice
    async with await engine.follower.connect(db=trial.database, name="exodus-trial") as leg:
        cursor = 0
        while len(others) <= ACCEPTANCE_NAMED:
            cursor, keys = await scan_once(leg, cursor, TRIAL_BATCH_KEYS)
            others |= dict.fromkeys(key for key in keys if key not in ours and not is_own(key))
            if not cursor:
                break
    named = ", ".join(_text(key) for key in [*others][:ACCEPTANCE_NAMED])
    more = " and more" if len(others) > ACCEPTANCE_NAMED else ""
    return [
        Checked(
            "trial copy: no other keys are there",
            not others,
            f"{named}{more}" if others else f"database {trial.database} had no key before",
            "others write to the target, or a key came that the source does not have",
            "find who writes to the target; the follower must have no other writer",
        )
    ]


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _judged(trial: TrialCopy, wrong: dict[Key, Divergence], moving: Sequence[Key]) -> list[Checked]:
    keys = len(trial.keys)
    if not keys:
        return [] if trial.full else [told("trial copy", "the source has no keys to copy")]
    expiries = [each for each in wrong.values() if each.kind == "expiry"]
    values = [each for each in wrong.values() if each.kind != "expiry"]

    def named(found: Sequence[Divergence]) -> str:
        return "; ".join(
            f"{each.db}:{_text(each.key)}: {each.kind} {each.detail}".strip()
            for each in found[:ACCEPTANCE_NAMED]
        )

    failed = [f"{key}: {why}" for key, why in trial.failed.items()]
    what = f"{keys:,} keys in {trial.place}"
    return [
        Checked(
            "trial copy: every key could be carried",
            not failed,
            "; ".join(failed[:ACCEPTANCE_NAMED]) or what,
            "Migrate would list these keys as dead letters",
            "mend what the reason says, filter these keys out, or be ready to accept them by name",
        ),
        Checked(
            "trial copy: values are equal",
            not values,
            named(values) or f"{keys - len(expiries) - len(moving):,} keys compared in full",
            "the copy of a key that did not change is not the key",
            "look at the keys on both sides, and for others who write to the target",
        ),
        Checked(
            "trial copy: expiries are equal",
            not expiries,
            named(expiries) or "none differs",
            "keys would live longer or shorter than now",
            "compare the clocks of both servers, and look for others who write to the target",
        ),
        told(
            "trial copy: keys that never stood still",
            f"{len(moving)} changed in each of {TRIAL_LOOKS} looks, and were not judged",
        ),
    ]


def _memory(trial: TrialCopy, source_used: int, limit: int, used: int) -> Checked:
    """Judge the memory of all keys; of clusters, in bytes of all masters together."""
    what = "trial copy: memory"
    if trial.full:
        return Checked(
            what,
            False,
            f"the target took {len(trial.keys):,} of {trial.wanted or 'the'} keys: {trial.full}",
            "Migrate would stop at the same place",
            "make room on the target, or mend what the reason says",
        )
    if not trial.memory_source:
        return told(what, "no key was weighed")
    factor = trial.memory_target / trial.memory_source
    needed = int(source_used * factor)
    short = bool(limit) and used + needed > limit
    larger = factor > MEMORY_MARGIN and len(trial.keys) >= TRIAL_WEIGHED_KEYS_MIN
    detail = (
        f"the sample takes {factor:.2f} times its memory on the source; all keys then take about "
        f"{needed:,} bytes of {f'{limit:,}' if limit else 'no limit'}"
    )
    return Checked(
        what,
        not larger and not short,
        detail,
        f"the estimate allows for {MEMORY_MARGIN} times",
        f"set maxmemory of the target to {int(needed * MEMORY_MARGIN):,} or more",
        line=f"trial copy of {len(trial.keys):,} keys: {detail}",
    )


async def remove_trial(plan: Plan, store: ControlStore) -> int:
    """Remove the trial copy, also one that a dead run left; how many keys it had.

    Raises:
        SourceError, TargetError: the target was lost; the copy is still known.
    """
    kept = await store.report(REPORT)
    if kept is None:
        return 0
    names = [bytes.fromhex(name) for name in kept["keys"]]
    prefix = str(kept.get("prefix") or "")
    ours = prefix.startswith(_PREFIX) and all(name.startswith(prefix.encode()) for name in names)
    if int(kept["database"]) <= 0 and not ours:
        # no copy of ours: somebody else wrote to the control store
        raise DecisionRefused(
            "the trial copy is not removed",
            why=f"the control store says that it is in database {kept['database']}, where a copy "
            "has keys of its own prefix only",
            next_step="find out who writes to the control store; then remove the report test.trial",
        )
    removed = 0
    endpoint = Endpoint(Side.TARGET, plan.target)
    async with await endpoint.connect(db=int(kept["database"]), name="exodus-trial") as leg:
        for start in range(0, len(names), TRIAL_BATCH_KEYS):
            part = names[start : start + TRIAL_BATCH_KEYS]
            replies = await leg.pipeline([("UNLINK", name) for name in part])
            refused = next((each for each in replies if isinstance(each, ReplyError)), None)
            if refused is not None:
                raise TargetError(
                    "the trial copy cannot be removed",
                    why=str(refused),
                    next_step=f"let Exodus's user run UNLINK in database {kept['database']}",
                )
            removed += sum(map(int, replies))
    await store.drop_report(REPORT)
    return removed
