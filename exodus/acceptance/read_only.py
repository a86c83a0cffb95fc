"""Clients for business checks: redis-py's, which refuse what is not a read.

The server's own COMMAND table says what a read is. This protects from mistakes of a check, not from
its author.

    ReadOnlyClient      one server, or one node of a cluster
    ReadOnlyCluster     a cluster
    Reads               what both ask before they send, and do to the replies

On a cluster the trial copy is among other keys, under a prefix. `Reads` then puts the prefix before
each key of a request and takes it from the names in its reply. So a check uses the keys' own names.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.cluster import ClusterNode, ClusterPipeline
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from exodus.commands.key_places import key_places
from exodus.commands.key_slots import slot_of
from exodus.commands.table import CommandTable
from exodus.net.client import tls_options
from exodus.plan.address import Address, Cluster, place_of
from exodus.plan.bounds import BUSINESS_REDIRECTS_MAX

# They change nothing but the connection, and some servers do not call them reads.
_HARMLESS = frozenset(
    {"COMMAND", "DISCARD", "ECHO", "EXEC", "INFO", "MULTI", "OBJECT", "PING", "SELECT", "TIME"}
    | {"UNWATCH", "WATCH", "XINFO"}
)


class NotARead(redis.RedisError):
    """A business check asked for something that is not a read."""


class Reads:
    """What a client may send, and how the keys of a trial copy are named."""

    def __init__(
        self,
        allowed: frozenset[str] = _HARMLESS,
        prefix: bytes = b"",
        table: CommandTable | None = None,
    ) -> None:
        """`table` is needed with a `prefix`."""
        self._allowed = allowed
        self._prefix = prefix
        self._table = table

    @classmethod
    def of(cls, rows: Iterable[Any], prefix: bytes) -> Reads:
        """Return what a server lets be read, by its answer to COMMAND."""
        known = list(rows)
        reads = {row[0].decode().upper() for row in known if b"readonly" in map(bytes, row[2])}
        return cls(_HARMLESS | reads, prefix, CommandTable.from_replies(known))

    def sent(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return a request as it is sent.

        Raises:
            NotARead: it is no read, or sees keys beside the trial copy.
        """
        head = [_bytes(word) for word in _bytes(args[0]).split()]
        name = head[0].decode("utf-8", "backslashreplace").upper()
        if name not in self._allowed:
            raise NotARead(f"{name} is not a read: a business check may not change anything")
        if not self._prefix or self._table is None:
            return args
        if name == "SCAN":
            return self._scan(args)
        if name == "KEYS":
            return (args[0], self.named(args[1]))
        places = key_places(self._table, [*head, *map(_bytes, args[1:])])
        if not places and name not in _HARMLESS:
            raise NotARead(f"{name} sees keys beside the trial copy: name its keys, or use SCAN")
        more = enumerate(args[1:], len(head))
        return (args[0], *(self.named(word) if at in places else word for at, word in more))

    def answered(self, reply: Any) -> Any:
        """Return a reply that has the keys' own names."""
        if not self._prefix:
            return reply
        if isinstance(reply, bytes):
            return reply.removeprefix(self._prefix)
        if isinstance(reply, str):
            return reply.removeprefix(self._prefix.decode())
        if isinstance(reply, dict):
            return {self.answered(name): self.answered(value) for name, value in reply.items()}
        if isinstance(reply, list | tuple | set):
            return type(reply)(map(self.answered, reply))
        return reply

    def named(self, key: Any) -> bytes:
        """Return the name under which the server has a key."""
        return self._prefix + _bytes(key)

    def _scan(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        words = list(args)
        for at in range(2, len(words) - 1, 2):
            if _bytes(words[at]).upper() == b"MATCH":
                words[at + 1] = self.named(words[at + 1])
                return tuple(words)
        return (*words, "MATCH", self._prefix + b"*")


def _bytes(word: Any) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


class _ReadOnlyPipeline(Pipeline):
    reads = Reads()

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        sent = self.reads.sent(args)
        return self.reads.answered(super().execute_command(*sent, **kwargs))  # type: ignore[no-untyped-call]

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        found: list[Any] = self.reads.answered(super().execute(raise_on_error))
        return found


class ReadOnlyClient(redis.Redis):
    """Refuses, before anything is sent, what the server does not call a read."""

    reads = Reads()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a read.

        Raises:
            NotARead: it is none.
        """
        sent = self.reads.sent(args)
        return self.reads.answered(super().execute_command(*sent, **options))  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline of reads."""
        made = _ReadOnlyPipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
        made.reads = self.reads
        return made


class _ReadOnlyClusterPipeline(ClusterPipeline):
    reads = Reads()

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        sent = self.reads.sent(args)
        return self.reads.answered(super().execute_command(*sent, **kwargs))  # type: ignore[no-untyped-call]

    def pipeline_execute_command(self, *args: Any, **options: Any) -> Any:
        return self.execute_command(*args, **options)

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        found: list[Any] = self.reads.answered(super().execute(raise_on_error))
        return found

    # redis-py sends these past `execute_command`.

    def exists(self, *keys: Any) -> Any:
        return self.execute_command("EXISTS", *keys)

    def delete(self, *names: Any) -> Any:
        return self.execute_command("DEL", *names)

    def unlink(self, *names: Any) -> Any:
        return self.execute_command("UNLINK", *names)

    def watch(self, *names: Any) -> Any:
        return self.execute_command("WATCH", *names)


class ReadOnlyCluster(redis.RedisCluster):
    """The same for a cluster: each request goes to the node that has its keys."""

    reads = Reads()

    def __init__(self, **more: Any) -> None:
        self._of_node: dict[str, ReadOnlyClient] = {}
        super().__init__(**more)

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Send a read.

        Raises:
            NotARead: it is none.
        """
        sent = self.reads.sent(args)
        return self.reads.answered(super().execute_command(*sent, **kwargs))  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> ClusterPipeline:
        """Return a pipeline of reads; with `transaction` its keys are in one slot."""
        if shard_hint:
            raise redis.RedisError("shard_hint means nothing to a cluster")
        made = _ReadOnlyClusterPipeline(
            nodes_manager=self.nodes_manager,
            commands_parser=self.commands_parser,
            result_callbacks=self.result_callbacks,
            cluster_response_callbacks=self.cluster_response_callbacks,
            reinitialize_steps=self.reinitialize_steps,
            retry=self.retry,
            lock=self._lock,
            transaction=transaction,
            event_dispatcher=self._event_dispatcher,
        )
        made.reads = self.reads
        return made

    def get_redis_connection(self, node: Any) -> ReadOnlyClient:
        """Return a client of one node, for reads."""
        pool = super().get_redis_connection(node).connection_pool
        made = self._of_node.get(node.name)
        if made is None or made.connection_pool is not pool:
            made = self._of_node[node.name] = ReadOnlyClient(connection_pool=pool)
        made.reads = self.reads
        return made

    def _partition_keys_by_slot(self, keys: Iterable[Any]) -> dict[int, list[Any]]:
        """Divide keys by the slots of the names that the server has; for MGET and EXISTS."""
        found: dict[int, list[Any]] = {}
        for key in keys:
            found.setdefault(slot_of(self.reads.named(key)), []).append(key)
        return found


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


def open_read_only(
    place: Address | Cluster, field: str, *, db: int, timeout_s: float, prefix: str = ""
) -> ReadOnlyClient | ReadOnlyCluster:
    """Connect to a side, for reads. `prefix` is that of the trial copy's keys.

    Raises:
        redis.RedisError: the server does not answer.
        redis.exceptions.RedisClusterException: no node of the cluster answers.
        OperatorError: the password's variable or file cannot be read.
    """
    login: dict[str, Any] = {
        "username": place.username,
        "password": place.secret(field),
        "socket_connect_timeout": timeout_s,
        "socket_timeout": timeout_s,
        "client_name": "exodus-business",
        "driver_info": None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    client: ReadOnlyClient | ReadOnlyCluster
    if isinstance(place, Cluster):
        client = _open_cluster(place, login)
        one = client.get_redis_connection(client.get_default_node())  # type: ignore[no-untyped-call]
    else:
        client = one = ReadOnlyClient(
            host=place.host,
            port=place.port,
            db=db,
            retry=Retry(NoBackoff(), 0),
            **login,
            **tls_options(place),
        )
        if place.tls and place.server_name:
            client.connection_pool.connection_class = _NamedTls
            client.connection_pool.connection_kwargs["server_name"] = place.server_name
    # Another client of the same connections: this one's replies are as the server gives them.
    asked = redis.Redis(connection_pool=one.connection_pool)
    asked.set_response_callback("COMMAND", lambda reply, **_: reply)
    client.reads = Reads.of(asked.execute_command("COMMAND"), prefix.encode())
    return client


def _open_cluster(cluster: Cluster, login: dict[str, Any]) -> ReadOnlyCluster:
    """Connect to a cluster. Only with a URL does redis-py take a class of connections."""
    first, *others = cluster.seeds
    made: type[redis.Connection] = redis.Connection
    if cluster.tls:
        made = _named(cluster.server_name) if cluster.server_name else redis.SSLConnection

    def reachable(announced: tuple[str, int]) -> tuple[str, int]:
        server = cluster.server(place_of(*announced))
        return server.host, server.port

    tls = {name: value for name, value in tls_options(first).items() if name != "ssl"}
    return ReadOnlyCluster(
        url=f"redis://{place_of(first.host, first.port)}",
        startup_nodes=[ClusterNode(seed.host, seed.port) for seed in others],
        address_remap=reachable,
        connection_class=made,
        retry=Retry(NoBackoff(), BUSINESS_REDIRECTS_MAX),
        **login,
        **tls,
    )


def _named(server_name: str) -> type[redis.SSLConnection]:
    """Return a class of connections that know the server's name: redis-py drops it on the way."""

    class OneServerTls(_NamedTls):
        def __init__(self, **more: Any) -> None:
            super().__init__(server_name=server_name, **more)

    return OneServerTls
