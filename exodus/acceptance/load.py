"""The observed workload, played on the target at its own rate, at twice it, and up to its knee.

It is an open loop on scratch keys (`exodus/observe/player.py`). The requirement is what
applications have now: the percentiles that the gateways measured in Analyze, with an allowance. A
step in which the machine of the player was late itself is red only by what that does not explain.
It is played again, and where no speed could be judged, a person accepts that by name.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from exodus.acceptance.observed import LEARNT, observed_workload, tried_as
from exodus.acceptance.rows import Checked, not_done, told
from exodus.control.store import ControlStore
from exodus.copy.impact import Paces
from exodus.net.info import info_of
from exodus.observe.distribution import Distribution
from exodus.observe.player import Played, scratch_prefix
from exodus.observe.players import play_on_each, remove_scratch_on_each
from exodus.observe.ramp import refused_commands
from exodus.observe.workload import Workload
from exodus.plan.bounds import (
    ACCEPTANCE_NAMED,
    LOAD_ANSWERED_SHARE_MIN,
    LOAD_CALLS_MIN,
    LOAD_CONNECTIONS_MAX,
    LOAD_KNEE_S_MAX,
    LOAD_LATE_US_MAX,
    LOAD_PLAYS_MAX,
    LOAD_PREPARED_BYTES_MAX,
    LOAD_SLACK_US,
    LOAD_SPEEDS_REQUIRED,
)
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node

REPORT = "test.load"
NOT_JUDGED = "load: judged at the observed rate"  # the row where the player was late throughout
_SHARES = {"p50": 0.5, "p99": 0.99}


@dataclass
class LoadStep:
    """One speed, and how the target took it."""

    speed: float
    played: Played
    cpu_share: float  # of one core of the target; of a cluster its busiest node's
    evicted: int
    slower: list[str] = field(default_factory=list)  # commands beyond what applications have now

    @property
    def late(self) -> bool:
        """Return whether the machine of the player was too slow for this speed."""
        return self.played.late_us.quantile(0.99) > LOAD_LATE_US_MAX

    @property
    def kept_up(self) -> bool:
        """Return whether all that was due was answered."""
        return self.played.answered >= self.played.due * LOAD_ANSWERED_SHARE_MIN

    @property
    def failed(self) -> dict[str, dict[str, int]]:
        """Return the errors, by shape and first word."""
        return self.played.errors

    @property
    def holds(self) -> bool:
        """Return whether the target is fast enough at this speed."""
        kept_up = self.kept_up or self.late
        return kept_up and not self.slower and not self.failed and not self.evicted

    @property
    def order(self) -> tuple[bool, bool, int]:
        """Return what makes one play of a speed better than another."""
        return not self.holds, self.late, self.played.latency_us.quantile(0.99)

    def row(self) -> dict[str, Any]:
        """Return the row of the artifact."""
        return {
            "speed": self.speed,
            "requests_per_s": round(self.played.answered / max(self.played.seconds, 1e-9), 1),
            "due": self.played.due,
            "answered": self.played.answered,
            **{
                f"latency_us_{name}": self.played.latency_us.quantile(share)
                for name, share in _SHARES.items()
            },
            "latency_us_max": self.played.latency_us.value_max,
            "cpu_share": round(self.cpu_share, 3),
            "evicted_keys": self.evicted,
            "errors": sum(sum(codes.values()) for codes in self.failed.values()),
            "slower": "; ".join(self.slower),
            "judged": not self.late,
        }


async def check_load(plan: Plan, store: ControlStore, *, keep: str = REPORT) -> list[Checked]:
    """Play the observed workload on the target, judge each step, and keep the steps as a report."""
    workload = await observed_workload(store)
    if workload is None:
        why = "no workload was observed: Pre-test keeps its model"
        return [not_done("load", why, "exodus start pre-test while the applications work")]
    observed = (await store.report(LEARNT) or {}).get("commands", [])
    required = required_us(observed, plan.test_checks.load_times_max)
    steps: list[LoadStep] = []
    stopped, began = "", time.monotonic()
    prefix = scratch_prefix(Random())  # noqa: S311 - a name, not a secret
    source = Endpoint(Side.SOURCE, plan.source)
    unplayed: list[str] = []
    nodes = await Endpoint(Side.TARGET, tried_as(plan)).each_node()
    if plan.compare_user is None:  # an application's user must be allowed to do what it did
        refused = await refused_commands(nodes, workload)
        unplayed = sorted({each.command for each in workload.operations} & refused)
        operations = [each for each in workload.operations if each.command not in refused]
        workload = workload.model_copy(update={"operations": operations})
    if not workload.operations:
        why = f"Exodus's user may run none of it: {', '.join(unplayed)}"
        return [not_done("load", why, "name an application's user of the target in compare_user")]
    async with Paces(store, source, plan.budget, what="load test") as pace:
        try:
            for speed in _speeds(plan.test_checks.load_speed_max):
                await pace.turn()
                if pace.why:
                    stopped = f"the impact budget ended it before {speed:g}x: {pace.why}"
                    break
                if speed > LOAD_SPEEDS_REQUIRED[-1] and time.monotonic() - began > LOAD_KNEE_S_MAX:
                    stopped = f"not tried at {speed:g}x: the load took {LOAD_KNEE_S_MAX:.0f} s"
                    break
                steps.append(await _best(plan, nodes, workload, required, prefix, speed))
                if not steps[-1].holds or (steps[-1].late and speed >= LOAD_SPEEDS_REQUIRED[-1]):
                    break
        finally:
            theirs = await Endpoint(Side.TARGET, plan.target).each_node()
            await remove_scratch_on_each(theirs, prefix)
    await store.save_report(
        keep, {"at_ms": await store.now_ms(), "steps": [step.row() for step in steps]}
    )
    rows = judge_load(workload, steps, required, stopped)
    if unplayed:
        said = f"Exodus's user may not run them; set compare_user: {', '.join(unplayed)}"
        rows.append(told("load: not played", said))
    return rows


def _speeds(most: float) -> list[float]:
    """Return the speeds to try: those that are required, then twice as fast each time."""
    found = list(LOAD_SPEEDS_REQUIRED)
    while found[-1] * 2 <= most:
        found.append(found[-1] * 2)
    return found


def required_us(observed: list[dict[str, Any]], times_max: float) -> dict[str, dict[str, int]]:
    """Return how long each command may take, by percentile: as long as applications wait now, times
    the allowance, and what the measurement itself adds.
    """
    return {
        str(row["command"]).partition("|")[0].upper(): {
            name: int(row[f"latency_us_{name}"] * times_max) + LOAD_SLACK_US for name in _SHARES
        }
        for row in observed
        if not row.get("waits") and row["calls"] >= LOAD_CALLS_MIN
    }


async def _best(
    plan: Plan,
    nodes: Sequence[Node],
    workload: Workload,
    required: Mapping[str, Mapping[str, int]],
    prefix: bytes,
    speed: float,
) -> LoadStep:
    """Play one speed, and again where it was slow: a target that is too slow is so each time."""
    best: LoadStep | None = None
    for _ in range(LOAD_PLAYS_MAX):
        step = await _step(plan, nodes, workload, required, prefix, speed)
        if best is None or step.order < best.order:
            best = step
        if (step.holds and not step.late) or step.failed or step.evicted:
            return step
    assert best is not None
    return best


async def _step(
    plan: Plan,
    nodes: Sequence[Node],
    workload: Workload,
    required: Mapping[str, Mapping[str, int]],
    prefix: bytes,
    speed: float,
) -> LoadStep:
    before = await _used(plan)
    played, _ = await play_on_each(
        nodes,
        workload,
        prefix=prefix,
        speed=speed,
        seconds=plan.test_checks.load_seconds,
        connections=min(max(workload.connections, 1), LOAD_CONNECTIONS_MAX),
        prepared_bytes_max=LOAD_PREPARED_BYTES_MAX,
    )
    after = await _used(plan)
    spent = [
        (now[0] - before[node][0], now[1] - before[node][1])
        for node, now in after.items()
        if node in before
    ]
    busiest = max((cpu_s for cpu_s, _ in spent), default=0.0)
    step = LoadStep(
        speed, played, busiest / max(played.seconds, 1e-9), sum(evicted for _, evicted in spent)
    )
    step.slower = _slower(played, required)
    return step


async def _used(plan: Plan) -> dict[str, tuple[float, int]]:
    """Return the processor time in s and the evicted keys of each node of the target."""
    found = {}
    for node in await Endpoint(Side.TARGET, plan.target).each_node():
        async with await node.connect(name="exodus-load") as leg:
            info = info_of(await leg.call("INFO"))
        cpu_s = float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
        found[node.where] = cpu_s, int(info.get("evicted_keys", 0))
    return found


def _slower(played: Played, required: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the commands that take longer than required; what was seldom sent says nothing."""
    # A request that left late is answered late, and its answer is read late: not by the server.
    late = 2 * played.late_us.quantile(0.99)
    by_command: dict[str, Distribution] = {}
    for shape, found in played.by_shape.items():
        by_command.setdefault(shape.split(" ", 1)[0], Distribution()).add(found)
    return [
        f"{command} {name} {found.quantile(_SHARES[name]) / 1000:.1f} ms, at most "
        f"{(most + late) / 1000:.1f} ms"
        for command, found in by_command.items()
        if found.total >= LOAD_CALLS_MIN
        for name, most in required.get(command, {}).items()
        if found.quantile(_SHARES[name]) > most + late
    ]


def judge_load(
    workload: Workload,
    steps: list[LoadStep],
    required: Mapping[str, Mapping[str, int]],
    stopped: str,
) -> list[Checked]:
    """Return the rows: one for each speed that must hold, and the headroom."""
    rows = [_judged(workload, step) for step in steps if step.speed in LOAD_SPEEDS_REQUIRED]
    rows += _nothing_judged([step for step in steps if step.speed in LOAD_SPEEDS_REQUIRED], rows)
    tried = {step.speed for step in steps}
    rows += [
        _not_played(f"load: {speed:g} times the observed rate", stopped)
        for speed in LOAD_SPEEDS_REQUIRED
        if speed not in tried
    ]
    held = [step.speed for step in steps if step.holds and not step.late]
    last = steps[-1] if steps else None
    most = f"{max(held):g} times the observed rate" if held else ""
    if last is not None and last.late:
        headroom = (
            f"{most} at least; this machine plays no faster"
            if held
            else "not known; this machine is too slow to play the observed rate"
        )
    elif last is None or last.holds:
        headroom = f"{most} at least" if held else "not known"
        headroom += f"; {stopped}" if stopped else ""
    else:
        headroom = f"{most or 'none'}; the knee is below {last.speed:g} times"
    if not required:
        headroom += "; no latency was required, since Analyze has none"
    busy = f", {last.cpu_share * 100:.0f} % of a core of the target" if last is not None else ""
    return [
        *rows,
        told("load: headroom", headroom + busy, line=f"load: headroom {headroom}{busy}"),
    ]


def _nothing_judged(steps: Sequence[LoadStep], rows: Sequence[Checked]) -> list[Checked]:
    """Return the row of a load that says nothing of the target: each step was late, none red."""
    if not steps or any(row.judged for row in rows):
        return []
    late_ms = min(step.played.late_us.quantile(0.99) for step in steps) / 1000
    return [
        not_done(
            NOT_JUDGED,
            f"this machine sent requests {late_ms:.0f} ms late (p99) at each speed, "
            f"{LOAD_PLAYS_MAX} times each, so the target's latency is not known",
            "exodus start test when this machine has less to do, or on a faster worker; or exodus "
            "load from another machine",
        )
    ]


def _not_played(what: str, stopped: str) -> Checked:
    if not stopped:
        return told(what, "not reached: see before")
    return not_done(what, stopped, "exodus start test when the source has less to do")


def _judged(workload: Workload, step: LoadStep) -> Checked:
    what = f"load: {step.speed:g} times the observed rate"
    row, observed = step.row(), workload.requests / workload.seconds
    detail = (
        f"{row['requests_per_s']:,} requests/s (observed {observed:,.0f}), p50 "
        f"{row['latency_us_p50'] / 1000:.1f} ms, p99 {row['latency_us_p99'] / 1000:.1f} ms"
    )
    wrong = []
    if step.failed:
        errors = [
            f"{shape}: {', '.join(f'{count} {code}' for code, count in codes.items())}"
            for shape, codes in step.failed.items()
        ]
        wrong.append(f"errors: {'; '.join(errors[:ACCEPTANCE_NAMED])}")
    if step.evicted:
        wrong.append(f"{step.evicted:,} keys were evicted")
    if not step.kept_up and not step.late:
        wrong.append(f"{row['answered']:,} of {row['due']:,} requests were answered in time")
    wrong += step.slower[:ACCEPTANCE_NAMED]
    if step.late and not wrong:
        late_ms = step.played.late_us.quantile(0.99) / 1000
        return told(what, f"{detail}; not judged: this machine sent {late_ms:.0f} ms late (p99)")
    return Checked(
        what,
        not wrong,
        f"{detail}; {'; '.join(wrong)}" if wrong else detail,
        "applications would wait longer than they do now, or get errors",
        "give the target more room or a faster machine, or raise test_checks.load_times_max",
    )
