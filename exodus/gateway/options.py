"""How one gateway process is run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from exodus.control.store import ControlStore
from exodus.plan.plan import Plan

# Finishes the work that an interrupted switch left on both sides; returns the steps still open.
Settle = Callable[[ControlStore, Plan], Awaitable[list[str]]]


@dataclass
class GatewayOptions:
    """The options of `exodus gateway`. `listen_host` and `listen_port` override the plan's."""

    process: str
    state_dir: Path
    listen_host: str
    listen_port: int
    status_port: int = 0
    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    listen_fds: tuple[int, ...] = ()  # sockets that a supervisor lends, in place of host and port
    drain_s: float = 2.0  # sessions get so long to end when the gateway stops
    status_host: str = "127.0.0.1"  # of /metrics and /health, which require no login
    lend_certificate: bool = False  # use Exodus's certificate for clients without one
    lend_address: bool = False  # use this machine's address towards a server that trusts it
    pinned: Plan | None = None  # of the local migration file: the store's must agree with it
    sentinel_listen: str = ""  # HOST:PORT at which it answers like a Sentinel; empty: nowhere
    sentinel_tls: bool = False  # it speaks TLS there, with `cert_file`
    sentinel_services: tuple[str, ...] = ()  # names that are asked for; none: the plan's
    sentinel_announce: str = ""  # HOST:PORT to name as the master; empty: where it was reached
    connections_expected: int = 0  # checked against the server's maxclients at the start
    settle: Settle | None = None
    advertise: str | None = None  # host that cluster clients are told, in place of the plan's
