"""`exodus deploy`: create in Prefect what Exodus needs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated

import typer

from exodus.cli.context import HomeOption, home_at
from exodus.cli.doctor import warn_of_open_prefect
from exodus.cli.prefect_api import PrefectApi


def deploy(
    migration: Annotated[
        str | None,
        typer.Option(help="create deployments of this migration, one run of each at a time"),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Create work pool, queues, block types and deployments in Prefect. Example: exodus deploy"""
    api = PrefectApi.find(home_at(home))
    warn_of_open_prefect(api)
    login = {"PREFECT_API_AUTH_STRING": api.login} if api.login else {}
    named = ["--migration", migration] if migration else []
    done = subprocess.run(  # noqa: S603 - a module of Exodus
        [sys.executable, "-m", "flows.deploy", *named],
        env={**os.environ, "PREFECT_API_URL": api.url, **login},
        check=False,
    )
    if done.returncode:
        raise typer.Exit(done.returncode)
