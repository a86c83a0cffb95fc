"""`exodus capture`: watch the workload of a server.

It needs no migration, no Prefect and no control store.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import typer
from redis.exceptions import RedisError

from exodus.cli.context import JsonOption
from exodus.cli.output import say, show, show_json, show_table
from exodus.commands.table import CommandTable
from exodus.errors import OperatorError
from exodus.net.client import answered, make_client
from exodus.observe import monitor
from exodus.observe.capture import Capture
from exodus.observe.coverage import Reconciled, commandstats, reconcile
from exodus.observe.known_commands import commands_at, known_table
from exodus.observe.packets import PacketWatcher
from exodus.observe.profile import Profile
from exodus.plan.address import Address

_MONITOR = "monitor"
_STATUS_S = 1.0
_SHOWN = 25


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
    as_json: JsonOption = False,
) -> None:
    """Profile the traffic of a server from packets or MONITOR.

    Examples: exodus capture --from traffic.pcap --port 6379
    """
    address = None if server is None else Address.parse(server, field="--server")
    if from_ == _MONITOR:
        report = _by_monitor(address, seconds)
    else:
        report = _by_packets(from_, address, seconds, port or [6379])
    for remark in report["remarks"]:
        say(f"note: {remark}")
    if as_json:
        show_json(report)
    else:
        _show(report)


def _by_monitor(address: Address | None, seconds: float | None) -> dict[str, Any]:
    if address is None or seconds is None:
        raise OperatorError(
            "--from monitor needs --server and --seconds",
            why="MONITOR is a command of a running server, and costs it throughput while it runs",
            next_step="exodus capture --from monitor --server redis://user@host:port --seconds 10",
        )
    table = _table(address)
    before = _stats(address)
    profile = asyncio.run(monitor.capture(address, table, seconds=seconds))
    return {
        "profile": profile.report(),
        "remarks": [
            "MONITOR shows no answer, no latency, no refused command, and no CONFIG or AUTH"
        ],
        "reconciled": _reconciled(before, _stats(address), profile),
    }


def _by_packets(
    origin: str, address: Address | None, seconds: float | None, ports: list[int]
) -> dict[str, Any]:
    profile = Profile()
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
    """Return what prints the status line, once in `_STATUS_S`."""
    said = [time.monotonic()]

    def status() -> None:
        now = time.monotonic()
        if now - said[0] < _STATUS_S:
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
    except (RedisError, OSError) as exc:
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
    rows: list[Reconciled] = reconcile(before, after, profile.commands)
    return [{"command": row.command, "seen": row.seen, "executed": row.executed} for row in rows]


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
            for row in profile["commands"][:_SHOWN]
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
            for row in profile["patterns"][:_SHOWN]
        ],
    )
    if "reconciled" in report:
        show_table(
            "Seen of what the server executed",
            ("command", "seen", "executed"),
            [(row["command"], row["seen"], row["executed"]) for row in report["reconciled"]],
        )
