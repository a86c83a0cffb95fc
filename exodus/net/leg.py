"""One connection to one server, for the hot path: requests encoded by hand, replies read by
hiredis.

redis-py takes about twelve times the client CPU a key (docs/decisions/0006-own-connection.md).
Replies are RESP2 values with bytes. An error reply is a `hiredis.ReplyError` value, and only `call`
raises it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Self

import hiredis

from exodus.errors import ExodusError, OperatorError, SourceError, TargetError
from exodus.net.connect import login_of, open_streams
from exodus.net.masters import doubt, end_with_master, failovers_of, located
from exodus.net.tls import ssl_context
from exodus.plan.address import Address, Place, Service
from exodus.plan.bounds import LEG_READ_BYTES, REPLY_TIMEOUT_S
from exodus.plan.vocabulary import Side
from exodus.resp.encode import Arg, encode, encode_many

Reply = Any  # bytes, int, None, list of these, or hiredis.ReplyError
ReplyError = hiredis.ReplyError
_NOT_YET = ("LOADING", "MASTERDOWN", "BUSY ")
_NO_DATABASE = ("out of range", "invalid DB index", "not allowed in cluster mode")


class NoDatabase(ReplyError):
    """The server has no database of that number: it holds no key there, and takes none."""


def no_database(said: str) -> bool:
    """Return whether an answer to SELECT says that there is no such database."""
    return any(text in said for text in _NO_DATABASE)


def error_of(side: Side) -> type[SourceError] | type[TargetError]:
    """Return the kind of error that names this side."""
    return SourceError if side is Side.SOURCE else TargetError


def lost(side: Side, address: Place, exc: BaseException) -> ExodusError:
    """Return the error for a lost connection. The work is safe to retry: whole-key states are
    idempotent.
    """
    return error_of(side)(
        f"the connection to the {side} {address.url} failed",
        why=str(exc) or type(exc).__name__,
        next_step=f"check that the {side} runs and can be reached; Exodus repeats the work",
    )


def not_yet(side: Side, said: str) -> ExodusError | None:
    """Return the error for a server that refuses every request for a while; None where the answer
    says something else.
    """
    if not said.startswith(_NOT_YET):
        return None
    return error_of(side)(
        f"the {side} does not answer yet",
        why=said,
        next_step="wait: a server that loads its data goes on by itself; end a script that runs "
        "too long with SCRIPT KILL",
    )


class Leg:
    """One connection. Not shared between tasks.

    A leg to a service is a leg to the server that is its master when the leg is made. It ends when
    another server becomes the master.
    """

    def __init__(
        self,
        address: Address,
        side: Side,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.address = address
        self.place: Place = address  # to connect anew
        self.side = side
        self.db = 0
        self.name = ""
        self._reader = reader
        self._writer = writer
        self._parser = hiredis.Reader(notEnoughData=Ellipsis)
        self._unread = b""

    @classmethod
    async def connect(cls, place: Place, side: Side, *, db: int = 0, name: str = "exodus") -> Self:
        """Connect, log in and choose a database.

        Args:
            name: for CLIENT SETNAME; with an empty one nothing but the login is sent, which also a
                busy server takes.

        Raises:
            SourceError, TargetError: the side does not answer.
            OperatorError: it refuses the credentials.
        """
        context = ssl_context(place)
        try:
            address = await located(place)
            term = failovers_of(place)
            reader, writer = await open_streams(address, context, limit=LEG_READ_BYTES)
        except (OSError, TimeoutError) as exc:
            doubt(place)
            raise lost(side, place, exc) from exc
        leg = cls(address, side, reader, writer)
        leg.place = place
        try:
            login = login_of(address, side)
            if login:
                await leg.call_encoded(login)
            if isinstance(place, Service):
                await leg._bind_to_master(place, term)
            leg.name = name
            if name:
                await leg.call("CLIENT", "SETNAME", name)
            if db:
                await leg.select(db)
        except ReplyError as exc:
            await leg.close()
            if (later := not_yet(side, str(exc))) is not None:
                raise later from exc
            raise OperatorError(
                f"{side}: {address.url} refuses the login",
                why=str(exc),
                next_step=f"check user and password of {side} (password_env, password_file)"
                if not str(exc).startswith("NOPERM")
                else f"on the {side}: ACL SETUSER {address.username or 'default'} +client|setname "
                "+select (docs/operating/users.md)",
            ) from exc
        except BaseException:
            await leg.close()
            raise
        return leg

    @property
    def local(self) -> str:
        """This end's address, as CLIENT LIST and MONITOR name the connection."""
        host, port = self._writer.get_extra_info("sockname")[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def _bind_to_master(self, service: Service, term: str) -> None:
        """End this leg with its server's role as the master, which began with `term`.

        Raises:
            SourceError, TargetError: the server is no master (any more).
        """
        end_with_master(service, self.address, self.end)
        (role,) = await self.pipeline([("ROLE",)])
        # Whoever connects without a login, or without the right to ROLE, relies on the Sentinels.
        replica = isinstance(role, list) and role[0] != b"master"
        if replica or failovers_of(service) != term:
            doubt(service)
            raise lost(self.side, self.address, ConnectionError("it is not the master any more"))

    def pin(self, node: str) -> None:
        """Let SCAN go to one node of the side, by its name. A single server is that node."""

    async def pinned(self) -> Leg:
        """Return the connection to that node."""
        return self

    async def any_leg(self) -> Leg:
        """Return a connection to a master, for what all of them answer alike."""
        return self

    async def nodes(self) -> list[Leg]:
        """Return a connection to each master of the side, for what each has of its own."""
        return [self]

    async def of(self, key: bytes) -> Leg:
        """Return the connection to the node of a key, for what holds state on it, as WATCH does."""
        del key  # a single server has every key
        return self

    def write(self, data: bytes) -> None:
        """Queue bytes that are encoded already."""
        self._writer.write(data)

    async def drain(self) -> None:
        """Wait until the queue of bytes is short enough."""
        try:
            await self._writer.drain()
        except (OSError, asyncio.IncompleteReadError) as exc:
            raise lost(self.side, self.address, exc) from exc

    async def replies(self, count: int) -> list[Reply]:
        """Return the next `count` replies, in order."""
        found: list[Reply] = []
        parser = self._parser
        while len(found) < count:
            reply = parser.gets()
            if reply is not Ellipsis:
                found.append(reply)
                continue
            parser.feed(await self._receive())
        return found

    async def _receive(self) -> bytes:
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the
            # data, and a lane would not end.
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                data = await self._reader.read(LEG_READ_BYTES)
        except (OSError, TimeoutError) as exc:
            raise lost(self.side, self.address, exc) from exc
        if not data:
            raise lost(self.side, self.address, ConnectionError("the server closed it"))
        return data

    async def answered(self, expected: bytes) -> bool:
        """Return whether the next reply is exactly these bytes, and consume them. Otherwise
        `replies` returns the reply.

        For answers that are known beforehand: one comparison in place of an object a reply.
        """
        parser = self._parser
        if parser.has_data():
            return False
        found = await self._receive()
        while len(found) < len(expected) and expected.startswith(found):
            found += await self._receive()
        as_expected = found.startswith(expected)
        rest = found[len(expected) :] if as_expected else found
        if rest:
            parser.feed(rest)
        return as_expected

    async def raw(self, at_most: int, *, within_s: float) -> bytes:
        """Return the bytes that arrived, where they are no replies (a replication stream)."""
        if self._unread:
            data, self._unread = self._unread[:at_most], self._unread[at_most:]
            return data
        try:
            async with asyncio.timeout(within_s):
                data = await self._reader.read(at_most)
        except (OSError, TimeoutError) as exc:
            raise lost(self.side, self.address, exc) from exc
        if not data:
            raise lost(self.side, self.address, ConnectionError("the server closed it"))
        return data

    async def line(self) -> bytes:
        """Return the next line of such bytes, without its end."""
        found = b""
        while b"\n" not in found:
            found += await self.raw(LEG_READ_BYTES, within_s=REPLY_TIMEOUT_S)
        line, _, rest = found.partition(b"\n")
        self.unread(rest)
        return line.rstrip(b"\r")

    def unread(self, data: bytes) -> None:
        """Put bytes back that were read too far."""
        self._unread = data + self._unread

    async def pipeline(self, commands: Iterable[Sequence[Arg]]) -> list[Reply]:
        """Send commands together; their replies, errors as values."""
        many = list(commands)
        if not many:
            return []
        self.write(encode_many(many))
        await self.drain()
        return await self.replies(len(many))

    async def call(self, *args: Arg) -> Reply:
        """Send one command.

        Raises:
            hiredis.ReplyError: the server answered with an error.
        """
        return await self.call_encoded(encode(*args))

    async def call_encoded(self, request: bytes) -> Reply:
        """Send one command that is encoded already.

        Raises:
            hiredis.ReplyError: the server answered with an error.
        """
        self.write(request)
        await self.drain()
        reply = (await self.replies(1))[0]
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    async def select(self, db: int) -> None:
        """Change the database, if it is another. Nothing is sent before the server has said that it
        did.

        Raises:
            NoDatabase: the server has no such database; the leg stays where it was.
            hiredis.ReplyError: it does not let us into it.
        """
        if db != self.db:
            try:
                await self.call("SELECT", db)
            except ReplyError as exc:
                if no_database(str(exc)):
                    raise NoDatabase(str(exc)) from exc
                raise
            self.db = db

    async def watch(self, key: bytes) -> Reply:
        """Watch a key; its value.

        Raises:
            hiredis.ReplyError: the server does not watch it, or does not tell it; nothing is
                watched.
        """
        watching, found = await self.pipeline([("WATCH", key), ("GET", key)])
        for reply in (watching, found):
            if isinstance(reply, ReplyError):
                await self.pipeline([("UNWATCH",)])
                raise reply
        return found

    async def transaction(self, commands: Sequence[Sequence[Arg]]) -> list[Reply] | None:
        """Run commands in one transaction; their replies, errors as values. None where a watched
        key was touched.

        None of them is sent before the transaction was begun: without it they would run at once,
        whatever was watched.

        Raises:
            hiredis.ReplyError: the server begins none, or does not queue a command; nothing was
                run.
        """
        await self.call("MULTI")
        replies = await self.pipeline([*commands, ("EXEC",)])
        outcome = replies[-1]
        if isinstance(outcome, ReplyError):
            raise next(reply for reply in replies if isinstance(reply, ReplyError))
        return None if outcome is None else list(outcome)

    @property
    def ended(self) -> bool:
        """Return whether this end of the connection is closed."""
        return self._writer.is_closing()

    def end(self) -> None:
        """End the connection, without waiting for it."""
        self._writer.close()

    async def close(self) -> None:
        """End the connection."""
        self.end()
        try:
            async with asyncio.timeout(1):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            return  # it was gone already

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def close_all(legs: Iterable[Leg | None]) -> None:
    """End several connections. All are ended before the first is waited for, so that a cancellation
    meanwhile leaves none open.
    """
    given = [leg for leg in legs if leg is not None]
    for leg in given:
        leg.end()
    for leg in given:
        await leg.close()
