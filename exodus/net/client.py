"""redis-py clients for control work. The hot path uses `exodus/net/leg.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from exodus.plan.address import Address
from exodus.plan.bounds import CONNECT_TIMEOUT_S


async def answered(reply: Any) -> Any:
    """Await a reply of redis-py's asyncio client, whose annotations also allow a plain value."""
    return await reply


def tls_options(address: Address) -> dict[str, Any]:
    """Return what redis-py's clients, both kinds, take for the address's TLS; nothing without."""
    if not address.tls:
        return {}
    return {
        "ssl": True,
        "ssl_ca_certs": str(address.ca_file) if address.ca_file else None,
        "ssl_certfile": str(address.cert_file) if address.cert_file else None,
        "ssl_keyfile": str(address.key_file) if address.key_file else None,
    }


def make_client(
    address: Address, *, field: str, db: int = 0, timeout_s: float = CONNECT_TIMEOUT_S, **more: Any
) -> redis.Redis:
    """Make a redis-py client for control work, without retries: the caller decides what a failure
    means. `more` goes to redis-py.
    """
    client = redis.Redis(
        host=address.host,
        port=address.port,
        db=db,
        username=address.username,
        password=address.secret(field),
        socket_connect_timeout=timeout_s,
        socket_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        # CLIENT SETINFO and CLIENT MAINT_NOTIFICATIONS are rights that no user of ours needs
        # otherwise
        driver_info=None,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        **tls_options(address),
        **more,
    )
    if address.tls and address.server_name:
        client.connection_pool.connection_class = NamedTls
        client.connection_pool.connection_kwargs["server_name"] = address.server_name
    return client


class NamedTls(redis.SSLConnection):
    """Asks for the certificate of a name that may be another than the host's."""

    def __init__(self, *, server_name: str | None, **more: Any) -> None:
        super().__init__(**more)
        self._server_name = server_name

    def _connection_arguments(self) -> Mapping[str, Any]:
        name = self._server_name or self.host
        return {**super()._connection_arguments(), "server_hostname": name}
