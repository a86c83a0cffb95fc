"""A client for business checks: redis-py's, which refuses what is not a read.

The server's own COMMAND table says what a read is. This protects from mistakes of a check, not from
its author.
"""

from __future__ import annotations

import ssl
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from exodus.net.client import tls_options
from exodus.plan.address import Address

# They change nothing but the connection, and some servers do not call them reads.
_HARMLESS = frozenset(
    {"COMMAND", "DISCARD", "ECHO", "EXEC", "INFO", "MULTI", "OBJECT", "PING", "SELECT", "TIME"}
    | {"UNWATCH", "WATCH", "XINFO"}
)


class NotARead(redis.RedisError):
    """A business check asked for something that is not a read."""


def _check(allowed: frozenset[str], args: tuple[Any, ...]) -> None:
    word = args[0].decode() if isinstance(args[0], bytes) else str(args[0])
    name = word.split(" ", 1)[0].upper()
    if name not in allowed:
        raise NotARead(f"{name} is not a read: a business check may not change anything")


class _ReadOnlyPipeline(Pipeline):
    allowed: frozenset[str] = frozenset()

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        _check(self.allowed, args)
        return super().execute_command(*args, **kwargs)  # type: ignore[no-untyped-call]


class ReadOnlyClient(redis.Redis):
    """Refuses, before anything is sent, what the server does not call a read."""

    _allowed: frozenset[str] = frozenset()

    def learn(self) -> None:
        """Ask the server what its reads are.

        Raises:
            redis.RedisError: it does not answer.
        """
        table = super().execute_command("COMMAND")  # type: ignore[no-untyped-call]
        self._allowed = _HARMLESS | {
            name.upper() for name, facts in table.items() if "readonly" in facts["flags"]
        }

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a read.

        Raises:
            NotARead: it is none.
        """
        _check(self._allowed, args)
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline of reads."""
        made = _ReadOnlyPipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
        made.allowed = self._allowed
        return made


class _NamedTls(redis.SSLConnection):
    """Asks for the certificate of a name that is not the host's."""

    def __init__(self, *, server_name: str, **more: Any) -> None:
        super().__init__(**more)
        self._server_name = server_name

    def _wrap_socket_with_ssl(self, sock: Any) -> ssl.SSLSocket:
        host, self.host = self.host, self._server_name
        try:
            return super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call, no-any-return]
        finally:
            self.host = host


def open_read_only(address: Address, field: str, *, db: int, timeout_s: float) -> ReadOnlyClient:
    """Connect to a side, for reads.

    Raises:
        redis.RedisError: it does not answer.
        OperatorError: the password's variable or file cannot be read.
    """
    client = ReadOnlyClient(
        host=address.host,
        port=address.port,
        db=db,
        username=address.username,
        password=address.secret(field),
        socket_connect_timeout=timeout_s,
        socket_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        client_name="exodus-business",
        driver_info=None,
        **tls_options(address),
    )
    if address.tls and address.server_name:
        client.connection_pool.connection_class = _NamedTls
        client.connection_pool.connection_kwargs["server_name"] = address.server_name
    client.learn()
    return client
