"""`exodus doctor`: check the setup for open access and for data that would not survive a restart.

It checks Prefect's login, the control store's durability, TLS files, and the modes of files with
secrets. It changes nothing. `exodus up` and `exodus apply` also show the warnings about Prefect.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import typer

from exodus.cli.context import FileOption, HomeOption, JsonOption, home_at, migration_at, open_store
from exodus.cli.output import say, show_json, show_table
from exodus.cli.prefect_api import PrefectApi
from exodus.control.durable import StoreFinding, check_store
from exodus.errors import ExodusError
from exodus.net.tls import ssl_context
from exodus.plan.address import Place, Service
from exodus.plan.bounds import CLI_DOCTOR_ANSWERS_S
from exodus.plan.migration_file import MigrationFile
from exodus.private_files import open_to_others
from exodus.stack.home import Home
from exodus.topology.cluster_checks import check_clusters
from exodus.topology.service_checks import check_services

_OTHER_ORIGIN = "http://another-origin.invalid"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_prefect(url: str) -> list[StoreFinding]:
    """Call Prefect without a login, and as a page of another origin."""
    try:
        answer = httpx.post(
            f"{url}/flow_runs/count",
            json={},
            headers={"Origin": _OTHER_ORIGIN},
            timeout=CLI_DOCTOR_ANSWERS_S,
        )
    except httpx.HTTPError as exc:
        return [
            StoreFinding(
                "warning",
                f"Prefect at {url} does not answer",
                str(exc) or type(exc).__name__,
                "start it",
            )
        ]
    found = []
    if answer.status_code not in (401, 403):
        found.append(
            StoreFinding(
                "warning",
                f"Prefect at {url} answers without a login",
                "everybody who reaches it can read blocks, answer decisions, and run commands "
                "as the worker's user",
                "set PREFECT_SERVER_API_AUTH_STRING for its server, PREFECT_API_AUTH_STRING for "
                "workers and this command",
            )
        )
    if answer.headers.get("access-control-allow-origin") in ("*", _OTHER_ORIGIN):
        found.append(
            StoreFinding(
                "warning",
                f"Prefect at {url} lets pages of any origin use its API",
                "a web page that an operator visits can send it requests",
                "set PREFECT_SERVER_CORS_ALLOWED_ORIGINS to its own origin",
            )
        )
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        found.append(
            StoreFinding(
                "warning",
                f"Prefect at {url} is reached without TLS",
                "the login can be read on the network",
                "put TLS in front of it",
            )
        )
    return found or [StoreFinding("ok", f"Prefect at {url} asks for a login")]


def warn_of_open_prefect(api: PrefectApi) -> None:
    """Warn about open access to Prefect before it is used."""
    for finding in check_prefect(api.url):
        if finding.severity != "ok":
            say(f"warning: {finding.what}: {finding.why}; {finding.next_step}")


def _check_tls(name: str, tls: Place) -> list[StoreFinding]:
    files = [("ca_file", tls.ca_file), ("cert_file", tls.cert_file), ("key_file", tls.key_file)]
    given = [(field, path) for field, path in files if path is not None]
    if not tls.tls:
        return []
    try:
        ssl_context(tls)
    except (OSError, ssl.SSLError, ExodusError) as exc:
        named = ", ".join(f"{field} {path}" for field, path in given)
        return [
            StoreFinding(
                "fatal",
                f"{name}: the TLS files cannot be used",
                f"{exc} ({named})",
                f"correct {name}.ca_file, cert_file or key_file",
            )
        ]
    return [
        StoreFinding(
            "ok",
            f"{name}: TLS with "
            f"{', '.join(field for field, _ in given) or 'the CAs of this machine'}",
        )
    ]


def _check_modes(file: MigrationFile, home: Home) -> list[StoreFinding]:
    plan = file.plan
    addresses: dict[str, Place] = {
        "source": plan.source,
        "target": plan.target,
        "control_store": file.control_store,
    }
    secrets: list[Path] = [
        *([home.root, *home.private_files()] if home.root.exists() else []),
        *(
            path
            for address in addresses.values()
            for path in (address.password_file, address.key_file)
            if path is not None
        ),
        *(
            path
            for service in addresses.values()
            if isinstance(service, Service)
            for path in (service.sentinel_password_file, service.sentinel_key_file)
            if path is not None
        ),
        *(
            path
            for login in plan.logins
            for path in (login.password_file, login.target_password_file)
            if path is not None
        ),
        *([plan.gateway.key_file] if plan.gateway.key_file is not None else []),
    ]
    found = [
        StoreFinding(
            "warning",
            f"{path} is open to other users",
            "it holds a secret or leads to one",
            f"chmod go= {path}",
        )
        for path in dict.fromkeys(secrets)
        if open_to_others(path)
    ]
    return found or [
        StoreFinding(
            "ok",
            f"{len(set(secrets))} files and folders with secrets: only this user can read them",
        )
    ]


async def _check_control_store(file: MigrationFile) -> list[StoreFinding]:
    try:
        async with await open_store(file) as store:
            return await check_store(store, {})
    except ExodusError as exc:
        return [StoreFinding("fatal", exc.what, exc.why, exc.next_step)]


async def _check_topology(file: MigrationFile) -> list[StoreFinding]:
    return [
        StoreFinding(each.severity, f"{each.check}: {each.what}", each.why, each.next_step)
        for each in [*await check_services(file.plan), *await check_clusters(file.plan)]
    ]


def examine(file: MigrationFile, home: Home) -> list[StoreFinding]:
    """Return all findings."""
    api = PrefectApi.known(home)
    plan = file.plan
    sides: list[tuple[str, Place]] = [
        ("source", plan.source),
        ("target", plan.target),
        ("control_store", file.control_store),
        ("gateway", plan.through_gateway(None)),
        *(
            (f"{name}.sentinels", place.sentinel_addresses[0])
            for name, place in (("source", plan.source), ("target", plan.target))
            if isinstance(place, Service)
        ),
    ]
    return [
        *([] if api is None else check_prefect(api.url)),
        *asyncio.run(_check_control_store(file)),
        *asyncio.run(_check_topology(file)),
        *(finding for name, tls in sides for finding in _check_tls(name, tls)),
        *_check_modes(file, home),
    ]


def doctor(file: FileOption = None, home: HomeOption = None, json: JsonOption = False) -> None:
    """Check logins, durability, TLS and file modes; exit status 1 if a check fails.

    Example: exodus doctor
    """
    found = examine(migration_at(file, home), home_at(home))
    if json:
        show_json(
            [
                {
                    "severity": each.severity,
                    "what": each.what,
                    "why": each.why,
                    "next_step": each.next_step,
                }
                for each in found
            ]
        )
    else:
        rows = [(each.severity, each.what, each.why, each.next_step) for each in found]
        show_table("Doctor", ["Severity", "Finding", "Why", "Next step"], rows)
    if any(each.severity != "ok" for each in found):
        raise typer.Exit(1)
