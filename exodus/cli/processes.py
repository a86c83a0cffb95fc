"""`exodus gateway`, `syncer`, `comparer`: the data-plane processes.

They follow the control store and do not need Prefect.
"""

from __future__ import annotations

import asyncio
import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from redis.exceptions import RedisError

from exodus.cli.context import FileOption, HomeOption, migration_at
from exodus.control.store import ControlStore
from exodus.cutover.settle import settle
from exodus.errors import ControlStoreError, OperatorError
from exodus.gateway.exposure import check_address, check_certificates, check_pinned
from exodus.gateway.options import GatewayOptions
from exodus.gateway.process import serve
from exodus.gateway.supervisor import Supervisor, worker_command
from exodus.live.syncer import run_syncer
from exodus.net.client import make_client
from exodus.plan.address import advertised, split_place
from exodus.plan.migration_file import MigrationFile
from exodus.plan.plan import Plan
from exodus.safe_text import LogFormatter
from exodus.shadow.comparer import run_comparer
from exodus.telemetry.states import JsonFormatter

IdOption = Annotated[
    str, typer.Option("--id", help="name of this process; keep it across restarts")
]


class LogFormat(StrEnum):
    """The format of a process's log."""

    TEXT = "text"
    JSON = "json"


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


LogLevelOption = Annotated[str, typer.Option(help="DEBUG, INFO, WARNING, ERROR or CRITICAL")]
LogFormatOption = Annotated[
    LogFormat, typer.Option("--log-format", help="text, or json with one object a line")
]


def _log(level: str, form: LogFormat) -> None:
    if level.upper() not in _LEVELS:
        raise OperatorError(
            f"--log-level: {level!r} is not a level",
            why=f"levels are {', '.join(_LEVELS)}",
            next_step="--log-level INFO",
        )
    handler = logging.StreamHandler()
    text = LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form is LogFormat.JSON else text)
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _store(file: MigrationFile) -> ControlStore:
    """Return the store without a connection: a data-plane process starts and runs without it."""
    return ControlStore(
        make_client(file.control_store, field="control_store"), file.plan.name, file.control_store
    )


async def _plan(store: ControlStore, pinned: Plan) -> Plan:
    """Return the plan as soon as the store answers.

    Raises:
        OperatorError: the plan names other servers or secrets than the local migration file.
    """
    while True:
        try:
            plan = await store.plan()
            check_pinned(pinned, plan)
            return plan
        except (RedisError, OSError) as exc:
            logging.getLogger(__name__).warning("waiting for the control store: %s", exc)
            await asyncio.sleep(1)


def _check_place(name: str, place: str | None) -> None:
    """Check that an option is HOST:PORT.

    Raises:
        OperatorError: it is not.
    """
    try:
        if place is not None:
            split_place(place)
    except ValueError as exc:
        raise OperatorError(
            f"{name}: {place!r} is not HOST:PORT",
            why=str(exc),
            next_step=f"{name} 127.0.0.1:26379",
        ) from exc


def _check_advertise(host: str | None) -> None:
    """Check that an option is a host, without a port.

    Raises:
        OperatorError: it is not.
    """
    if host is None or advertised(host)[1] is None:
        return
    raise OperatorError(
        f"--advertise: {host!r} has a port",
        why="all gateways of a migration tell clients the same ports",
        next_step="--advertise HOST here, and gateway.advertise: HOST:PORT in the plan",
    )


def gateway(
    id_: IdOption = "gateway-1",
    file: FileOption = None,
    home: HomeOption = None,
    listen: Annotated[
        str | None, typer.Option(help="HOST:PORT or unix:PATH (default: the plan's gateway)")
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(help="folder for the intent log and the spool; keep it across restarts"),
    ] = None,
    status_listen: Annotated[
        str, typer.Option(help="address of /metrics and /health; they ask for no login")
    ] = "127.0.0.1",
    status_port: Annotated[
        int, typer.Option(help="port of /metrics and /health; 0: a free port")
    ] = 0,
    cert_file: Annotated[Path | None, typer.Option(help="certificate for TLS with clients")] = None,
    key_file: Annotated[Path | None, typer.Option(help="key of the certificate")] = None,
    client_ca_file: Annotated[
        Path | None, typer.Option(help="ask clients for certificates of this CA")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="number of processes on one port, named ID-N, with a supervisor"
        ),
    ] = None,
    drain_s: Annotated[
        float, typer.Option("--drain", min=0, help="seconds for sessions to end after SIGTERM")
    ] = 2.0,
    connections: Annotated[
        int,
        typer.Option(
            min=0,
            help="expected connections, checked at the start against maxclients and open files",
        ),
    ] = 0,
    sentinel_listen: Annotated[
        str | None,
        typer.Option(help="HOST:PORT at which to answer like a Sentinel that names this gateway"),
    ] = None,
    sentinel_service: Annotated[
        list[str] | None,
        typer.Option(
            help="service name that clients ask for, several times if needed (default: the plan's)"
        ),
    ] = None,
    sentinel_announce: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT to name as the master (default: the host that the client reached, and "
            "the port of --listen)"
        ),
    ] = None,
    sentinel_tls: Annotated[
        bool, typer.Option(help="speak TLS at --sentinel-listen, with --cert-file")
    ] = False,
    lend_own_certificate: Annotated[
        bool, typer.Option(help="show Exodus's certificate to a server for clients that show none")
    ] = False,
    lend_own_address: Annotated[
        bool,
        typer.Option(
            help="open a server that trusts this machine without a password to the network"
        ),
    ] = False,
    advertise: Annotated[
        str | None,
        typer.Option(help="host that cluster clients are told (default: the plan's)"),
    ] = None,
    listen_fd: Annotated[list[int] | None, typer.Option(hidden=True)] = None,
    log_level: LogLevelOption = "INFO",
    log_format: LogFormatOption = LogFormat.TEXT,
) -> None:
    """Relay applications to the authority.

    Example: exodus gateway --id gw-1 --listen 127.0.0.1:6400 --workers 4
    """
    _log(log_level, log_format)
    migration = migration_at(file, home)
    host, port = migration.plan.gateway.host, migration.plan.gateway.port
    if listen is not None and listen.startswith("unix:"):
        host, port = listen, 0
    elif listen is not None:
        host, _, text = listen.rpartition(":")
        if not host or not text.isdigit():
            raise OperatorError(
                f"--listen: {listen!r} is not HOST:PORT",
                why="an address has a host and a port",
                next_step="--listen 127.0.0.1:6400",
            )
        port = int(text)
    for name, place in (
        ("--sentinel-listen", sentinel_listen),
        ("--sentinel-announce", sentinel_announce),
    ):
        _check_place(name, place)
    if sentinel_listen and host.startswith("unix:") and not sentinel_announce:
        raise OperatorError(
            "--sentinel-listen: no address to name as the master",
            why="the gateway listens on a Unix socket, and Sentinel clients connect by host and "
            "port",
            next_step="--sentinel-announce HOST:PORT, or --listen HOST:PORT",
        )
    _check_advertise(advertise)
    check_certificates(migration.plan, client_ca_file, lend=lend_own_certificate)
    if workers is not None:
        asyncio.run(check_address(migration.plan, host, lend=lend_own_address))
        root = state_dir or Path("exodus-state")
        given = {
            "--file": file,
            "--home": home,
            "--cert-file": cert_file,
            "--key-file": key_file,
            "--client-ca-file": client_ca_file,
            "--sentinel-listen": sentinel_listen,
            "--sentinel-announce": sentinel_announce,
            "--advertise": advertise,
        }
        shared = [
            text
            for name, value in given.items()
            if value is not None
            for text in (name, str(value))
        ]
        shared += [
            "--drain",
            str(drain_s),
            "--connections",
            str(-(-connections // workers)),
            "--log-level",
            log_level,
            "--log-format",
            log_format,
        ]
        shared += [
            "--status-listen",
            status_listen,
            *["--lend-own-certificate"] * lend_own_certificate,
            *["--lend-own-address"] * lend_own_address,
            *["--sentinel-tls"] * sentinel_tls,
            *[
                word
                for service in sentinel_service or ()
                for word in ("--sentinel-service", service)
            ],
        ]
        shared += ["--listen", host if host.startswith("unix:") else f"{host}:{port}"]

        def command(worker: str, folder: Path, fds: list[int]) -> list[str]:
            own = ["--id", worker, "--state-dir", str(folder)]
            if status_port:
                own += ["--status-port", str(status_port + int(worker.rpartition("-")[2]))]
            return worker_command(
                [*shared, *own, *[text for fd in fds for text in ("--listen-fd", str(fd))]]
            )

        Supervisor(
            id_=id_,
            workers=workers,
            state_dir=root,
            host=host,
            port=port,
            listeners=migration.plan.listener_count,
            drain_s=drain_s,
            command=command,
        ).run()
        return
    options = GatewayOptions(
        id_,
        state_dir or Path("exodus-state") / id_,
        host,
        port,
        status_port,
        cert_file,
        key_file,
        client_ca_file,
        status_host=status_listen,
        lend_certificate=lend_own_certificate,
        lend_address=lend_own_address,
        pinned=migration.plan,
        listen_fds=tuple(listen_fd or ()),
        drain_s=drain_s,
        sentinel_listen=sentinel_listen or "",
        sentinel_tls=sentinel_tls,
        sentinel_services=tuple(sentinel_service or ()),
        sentinel_announce=sentinel_announce or "",
        connections_expected=connections,
        settle=settle,
        advertise=advertise,
    )
    try:
        uvloop.run(serve(_store(migration), options))
    except (RedisError, OSError) as exc:
        raise ControlStoreError(
            f"the control store {migration.control_store.url} does not answer",
            why=str(exc),
            next_step="start it: a gateway's first start reads the plan and the route from it",
        ) from exc


def syncer(
    id_: IdOption = "syncer-1",
    file: FileOption = None,
    home: HomeOption = None,
    log_level: LogLevelOption = "INFO",
    log_format: LogFormatOption = LogFormat.TEXT,
) -> None:
    """Copy changed keys to the follower. Example: exodus syncer --id syncer-1"""
    _log(log_level, log_format)
    migration = migration_at(file, home)

    async def work() -> None:
        store = _store(migration)
        await run_syncer(store, await _plan(store, migration.plan), id_)

    uvloop.run(work())


def comparer(
    id_: IdOption = "comparer-1",
    file: FileOption = None,
    home: HomeOption = None,
    log_level: LogLevelOption = "INFO",
    log_format: LogFormatOption = LogFormat.TEXT,
) -> None:
    """Try sampled requests on the target and compare the replies.

    Example: exodus comparer --id comparer-1
    """
    _log(log_level, log_format)
    migration = migration_at(file, home)

    async def work() -> None:
        store = _store(migration)
        await run_comparer(store, await _plan(store, migration.plan), id_)

    uvloop.run(work())
