"""`exodus capture` and `exodus load`: watch a workload, and play it.

They need no migration, no Prefect and no control store.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
import uvloop
from redis.exceptions import RedisError

from exodus.cli.context import JsonOption
from exodus.cli.output import say, show, show_json, show_table
from exodus.commands.table import CommandTable
from exodus.errors import OperatorError
from exodus.net.client import answered, make_client
from exodus.net.leg import Leg, ReplyError
from exodus.observe import monitor
from exodus.observe.capture import Capture
from exodus.observe.composer import Composer
from exodus.observe.coverage import commandstats, reconcile
from exodus.observe.keyspace import Keyspace, sample_keys
from exodus.observe.known_commands import commands_at, known_table
from exodus.observe.packets import PacketWatcher
from exodus.observe.player import Player, remarks, scratch_prefix
from exodus.observe.profile import Profile
from exodus.observe.workload import Workload, workload_of
from exodus.plan.address import Address
from exodus.plan.bounds import (
    CLI_TRAFFIC_SHOWN,
    PLAYED_CONNECTIONS_MAX,
    SAMPLE_BUSY_SHARE_MAX,
    SAMPLE_SECONDS_MAX,
    TRAFFIC_STATUS_S,
)
from exodus.plan.vocabulary import Side

_MONITOR = "monitor"


def capture(
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            help="capture file, folder that tcpdump rotates, - for standard input, or monitor",
        ),
    ],
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, help="stop after so many seconds (default: at the capture's end)"),
    ] = None,
    port: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=65535, help="TCP port of the server; can be repeated (default 6379)"
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="URL of the server: its commands are used, and its own counts held against what "
            "was seen"
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="write the workload model to this file, for exodus load")
    ] = None,
    sample: Annotated[
        int,
        typer.Option(
            min=0,
            max=1_000_000,
            help="keys of --server to sample for the model: types, sizes, expiries",
        ),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Profile the traffic of a server from packets or MONITOR.

    Examples: exodus capture --from traffic.pcap --port 6379
    """
    address = None if server is None else Address.parse(server, field="--server")
    if sample and (model is None or address is None):
        raise OperatorError(
            f"--sample {sample} needs --model and --server",
            why="the sample is taken from the server, and stands in the model",
            next_step="add --server redis://user@host:port --model FILE, or leave --sample away",
        )
    profile = Profile()
    if from_ == _MONITOR:
        report = _by_monitor(profile, address, seconds)
    else:
        report = _by_packets(profile, from_, address, seconds, port or [6379])
    if model is not None:
        coverage = report.get("coverage", {})
        workload_of(
            profile,
            source="monitor" if from_ == _MONITOR else "packets",
            parsed_share=coverage.get("parsed_share"),
            lost_bytes=coverage.get("lost_bytes", 0),
            keyspace=_sampled(address, sample, profile) if address is not None and sample else None,
        ).save(model)
    for remark in report["remarks"]:
        say(f"note: {remark}")
    if as_json:
        show_json(report)
    else:
        _show(report)


def load(
    model: Annotated[Path, typer.Option(help="workload model that exodus capture --model wrote")],
    target: Annotated[str, typer.Option(help="URL of the server to play it on")],
    speed: Annotated[
        float, typer.Option(min=0.001, max=1000, help="rate, as a multiple of the model's mean")
    ] = 1.0,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, max=86_400, help="length (default: as long as was watched)"),
    ] = None,
    connections: Annotated[
        int | None,
        typer.Option(
            min=1, max=PLAYED_CONNECTIONS_MAX, help="connections (default: as many as were seen)"
        ),
    ] = None,
    password_env: Annotated[
        str | None, typer.Option(help="environment variable with the password of --target")
    ] = None,
    seed: Annotated[int, typer.Option(help="the same seed draws the same load")] = 1,
    keep: Annotated[bool, typer.Option(help="do not remove the scratch keys")] = False,
    as_json: JsonOption = False,
) -> None:
    """Play a workload model on a server's scratch keys, and measure.

    Requests leave when they are due, whether earlier ones were answered or not, and latencies
    count from then.

    Examples: exodus load --model workload.json --target redis://127.0.0.1:6379 --speed 2
    """
    workload = Workload.load(model)
    address = Address.parse(target, field="--target", password_env=password_env)
    prefix = scratch_prefix(Random())  # noqa: S311 - a name, not a secret
    draw = Random(seed)  # noqa: S311 - a load that can be repeated
    composer = Composer(workload, prefix=prefix, speed=speed, draw=draw)
    composer.check()
    player = Player(address, composer, prefix=prefix)
    said = [0.0]

    def status(now: float) -> None:
        if now - said[0] < TRAFFIC_STATUS_S:
            return
        said[0] = now
        played = player.played
        say(
            f"load {now:,.1f} s · {played.sent:,} sent · {played.answered:,} answered · "
            f"p99 {played.latency_us.quantile(0.99):,} µs"
        )

    played = uvloop.run(
        player.run(
            seconds=seconds or workload.seconds,
            connections=connections or min(workload.connections, PLAYED_CONNECTIONS_MAX),
            keep=keep,
            on_progress=status,
        )
    )
    report = {
        **played.report(),
        "speed": speed,
        "scratch_prefix": prefix.decode(),
        "not_played": composer.not_played,
        "remarks": remarks(played, composer),
    }
    for remark in report["remarks"]:
        say(f"note: {remark}")
    if as_json:
        show_json(report)
    else:
        _show_load(report)


def _show_load(report: dict[str, Any]) -> None:
    latency = report["latency_us"]
    show(
        f"{report['sent']:,} requests in {report['seconds']:,.1f} s "
        f"({report['requests_per_s']:,.1f} a second), {report['errors']:,} errors; "
        f"from when they were due: p50 {latency['p50']:,} µs, p99 {latency['p99']:,} µs, "
        f"p99.9 {latency['p999']:,} µs, at most {latency['max']:,} µs"
    )
    show_table(
        "Latency from when a request was due",
        ("shape", "calls", "errors", "p50 µs", "p99 µs", "max µs"),
        [
            (
                shape,
                row["calls"],
                sum(report["errors_by_shape"].get(shape, {}).values()),
                row["p50"],
                row["p99"],
                row["max"],
            )
            for shape, row in list(report["latency_us_by_shape"].items())[:CLI_TRAFFIC_SHOWN]
        ],
    )


async def _keyspace(address: Address, databases: list[int], keys: int) -> Keyspace:
    async with await Leg.connect(address, Side.SOURCE, name="exodus-sample") as leg:
        return await sample_keys(
            [leg],
            databases,
            keys_max=keys,
            seconds_max=SAMPLE_SECONDS_MAX,
            busy_share_max=SAMPLE_BUSY_SHARE_MAX,
        )


def _sampled(address: Address, keys: int, profile: Profile) -> Keyspace:
    found: Keyspace = _asked(address, "SCAN", _keyspace(address, sorted(profile.databases), keys))
    return found


def _by_monitor(profile: Profile, address: Address | None, seconds: float | None) -> dict[str, Any]:
    if address is None or seconds is None:
        raise OperatorError(
            "--from monitor needs --server and --seconds",
            why="MONITOR is a command of a running server, and costs it throughput while it runs",
            next_step="exodus capture --from monitor --server redis://user@host:port --seconds 10",
        )
    table = _table(address)
    watch = asyncio.run(monitor.capture(address, table, seconds=seconds, profile=profile))
    cost = profile.cost
    said = monitor.notes(cost)
    if cost["stopped"]:
        said.insert(0, f"ended after {profile.seconds:.1f} s: {cost['stopped']}")
    return {
        "profile": profile.report(),
        "remarks": said,
        "reconciled": [row.report() for row in watch.reconciled or []],
    }


def _by_packets(
    profile: Profile,
    origin: str,
    address: Address | None,
    seconds: float | None,
    ports: list[int],
) -> dict[str, Any]:
    table = known_table() if address is None else _table(address)
    watcher = PacketWatcher(table, profile, ports)
    before = None if address is None else _stats(address)
    reading = Capture(origin, watcher, seconds, _status(watcher, profile))
    reading.run()
    profile.seconds = watcher.last_at - watcher.first_at
    report: dict[str, Any] = {
        "profile": profile.report(),
        "coverage": watcher.coverage.report(),
        "remarks": reading.remarks + watcher.coverage.remarks(),
    }
    if address is not None and before is not None:
        report["reconciled"] = _reconciled(before, _stats(address), profile)
    return report


def _status(watcher: PacketWatcher, profile: Profile) -> Any:
    """Return what prints the status line, once in `TRAFFIC_STATUS_S`."""
    said = [time.monotonic()]

    def status() -> None:
        now = time.monotonic()
        if now - said[0] < TRAFFIC_STATUS_S:
            return
        said[0] = now
        coverage = watcher.coverage
        say(
            f"capture {watcher.last_at - watcher.first_at:,.1f} s · {coverage.packets:,} packets · "
            f"{profile.requests:,} requests · {watcher.open_connections:,} connections · "
            f"understood {coverage.parsed_share:.2%} · lost {coverage.lost_bytes:,} bytes"
        )

    return status


def _asked(address: Address, what: str, question: Any) -> Any:
    try:
        return asyncio.run(question)
    except (RedisError, ReplyError, OSError) as exc:
        raise OperatorError(
            f"--server: {address.url} does not answer {what}",
            why=str(exc) or type(exc).__name__,
            next_step="check the URL and its user's rights, or leave --server away",
        ) from exc


def _table(address: Address) -> CommandTable:
    replies: list[list[Any]] = _asked(address, "COMMAND", commands_at([address]))
    return CommandTable.from_replies(*replies)


async def _commandstats(address: Address) -> dict[str, int]:
    client = make_client(address, field="--server")
    try:
        return commandstats(await answered(client.info("commandstats")))
    finally:
        await client.aclose()


def _stats(address: Address) -> dict[str, int]:
    found: dict[str, int] = _asked(address, "INFO commandstats", _commandstats(address))
    return found


def _reconciled(
    before: dict[str, int], after: dict[str, int], profile: Profile
) -> list[dict[str, Any]]:
    return [row.report() for row in reconcile(before, after, profile.commands)]


def _show(report: dict[str, Any]) -> None:
    profile = report["profile"]
    peak = profile["requests_per_s_peak"]
    show(
        f"{profile['requests']:,} requests in {profile['seconds']:,.1f} s "
        f"({profile['requests_per_s']:,.1f} a second, at most {peak['second']:,.0f}), "
        f"{profile['writes']:,} writes, {profile['connections']:,} connections"
    )
    if "coverage" in report:
        coverage = report["coverage"]
        show(
            f"understood {coverage['parsed_share']:.2%} of the bytes of "
            f"{coverage['packets']:,} packets; lost {coverage['lost_bytes']:,} bytes"
        )
    show_table(
        "Commands",
        ("shape", "calls", "errors", "request p99 B", "reply p99 B", "p50 µs", "p99 µs"),
        [
            (
                row["shape"],
                row["calls"],
                sum(row["errors"].values()),
                row["request_bytes_p99"],
                row["reply_bytes_p99"],
                row["latency_us_p50"],
                row["latency_us_p99"],
            )
            for row in profile["commands"][:CLI_TRAFFIC_SHOWN]
        ],
    )
    show_table(
        "Key patterns",
        ("pattern", "calls", "writes", "keys", "hottest key", "Zipf exponent"),
        [
            (
                row["pattern"],
                row["calls"],
                row["writes"],
                row["keys_distinct"],
                f"{row['hottest_share']:.1%}",
                row["zipf_exponent"],
            )
            for row in profile["patterns"][:CLI_TRAFFIC_SHOWN]
        ],
    )
    if "reconciled" in report:
        show_table(
            "Seen of what the server executed",
            ("command", "seen", "executed"),
            [(row["command"], row["seen"], row["executed"]) for row in report["reconciled"]],
        )
