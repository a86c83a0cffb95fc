"""redis-py clients of a side, which may be a service behind Sentinel, or a cluster."""

from __future__ import annotations

from typing import Any

import redis.asyncio as redis

from exodus.net.client import NamedTls, make_client
from exodus.net.masters import doubt, located
from exodus.plan.address import Address, Cluster, Place, ServerLogin, Service


def make_side_client(place: Place, *, field: str, **more: Any) -> redis.Redis:
    """Make a client as `make_client` does. Each of its connections goes to the server that is the
    master when it is made; of a cluster, to one of the masters.
    """
    if isinstance(place, Address):
        return make_client(place, field=field, **more)
    login = {name: getattr(place, name) for name in ServerLogin.model_fields}
    named = Address(host=field, port=1, **login)  # the connection knows where to
    client = make_client(named, field=field, **more)
    pool = client.connection_pool
    pool.connection_class = _TlsToMaster if place.tls else _ToMaster
    pool.connection_kwargs["service"] = place
    if place.tls:
        pool.connection_kwargs["server_name"] = place.server_name
    return client


class _ToMaster(redis.Connection):
    """Connects to the server that is the master of a service by then."""

    def __init__(self, *, service: Service | Cluster, **more: Any) -> None:
        super().__init__(**more)
        self._service = service

    async def _connect(self) -> None:
        address = await located(self._service)
        self.host, self.port = address.host, address.port
        try:
            await super()._connect()  # type: ignore[no-untyped-call]
        except OSError:
            doubt(self._service)
            raise


class _TlsToMaster(_ToMaster, NamedTls):
    """The same by TLS."""
