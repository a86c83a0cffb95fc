"""The gateway process: what is checked before it listens, and `serve`.

The process starts with the plan and the route from the control store. While the store is away, it
starts with those that it had last (last_route.py).
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal

from exodus import gc_tuning
from exodus.control.durable import check_store
from exodus.control.store import ControlStore
from exodus.errors import ExodusError, OperatorError
from exodus.gateway.exposure import check_address, check_certificates, check_pinned
from exodus.gateway.hub import Gateway
from exodus.gateway.last_route import start_state
from exodus.gateway.options import GatewayOptions
from exodus.gateway.store_state import STORE_ERRORS
from exodus.gateway.supervisor import lock_state
from exodus.gateway.tables import load_table
from exodus.net.client import answered
from exodus.net.master_client import make_side_client
from exodus.plan.bounds import PROCESS_OWN_FILES
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import UserRole
from exodus.topology.watch import TopologyWatch

log = logging.getLogger(__name__)


async def room(plan: Plan, connections_expected: int) -> str:
    """Return why the expected connections do not fit, or nothing.

    Each client takes one connection of the source and two files of this process.
    """
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    found = []
    files = 2 * connections_expected + PROCESS_OWN_FILES
    if connections_expected and files > files_max:
        found.append(
            f"{connections_expected} connections take {files} open files "
            f"and {files_max} are allowed (ulimit -n)"
        )
    client = make_side_client(plan.acting(UserRole.GATEWAY).source, field="source")
    try:
        clients = await answered(client.info("clients"))
        most = clients.get("maxclients")
        if most is None:
            most = int((await answered(client.config_get("maxclients")))["maxclients"])
        left = int(most) - int(clients["connected_clients"])
        if connections_expected > left:
            found.append(
                f"the source has room for {left} more connections (maxclients {most}), "
                f"and {connections_expected} are expected"
            )
    except (*STORE_ERRORS, KeyError, ValueError) as exc:
        log.warning("the source does not tell its maxclients: %s", exc)
        if connections_expected:
            found.append("the source does not tell its maxclients")
    finally:
        await client.aclose()
    return "; ".join(found)


async def claim_id(gateway: Gateway) -> None:
    """Claim the registration of this id.

    Raises:
        OperatorError: a gateway with another state folder runs under this id.
    """
    process = gateway.options.process
    try:
        other = await gateway.heartbeats.claim()
    except STORE_ERRORS:
        log.warning("the control store is away: the id %s is claimed when it is back", process)
        return
    if other is not None:
        raise OperatorError(
            f"a gateway runs under the id {process}",
            why=f"its process is {other.pid} on {other.host}, with another state folder; "
            "one heartbeat cannot answer for both",
            next_step="give each process an --id and a --state-dir of its own; "
            "if that process is gone, start again in a few seconds",
        )


async def log_store_settings(store: ControlStore) -> None:
    """Log what is wrong with the control store's settings. Applications are served all the same."""
    try:
        for found in await check_store(store, {}):
            if found.severity != "ok":
                log.error("%s: %s; %s", found.what, found.why, found.next_step)
    except STORE_ERRORS as exc:
        log.warning("the control store does not tell its settings: %s", exc)


def _check_ports(plan: Plan, options: GatewayOptions) -> None:
    """Check that each listener can have a port of its own.

    Raises:
        OperatorError: there is a Unix socket, or a port that the kernel chooses, for several.
    """
    if plan.listener_count > 1 and not options.listen_port:
        raise OperatorError(
            f"{plan.listener_count} listeners need ports of their own",
            why="a side is a cluster, whose clients are told a port for each node",
            next_step="--listen HOST:PORT with the port of the first listener",
        )


async def serve(store: ControlStore, options: GatewayOptions) -> None:
    """Run `exodus gateway` until it is stopped.

    Raises:
        ExodusError: the process cannot start; its three lines say why.
    """
    plan, route = await start_state(store, options.state_dir)
    if not plan.has_gateways:
        raise OperatorError(
            "no gateway is used in this migration",
            why="a side is a cluster, and the plan says cutover: own",
            next_step="start a syncer only (exodus syncer), or set cutover: gateway; "
            "docs/operating/cluster.md",
        )
    _check_ports(plan, options)
    check_pinned(options.pinned, plan)
    await TopologyWatch(plan.acting(UserRole.GATEWAY), store).begin()
    check_certificates(plan, options.client_ca_file, lend=options.lend_certificate)
    await check_address(plan, options.listen_host, lend=options.lend_address)
    # Lock the folder before reading it: reading repairs records that a crash cut.
    if lock_state(options.state_dir) is None:
        raise OperatorError(
            f"{options.state_dir} belongs to a gateway that runs",
            why="two processes would journal each other's intents",
            next_step="give each process an --id and a --state-dir of its own",
        )
    gateway = Gateway(store, plan, await load_table(plan), options)
    gc_tuning.settle()  # garbage collection then costs next to nothing a request
    await claim_id(gateway)
    await log_store_settings(store)
    gateway.room_why = await room(plan, options.connections_expected)
    if gateway.room_why:
        log.error("%s", gateway.room_why)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, gateway.stop)
    loop.add_signal_handler(signal.SIGHUP, gateway.tls_contexts.reload)
    try:
        await gateway.run(route)
    except OSError as exc:
        raise ExodusError(
            f"cannot listen on {options.listen_host}:{options.listen_port}",
            why=str(exc),
            next_step="stop what uses the port, or choose another with --listen",
        ) from exc
