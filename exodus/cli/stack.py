"""`exodus up`, `down` and `demo`: the local stack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exodus.cli.context import HomeOption, JsonOption, home_at
from exodus.cli.demo import Demo, PathTaken, run_demo
from exodus.cli.doctor import warn_of_open_prefect
from exodus.cli.output import say, show, show_json
from exodus.cli.prefect_api import PrefectApi
from exodus.stack.home import Home
from exodus.stack.up import StackOptions, TopologyKind
from exodus.stack.up import down as stop_stack
from exodus.stack.up import up as start_stack


def up(
    source: Annotated[
        str | None, typer.Option(help="URL of a source (default: an embedded server)")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="URL of a target (default: an embedded server)")
    ] = None,
    source_password_file: Annotated[
        Path | None, typer.Option(help="file with the password of the source's user")
    ] = None,
    target_password_file: Annotated[
        Path | None, typer.Option(help="file with the password of the target's user")
    ] = None,
    allow_nonempty: Annotated[
        bool, typer.Option("--allow-nonempty", help="the target may hold keys; they are replaced")
    ] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Start servers, gateway, syncer, comparer and Prefect on this machine.

    Example: exodus up --source redis://exodus@10.0.0.5:6379 --target redis://exodus@10.0.1.5:6379
    """
    options = {"allow_nonempty": True} if allow_nonempty else {}
    wanted = StackOptions(
        source, target, source_password_file, target_password_file, options=options
    )
    found = start_stack(home_at(home), wanted, say)
    warn_of_open_prefect(PrefectApi.find(home_at(home)))
    if json:
        show_json(found)
    else:
        for name, url in found.items():
            show(f"{name:14} {url}")
        show(
            "",
            "Next: exodus start pre-test; exodus status. From Analyze on, applications "
            "connect to the gateway.",
        )


def down(home: HomeOption = None) -> None:
    """Stop the local stack. Data and logs stay. Example: exodus down"""
    ended = stop_stack(home_at(home))
    show(f"stopped: {', '.join(ended)}" if ended else "nothing was running")


def demo(
    keys: Annotated[int, typer.Option(min=100, help="keys before the migration")] = 200_000,
    writes: Annotated[int, typer.Option(min=1, help="application writes a second")] = 2_000,
    path_taken: Annotated[
        PathTaken, typer.Option(help="commit; or rollback: cut over, roll back, retry, commit")
    ] = PathTaken.COMMIT,
    topology: Annotated[
        TopologyKind,
        typer.Option(
            help="sentinel: both sides are behind Sentinel; the source fails over. cluster: three "
            "masters each. to-cluster: one server, to three masters. sentinel-to-cluster: a "
            "service, whose master fails over, to three masters"
        ),
    ] = TopologyKind.STANDALONE,
    seed: Annotated[int, typer.Option(help="seed of the application")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="leave the stack running")] = False,
    approve: Annotated[str, typer.Option(help="auto; or ask: a person decides")] = "auto",
    tamper: Annotated[
        bool,
        typer.Option(
            "--tamper",
            help="damage four keys of the target before the last check, which must find them",
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="folder for summary.json and the evidence")] = Path(
        "build/demo"
    ),
) -> None:
    """Run a whole migration under application writes; exit status 0 only if every invariant held.

    Example: exodus demo --keys 20000
    """
    demo_ = Demo(
        Home(out / "stack"),
        out,
        keys,
        writes,
        path_taken,
        seed,
        keep,
        approve == "ask",
        tamper,
        topology,
    )
    if not run_demo(demo_):
        raise typer.Exit(1)
