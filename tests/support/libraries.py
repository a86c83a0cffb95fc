"""Other client libraries under the shop's writers: redis-py composes each command and reads its
reply, another library takes it there and back.

What such a library brings is what a switch could disturb: its handshake and protocol, its framing
and parsing, how many callers share a connection, and what it does when one ends.

    redis-py   one connection a writer, RESP2, parsed by hiredis in C
    coredis    asyncio with a compiled parser, RESP3; a pool of its own for each writer
    glide      Valkey's own client, in Rust with a runtime of its own, RESP3; all writers of one
               gateway share a single connection

None of them repeats a write by itself, since the model would not know of it: coredis is told so,
glide does not for what was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

import coredis
import coredis.exceptions
import glide
import redis.asyncio as redis
from coredis.response._callbacks import NoopCallback
from coredis.retry import NoRetryPolicy
from redis.asyncio.client import Pipeline
from redis.exceptions import NoScriptError

from examples.shop.place import connect

_ANSWER_S = 60  # as redis-py waits in the shop
_CONNECT_S = 10
Command = list[bytes]
glide.Logger.set_logger_config(glide.LogLevel.OFF)  # the test ends connections on purpose


class Library(Protocol):
    """Raw commands in, raw replies of RESP3 out, failures as redis-py's."""

    async def ask(self, command: Command) -> Any:
        """The reply of one command.

        Raises:
            redis.RedisError: an error of the server, or no answer.
        """

    async def batch(self, commands: list[Command], *, atomic: bool) -> list[Any]:
        """Replies of commands sent together, the servers' errors as values; raises as `ask` where
        there is no answer.
        """

    async def aclose(self) -> None:
        """Return the connections."""


def _wire(arguments: Sequence[Any]) -> Command:
    """Return the command as it goes over the wire; redis-py joins a subcommand with its command."""
    name, *rest = arguments
    return [
        part if isinstance(part, bytes) else str(part).encode()
        for part in (*str(name).split(" "), *rest)
    ]


def _failure(
    exc: BaseException, *, unanswered: tuple[type[BaseException], ...]
) -> redis.RedisError:
    text = f"{type(exc).__name__}: {exc}"
    if isinstance(exc, unanswered):
        return redis.ConnectionError(text)
    return NoScriptError(text) if "NoScript" in text else redis.ResponseError(text)


class Coredis:
    """Its pool belongs to the task that opens it, so it gets a task of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._client = coredis.Redis(
            host,
            port,
            stream_timeout=_ANSWER_S,
            connect_timeout=_CONNECT_S,
            retry_policy=NoRetryPolicy(),
        )
        self._open, self._over = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._keep_open())

    async def _keep_open(self) -> None:
        async with self._client:
            self._open.set()
            await self._over.wait()

    @staticmethod
    def _request(on: Any, command: Command) -> Any:
        # It knows a command by its name with its subcommand.
        words = 2 if command[0] in (b"SCRIPT", b"XGROUP") else 1
        return on.create_request(
            b" ".join(command[:words]), *command[words:], callback=NoopCallback()
        )

    async def ask(self, command: Command) -> Any:
        await self._open.wait()
        try:
            return await self._request(self._client, command)
        except (coredis.exceptions.RedisError, OSError) as exc:
            raise self._failed(exc) from exc

    async def batch(self, commands: list[Command], *, atomic: bool) -> list[Any]:
        await self._open.wait()
        try:
            async with self._client.pipeline(transaction=atomic, raise_on_error=False) as pipe:
                requests = [self._request(pipe, command) for command in commands]
        except (coredis.exceptions.RedisError, OSError) as exc:
            raise self._failed(exc) from exc
        replies = []
        for request in requests:
            try:
                replies.append(await request)
            except coredis.exceptions.ResponseError as exc:
                replies.append(self._failed(exc))
            except (coredis.exceptions.RedisError, OSError) as exc:
                raise self._failed(exc) from exc
        return replies

    @staticmethod
    def _failed(exc: BaseException) -> redis.RedisError:
        return _failure(exc, unanswered=(coredis.exceptions.ConnectionError, OSError))

    async def aclose(self) -> None:
        self._over.set()
        await self._task


class Glide:
    """Several callers on one connection: at a switch, requests of many callers are open on it."""

    def __init__(self, host: str, port: int, callers: int = 1) -> None:
        self.callers = callers
        where = [glide.NodeAddress(host, port)]
        more = glide.AdvancedGlideClientConfiguration(connection_timeout=_CONNECT_S * 1000)
        asked = glide.GlideClientConfiguration(
            where, request_timeout=_ANSWER_S * 1000, advanced_config=more
        )
        self._client = asyncio.create_task(glide.GlideClient.create(asked))

    async def ask(self, command: Command) -> Any:
        try:
            return self._as_sent(command, await (await self._client).custom_command(list(command)))
        except glide.GlideError as exc:
            raise self._failed(exc) from exc

    async def batch(self, commands: list[Command], *, atomic: bool) -> list[Any]:
        batch = glide.Batch(is_atomic=atomic)
        for command in commands:
            batch.custom_command(list(command))
        try:
            replies = await (await self._client).exec(batch, raise_on_error=False)
        except glide.GlideError as exc:
            raise self._failed(exc) from exc
        return [
            self._failed(reply)
            if isinstance(reply, glide.GlideError)
            else self._as_sent(command, reply)
            for command, reply in zip(commands, replies or [], strict=True)
        ]

    @staticmethod
    def _as_sent(command: Command, reply: Any) -> Any:
        """The shape that the server sent, where glide has made a dict of it."""

        def entries(found: dict[bytes, list[list[bytes]]]) -> list[list[Any]]:
            return [
                [entry, [part for pair in pairs for part in pair]] for entry, pairs in found.items()
            ]

        if command[0] == b"ZRANGE":
            return [[member, score] for member, score in reply.items()]
        if command[0] == b"XRANGE":
            return entries(reply)
        if command[0] == b"XREADGROUP" and reply is not None:
            return {key: entries(found) for key, found in reply.items()}
        return reply

    @staticmethod
    def _failed(exc: BaseException) -> redis.RedisError:
        return _failure(
            exc, unanswered=(glide.ConnectionError, glide.TimeoutError, glide.ClosingError)
        )

    async def aclose(self) -> None:
        self.callers -= 1
        if not self.callers:
            await (await self._client).close()


class _Batch(Pipeline):
    def __init__(self, library: Library, client: redis.Redis, *, atomic: bool) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, atomic, None)
        self._library = library

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        stack, self.command_stack = self.command_stack, []
        replies = await self._library.batch(
            [_wire(arguments) for arguments, _ in stack], atomic=self.is_transaction
        )
        if raise_on_error:
            self.raise_first_error(stack, replies)
        return [
            reply
            if isinstance(reply, redis.RedisError)
            else _read(self.response_callbacks, arguments[0], reply, options)
            for (arguments, options), reply in zip(stack, replies, strict=True)
        ]


def _read(callbacks: Any, name: str, reply: Any, options: dict[str, Any]) -> Any:
    options.pop("keys", None)  # for redis-py's own cache
    return callbacks[name](reply, **options) if name in callbacks else reply


class Borrowed(redis.Redis):
    """redis-py's commands and readers over another library's connections; redis-py's own are never
    opened.
    """

    def __init__(self, library: Library) -> None:
        super().__init__(protocol=3)
        self._library = library

    async def execute_command(self, *arguments: Any, **options: Any) -> Any:
        return _read(
            self.response_callbacks,
            arguments[0],
            await self._library.ask(_wire(arguments)),
            options,
        )

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        del shard_hint
        return _Batch(self._library, self, atomic=transaction)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self._library.aclose()
        await super().aclose(close_connection_pool)


LIBRARIES = ("redis-py", "coredis", "glide")


class Clients:
    """Opens clients for many callers; a caller's number decides which library it gets."""

    def __init__(self, libraries: Sequence[str]) -> None:
        self._libraries = libraries
        self._shared: dict[str, Glide] = {}

    def open(self, number: int, url: str, *, blocks: bool = False) -> redis.Redis:
        """Return a client for caller `number`; one that `blocks` its connection does not share
        it.
        """
        name, at = self._libraries[number % len(self._libraries)], urlsplit(url)
        if name == "redis-py":
            return connect(url)
        where = str(at.hostname), int(at.port or 6379)
        if name == "coredis":
            return Borrowed(Coredis(*where))
        if blocks:
            return Borrowed(Glide(*where))
        if url not in self._shared:
            self._shared[url] = Glide(*where, callers=0)
        self._shared[url].callers += 1
        return Borrowed(self._shared[url])
