"""Register the commands, and end them on errors: what happened, why, and what to do next."""

from __future__ import annotations

import signal
import sys
from importlib.metadata import version as package_version
from traceback import format_exception
from typing import Annotated

import typer

from exodus.cli import decisions, levers, migrations, phases, processes, stack, traffic
from exodus.cli.apply import apply
from exodus.cli.carry import carry
from exodus.cli.context import choosable
from exodus.cli.deploy import deploy
from exodus.cli.doctor import doctor
from exodus.cli.evidence import evidence
from exodus.cli.output import say, show, show_error
from exodus.cli.report import report
from exodus.cli.users import users
from exodus.errors import ExodusError

app = typer.Typer(
    name="exodus",
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def exodus(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Move a live Redis or Valkey database to another server while applications keep running."""
    if version:
        show(f"exodus {package_version('exodus')}")
        raise typer.Exit


# The data plane takes servers and secrets only from its own file (docs/operating/trust.md).
for command in (
    deploy,
    apply,
    stack.up,
    stack.down,
    stack.demo,
    processes.gateway,
    processes.syncer,
    processes.comparer,
    migrations.migrations,
    traffic.capture,
    traffic.load,
    users,
):
    app.command()(command)
for of_a_migration in (
    phases.start,
    phases.status,
    decisions.answer,
    decisions.approve,
    decisions.reject,
    levers.budget,
    levers.canary,
    levers.sample,
    levers.redirect,
    levers.hold,
    levers.release,
    levers.abort,
    phases.dry_run,
    phases.verify,
    phases.repair,
    migrations.archive,
    report,
    carry,
    doctor,
):
    app.command()(choosable(of_a_migration))
app.add_typer(evidence, name="evidence")


def main() -> None:
    """Run the console script."""
    # A command that receives SIGTERM must still stop the processes that it started.
    # Long-lived processes install their own handlers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.excepthook = lambda kind, exc, traceback: say(
        *"".join(format_exception(kind, exc, traceback)).splitlines()
    )
    status: int | None = None
    try:
        app()
    except ExodusError as exc:
        show_error(exc)
        status = exc.exit_status
    if status is not None:
        # Not in `except`: there the error keeps its frames alive, with all that they opened.
        sys.exit(status)


if __name__ == "__main__":
    main()
