"""The one way to open a connection to a server, and to log in on it.

`exodus/net/leg.py` is what the engine uses. The gateway's connections have protocols of their own
and use the functions here directly. redis-py's clients come from `exodus/net/client.py`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

from exodus.plan.address import Address, Place
from exodus.plan.bounds import CONNECT_TIMEOUT_S
from exodus.resp.encode import encode

P = TypeVar("P", bound=asyncio.BaseProtocol)


def certificate_name(address: Address, context: ssl.SSLContext | None) -> str | None:
    """Return the name that the server's certificate must have; None without TLS."""
    return (address.server_name or address.host) if context else None


async def open_streams(
    address: Address, context: ssl.SSLContext | None, *, limit: int = 64 * 1024
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect within `CONNECT_TIMEOUT_S`. `limit` is what the reader buffers, in bytes.

    Raises:
        OSError, TimeoutError: the server takes no connection.
    """
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(
            address.host,
            address.port,
            ssl=context,
            server_hostname=certificate_name(address, context),
            limit=limit,
        )
    raw = writer.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return reader, writer


async def open_protocol(
    address: Address, context: ssl.SSLContext | None, protocol: Callable[[], P]
) -> P:
    """Connect within `CONNECT_TIMEOUT_S`, with a protocol of the caller's own.

    Raises:
        OSError, TimeoutError: the server takes no connection.
    """
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        _, made = await asyncio.get_running_loop().create_connection(
            protocol,
            address.host,
            address.port,
            ssl=context,
            server_hostname=certificate_name(address, context),
        )
    return made


def login_of(address: Place, field: str) -> bytes:
    """Return the encoded AUTH of an address; empty without a password. `field` names the address in
    errors.

    Raises:
        OperatorError: the password's variable or file cannot be read.
    """
    secret = address.secret(field)
    if secret is None:
        return b""
    return encode("AUTH", *([address.username] if address.username else []), secret)
