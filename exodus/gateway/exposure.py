"""Exposure: what a gateway would lend to every client, checked before it listens.

A server sees the gateway's address and certificate, not the client's. A server that asks for
certificates, or that trusts its own machine, would be open to everybody who reaches the gateway.
The gateway refuses to start then, unless an option allows it by name.

The control store's plan is checked too: it must name the servers of the local migration file.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

from exodus.errors import OperatorError
from exodus.net.connect import open_streams
from exodus.net.masters import located
from exodus.net.tls import ssl_context
from exodus.plan.address import Address
from exodus.plan.bounds import CONNECT_TIMEOUT_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode

log = logging.getLogger(__name__)
_PINNED = {"source", "target", "users", "logins", "compare_user", "compare_script_user"}


def is_local(host: str) -> bool:
    """Tell whether an address is loopback or a Unix socket."""
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_certificates(plan: Plan, client_ca_file: Path | None, *, lend: bool) -> None:
    """Check that a client without a certificate does not reach a server that requires one.

    Raises:
        OperatorError: the gateway would show Exodus's certificate for clients without one.
    """
    shown = [side for side in Side if plan.address(side).cert_file is not None]
    if shown and client_ca_file is None and not lend:
        raise OperatorError(
            f"the gateway would show the {' and the '.join(shown)} "
            "Exodus's own certificate for every client",
            why=f"{shown[0]}.cert_file is set, and clients are asked for no certificate: "
            "a client without one would get in",
            next_step="ask clients for theirs with --cert-file, --key-file and --client-ca-file; "
            "or, where the network keeps strangers out, allow it with --lend-own-certificate",
        )


async def check_address(plan: Plan, listen_host: str, *, lend: bool) -> None:
    """Check that a server that trusts its own machine is not opened to the network.

    Raises:
        OperatorError: it would be opened.
    """
    if is_local(listen_host) or lend:
        return
    for side in Side:
        try:
            address = await located(plan.address(side))
        except (OSError, TimeoutError) as exc:
            log.warning("whether the %s asks everybody for a login is not known: %s", side, exc)
            continue
        if is_local(address.host) and await _lets_anybody_in(address):
            raise OperatorError(
                f"the gateway would open the {side} to the network: it listens on {listen_host}",
                why=f"the {side} is reached by {address.host}, and its user 'default' needs no "
                "password: protected mode and rules for addresses take a client of the gateway "
                "for one of this machine",
                next_step="set a password for the user 'default', listen on loopback, "
                "or allow it with --lend-own-address",
            )


async def _lets_anybody_in(address: Address) -> bool:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await open_streams(address, ssl_context(address))
            with closing(writer):
                writer.write(encode("PING"))
                return await reader.readline() == b"+PONG\r\n"
    except (OSError, TimeoutError) as exc:
        log.warning(
            "whether %s asks everybody for a login is not known: %s",
            address.url,
            str(exc) or type(exc).__name__,
        )
        return False


def check_pinned(local: Plan | None, told: Plan) -> None:
    """Check that the store's plan names the servers and secrets of the local migration file.

    Otherwise a writer of the store could have the gateway read password files of this machine and
    send them to another host.

    Raises:
        OperatorError: they differ.
    """
    if local is None:
        return
    ours, theirs = (_flat(plan.model_dump(mode="json", include=_PINNED)) for plan in (local, told))
    differ = sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )
    if differ:
        raise OperatorError(
            "the plan in the control store is not that of the migration file: "
            f"{', '.join(differ[:5])}",
            why=f"{differ[0]} is {ours.get(differ[0])!r} in the file "
            f"and {theirs.get(differ[0])!r} in the store",
            next_step="if you changed the file, exodus apply it; "
            "else find out who wrote to the control store before you start anything",
        )


def _flat(value: Any, name: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {
            key: inner
            for word, each in value.items()
            for key, inner in _flat(each, f"{name}.{word}" if name else word).items()
        }
    if isinstance(value, list):
        return {
            key: inner
            for number, each in enumerate(value)
            for key, inner in _flat(each, f"{name}[{number}]").items()
        }
    return {name: value}
