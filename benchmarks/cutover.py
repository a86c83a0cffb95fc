"""How long do writes and reads stand still at a switch?

Two gateways, 5,000 writes a second, Redis 6.2 to Valkey 9.1 and back. A switch's stall is the
longest time that any write (read) took which was sent from half a second before its hold until half
a second after its release. The same is measured between switches, over as long a time: what the
machine itself makes requests wait.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.result import Result, result
from benchmarks.rig import Rig
from exodus.control.route import change_route, read_route
from exodus.control.store import ControlStore
from exodus.copy.guard import set_writer_epoch
from exodus.cutover import switch
from exodus.plan.plan import Plan
from exodus.plan.settings import Listen
from exodus.plan.vocabulary import JournalMode, Side
from exodus.stack.home import free_port
from exodus.stack.servers import USER, Server, ServerKind, answers
from exodus.topology.endpoint import Endpoint

_PER_S = 5_000
_AROUND_S = 0.5
_SWITCHES = 20
_BETWEEN_S = 2.0  # in the long form


def _named(server: Server) -> dict[str, str]:
    return {
        "url": f"redis://{USER}@127.0.0.1:{server.port}",
        "password_file": str(server.password_file),
    }


async def _begin(store: ControlStore, plan: Plan) -> None:
    await store.save_plan(plan)
    route = await read_route(store)
    await set_writer_epoch(Endpoint(Side.TARGET, plan.target), plan.name, route.writer_epoch)
    await change_route(
        store, route, route.next(why="benchmark", journal=JournalMode.ALL, sync=True)
    )


async def _switches(store: ControlStore, plan: Plan, between_s: float) -> list[dict[str, Any]]:
    done: list[dict[str, Any]] = []
    for number in range(_SWITCHES):
        await asyncio.sleep(between_s)
        quiet = time.monotonic()
        await asyncio.sleep(2 * _AROUND_S + 0.1)
        began = time.monotonic()
        one = await switch.apply(store, plan, Side.TARGET if number % 2 == 0 else Side.SOURCE)
        held_at = one.held_at or began
        hold_ms = float(one.facts["hold_ms"])
        steps = {str(row["step"]): float(row["ms"]) for row in one.timeline}
        done.append({"quiet": quiet, "held_at": held_at, "hold_ms": hold_ms, "steps": steps})
    return done


def _longest(rows: list[tuple[float, float, str]], kind: str, start: float, end: float) -> float:
    return max(
        (took for sent, took, what in rows if what == kind and start <= sent <= end), default=0.0
    )


def measure(*, full: bool) -> Result:
    """Twenty switches; in the short form they follow each other sooner."""
    with Rig() as rig:
        servers = {
            "source": rig.server(ServerKind.REDIS_62, "source"),
            "target": rig.server(ServerKind.VALKEY_91, "target"),
            "control_store": rig.server(ServerKind.VALKEY_91, "control", appendonly="yes"),
        }
        ports = [free_port(), free_port()]
        source, target = servers["source"].address(), servers["target"].address()
        plan = Plan(
            name="bench",
            source=source,
            target=target,
            gateway=Listen(host="127.0.0.1", port=ports[0]),
            rehearsal_hours_max=None,
        )
        file = rig.folder / "migration.yaml"
        file.write_text(
            yaml.safe_dump(
                {"name": plan.name, **{name: _named(server) for name, server in servers.items()}}
            )
        )

        async def run() -> list[dict[str, Any]]:
            async with await ControlStore.connect(
                servers["control_store"].address(), plan.name
            ) as store:
                await _begin(store, plan)
                exodus = [sys.executable, "-m", "exodus.cli.app"]
                rig.process("syncer", [*exodus, "syncer", "--file", str(file)], lambda: True)
                for number, port in enumerate(ports):
                    command = [
                        *exodus,
                        "gateway",
                        "--id",
                        f"gateway-{number}",
                        "--file",
                        str(file),
                        "--listen",
                        f"127.0.0.1:{port}",
                    ]
                    rig.process(
                        f"gateway-{number}",
                        [*command, "--state-dir", str(rig.folder / f"gw{number}")],
                        partial(answers, port),
                    )
                stop, out = rig.folder / "stop", rig.folder / "load.jsonl"
                load = [
                    sys.executable,
                    "-m",
                    "benchmarks.steady",
                    "--ports",
                    *map(str, ports),
                    "--per-s",
                    str(_PER_S),
                ]
                process = rig.process(
                    "load", [*load, "--stop-file", str(stop), "--out", str(out)], lambda: True
                )
                await asyncio.sleep(3.0)
                done = await _switches(store, plan, _BETWEEN_S if full else _BETWEEN_S / 4)
                await asyncio.sleep(1.0)
                stop.touch()
                await asyncio.to_thread(process.wait, 60)
                rows[:] = _read(out)
                return done

        rows: list[tuple[float, float, str]] = []
        done = asyncio.run(run())
    runs = []
    for one in done:
        start, end = one["held_at"] - _AROUND_S, one["held_at"] + one["hold_ms"] / 1000 + _AROUND_S
        quiet_end = one["quiet"] + (end - start)
        runs.append(
            {
                "exodus": _longest(rows, "write", start, end),
                "no switch": _longest(rows, "write", one["quiet"], quiet_end),
                "read, switch": _longest(rows, "read", start, end),
                "read, no switch": _longest(rows, "read", one["quiet"], quiet_end),
                "hold": one["hold_ms"],
                **{f"step {name}": ms for name, ms in one["steps"].items()},
            }
        )
    stalls = sorted(run["exodus"] for run in runs)
    writes = sum(kind == "write" for _, _, kind in rows)
    seconds = max(sent for sent, _, _ in rows) - min(sent for sent, _, _ in rows)
    p99 = stalls[min(len(stalls) - 1, round(len(stalls) * 0.99))]
    what = (
        f"longest write at each of {_SWITCHES} switches, {writes * 5 / seconds:,.0f} writes/s: "
        f"p50 {statistics.median(stalls):.0f}, p99 {p99:.0f}, "
        f"max {stalls[-1]:.0f} ms; reads: max {max(run['read, switch'] for run in runs):.0f} ms, "
        f"{max(run['read, no switch'] for run in runs):.0f} ms without a switch"
    )
    return result(
        name="cutover", what=what, unit="ms", runs=runs, against="no switch", higher_is_better=False
    )


def _read(path: Path) -> list[tuple[float, float, str]]:
    return [
        (float(sent), float(took), str(kind))
        for sent, took, kind in map(json.loads, path.read_text().splitlines())
    ]
