"""The progress of a backfill and of a verification.

A backfill has one JSON document a slice, in one hash a run, and a stream with one row a chunk. A
cursor is valid only together with the node's run id, the database, and the slice (race rule 5), so
they are stored together. Whoever resumes compares them, and begins the slice anew if they differ.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from exodus.control.store import ControlStore
from exodus.net.client import answered


class SliceProgress(BaseModel):
    """One slice of one database of one node."""

    model_config = ConfigDict(extra="forbid")

    slice_id: str  # "NODE/DB/INDEX of COUNT"
    run_id: str  # of the node, from INFO server; empty before it was asked
    cursor: int = 0  # SCAN goes on from here
    done: bool = False
    scans: int = 0  # SCAN calls made, over all attempts
    keys_seen: int = 0
    keys_copied: int = 0
    keys_removed: int = 0  # gone by the time they were read
    keys_failed: int = 0  # listed as dead letters
    keys_skipped: int = 0  # Exodus's own
    keys_excluded: int = 0  # left out by a rule
    payload_bytes: int = 0
    usage_kept: int = 0  # keys that took their idle time or frequency along
    re_marked: int = 0  # changed while their chunk was in flight (race rule 3)
    seconds: float = 0.0  # of work, over all attempts
    began_ms: int = 0  # by the control store's clock: the first attempt
    ended_ms: int = 0  # the end of the last one
    restarts: int = 0  # times the cursor was void
    attempts: int = 0  # times a process took the slice up
    chunks: int = 0  # chunks checkpointed; a resumed slice never repeats one
    why: str = ""  # what the slice waits for
    worker: str = ""  # HOST:PID of the process that took it up last
    not_sent: dict[str, int] = Field(default_factory=dict)  # why MIGRATE did not carry them → keys
    excluded: dict[str, int] = Field(default_factory=dict)  # the rule that left them out → keys
    # How keys were carried, with the reason where it was not the first choice
    strategies: dict[str, int] = Field(default_factory=dict)


class DirectionProgress(BaseModel):
    """A verification in one direction."""

    model_config = ConfigDict(extra="forbid")

    cursors: dict[str, int] | None = (
        None  # slices that are not done → where each goes on; None: not begun
    )
    # "NODE/DB/INDEX" of the slice after it → digests of keys counted on one side only
    borders: dict[str, list[str]] = Field(default_factory=dict)


class PassProgress(BaseModel):
    """A verification between two batches. It holds as long as `of` is what a new one would have."""

    model_config = ConfigDict(extra="forbid")

    of: str  # sides, their run ids, epoch and rules
    layout: str = ""  # which node had which slots when the pass began; empty without a cluster
    since_ms: int  # when the pass began, by the store's clock
    at_ms: int  # when this was written
    synced: dict[int, str]  # the feed's positions that it speaks for
    forwards: DirectionProgress = Field(default_factory=DirectionProgress)
    backwards: DirectionProgress = Field(default_factory=DirectionProgress)
    counts: dict[str, int] = Field(default_factory=dict)  # fields of the report
    by_type: dict[str, int] = Field(default_factory=dict)
    excluded: dict[str, int] = Field(default_factory=dict)
    # Database, key in hexadecimal, kind, detail
    suspects: list[tuple[int, str, str, str]] = Field(default_factory=list)
    resumed: int = 0  # times a process went on with it


async def save_pass(store: ControlStore, name: str, progress: PassProgress) -> None:
    """Write how far the verification `name` has come."""
    await answered(store.client.set(store.keys.verifying(name), progress.model_dump_json()))


async def load_pass(store: ControlStore, name: str) -> PassProgress | None:
    """Return how far the verification `name` has come; None where none is under way."""
    raw = await answered(store.client.get(store.keys.verifying(name)))
    return None if raw is None else PassProgress.model_validate_json(raw)


async def load_parts(store: ControlStore, name: str) -> list[PassProgress]:
    """Return how far the parts of a verification have come that several processes do."""
    prefix = store.keys.verifying(part_name(name, ""))
    names = [
        key
        async for key in store.client.scan_iter(match=prefix.replace("{", "\\{") + "*", count=1000)
    ]
    raw = await answered(store.client.mget(names)) if names else []
    return [PassProgress.model_validate_json(each) for each in raw if each is not None]


def part_name(name: str, number: int | str) -> str:
    """Return under which name a part of a verification keeps how far it has come."""
    return f"{name}.part-{number}"


async def forget_pass(store: ControlStore, name: str) -> None:
    """Forget the progress of a pass that ended, or that does not hold any more."""
    await answered(store.client.delete(store.keys.verifying(name)))


async def save_progress(store: ControlStore, run: str, progress: SliceProgress) -> None:
    """Write one slice's checkpoint."""
    key, value = store.keys.checkpoint(run), progress.model_dump_json()
    await answered(store.client.hset(key, progress.slice_id, value))


async def load_progress(store: ControlStore, run: str) -> dict[str, SliceProgress]:
    """Return all slices of a run by id; empty for a new run."""
    raw = await answered(store.client.hgetall(store.keys.checkpoint(run)))
    return {name.decode(): SliceProgress.model_validate_json(value) for name, value in raw.items()}


async def forget_run(store: ControlStore, run: str) -> None:
    """Drop a run's checkpoints, so that the next one copies everything again."""
    await answered(store.client.delete(store.keys.checkpoint(run)))
