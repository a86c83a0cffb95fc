"""The Sentinel face: the gateway answers like a Sentinel that names the gateway as the master.

Applications that find their master by Sentinel change one line: the addresses of the Sentinels.
Library, service name and the rest stay.

    client ── SENTINEL get-master-addr-by-name orders ──▶ face
           ◀─ the host at which the client reached the face, and the gateway's port

The name stays through failovers and cutovers, since the gateway's address does. It changes when
clients are redirected (`exodus redirect`): the face then names the authority itself, and publishes
+switch-master. So Sentinel clients leave the gateway without a change of their configuration.

It names no replicas and no other Sentinels: all reads and writes go through the gateway, and each
gateway's face is one Sentinel to its clients. It asks for no password and takes any: it tells
nothing but addresses. Everything is bounded, because it shares its process with the relay.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections import deque
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from typing import NamedTuple, cast

from exodus.plan.bounds import (
    LISTENERS_BACKLOG_MAX,
    SENTINEL_FACE_ARGS_MAX,
    SENTINEL_FACE_CLIENTS_MAX,
    SENTINEL_FACE_LOOK_S,
    SENTINEL_FACE_PER_S_MAX,
    SENTINEL_FACE_REQUEST_BYTES_MAX,
    SENTINEL_FACE_UNREAD_BYTES_MAX,
)
from exodus.resp.scanner import RequestScanner

_SWITCHED = b"+switch-master"
_RESP3 = 3
Told = bytes | int | str | list["Told"] | dict[str, "Told"] | None


class Named(NamedTuple):
    """The address of a master, as clients reach it."""

    host: str
    port: int


# The host at which a client reached the face → the master that it is told.
NameMaster = Callable[[str], Named]


class FaceError(Exception):
    """An error reply."""


def encoded(told: Told, protocol: int) -> bytes:
    """Return a reply in RESP2 or RESP3. A text is a simple string, bytes are a bulk string."""
    if told is None:
        return b"_\r\n" if protocol == _RESP3 else b"*-1\r\n"
    if isinstance(told, int):
        return b":%d\r\n" % told
    if isinstance(told, str):
        return b"+%b\r\n" % told.encode()
    if isinstance(told, bytes):
        return b"$%d\r\n%b\r\n" % (len(told), told)
    if isinstance(told, list):
        return b"".join([b"*%d\r\n" % len(told), *[encoded(each, protocol) for each in told]])
    head = b"%%%d\r\n" % len(told) if protocol == _RESP3 else b"*%d\r\n" % (2 * len(told))
    parts = [head]
    for name, value in told.items():
        parts += [encoded(name.encode(), protocol), encoded(value, protocol)]
    return b"".join(parts)


class SentinelFace:
    """One listener, and the clients that ask it."""

    def __init__(
        self, services: Collection[str], name_master: NameMaster, epoch: Callable[[], int]
    ) -> None:
        """`services` are the names that clients may ask for; `epoch` grows with each change."""
        self.services = tuple(services)
        self.clients: set[_SentinelClient] = set()
        self.questions = 0
        self.refused = 0  # clients that were too many
        self.ended = 0  # clients that were ended for what they sent, or did not read
        self.delayed = 0  # times that a client was read later, since all together ask too often
        self.name_master = name_master
        self.epoch = epoch
        self.port = 0
        self.run_id = hashlib.sha256(f"face {id(self)}".encode()).hexdigest()[:40]
        self._server: asyncio.Server | None = None
        self._left = SENTINEL_FACE_PER_S_MAX
        self._window = 0

    async def open(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Listen, with TLS where there is a context. Several workers may listen on one port.

        Raises:
            OSError: the address is in use by another program, or is not of this machine.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: cast("asyncio.Protocol", _SentinelClient(self)),
            host,
            port,
            ssl=tls,
            backlog=LISTENERS_BACKLOG_MAX,
            reuse_address=True,
            reuse_port=True,
        )
        self.port = int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """End the listener and its clients."""
        if self._server is not None:
            self._server.close()
        for client in list(self.clients):
            client.end()

    async def publish_changes(self) -> None:
        """Tell subscribers of each other master, until cancelled."""
        while True:
            await asyncio.sleep(SENTINEL_FACE_LOOK_S)
            for client in list(self.clients):
                client.tell_change()

    def may_ask(self, now: float) -> bool:
        """Count a question; return whether it may be answered in this second."""
        window = int(now)
        if window != self._window:
            self._window, self._left = window, SENTINEL_FACE_PER_S_MAX
        self._left -= 1
        return self._left >= 0

    # ------------------------------------------------------------------ answers

    def answer(self, args: list[bytes], reached: str) -> Told:
        """Return the reply to one request that is no matter of the connection.

        Raises:
            FaceError: the reply is an error.
        """
        name = args[0].upper()
        if name == b"SENTINEL" and len(args) > 1:
            return self._sentinel(args[1].lower(), args[2:], reached)
        if name == b"INFO":
            return self._info(reached)
        if name == b"ROLE":
            return [b"sentinel", [service.encode() for service in self.services]]
        if name == b"COMMAND":
            return []
        raise FaceError(f"ERR unknown command '{_shown(args[0])}'")

    def _sentinel(self, verb: bytes, args: list[bytes], reached: str) -> Told:
        if verb == b"myid":
            return self.run_id.encode()
        if verb == b"masters":
            return [self._master(service, reached) for service in self.services]
        if verb not in (
            *(b"get-master-addr-by-name", b"master", b"replicas", b"slaves"),
            *(b"sentinels", b"ckquorum"),
        ):
            raise FaceError(f"ERR the gateway answers questions only, not SENTINEL {_shown(verb)}")
        if len(args) != 1:
            raise FaceError(f"ERR wrong number of arguments for 'sentinel|{verb.decode()}' command")
        service = args[0].decode("utf-8", "replace")
        if service not in self.services:
            if verb == b"get-master-addr-by-name":
                return None
            raise FaceError("ERR No such master with that name")
        if verb == b"get-master-addr-by-name":
            host, port = self.name_master(reached)
            return [host.encode(), b"%d" % port]
        if verb == b"master":
            return self._master(service, reached)
        if verb == b"ckquorum":
            return "OK 1 usable Sentinels. Quorum and failover authorization can be reached"
        return []

    def _master(self, service: str, reached: str) -> Told:
        host, port = self.name_master(reached)
        fields = {
            "name": service,
            "ip": host,
            "port": port,
            "runid": hashlib.sha256(f"{service} {host}:{port}".encode()).hexdigest()[:40],
            "flags": "master",
            **dict.fromkeys(("link-pending-commands", "last-ping-sent", "last-ok-ping-reply"), 0),
            **dict.fromkeys(("last-ping-reply", "info-refresh", "role-reported-time"), 0),
            "link-refcount": 1,
            "down-after-milliseconds": 30_000,
            "role-reported": "master",
            "config-epoch": self.epoch(),
            "num-slaves": 0,
            "num-other-sentinels": 0,
            "quorum": 1,
            "failover-timeout": 180_000,
            "parallel-syncs": 1,
        }
        return {name: str(value).encode() for name, value in fields.items()}

    def _info(self, reached: str) -> bytes:
        host, port = self.name_master(reached)
        masters = [
            f"master{number}:name={service},status=ok,address={host}:{port},slaves=0,sentinels=1"
            for number, service in enumerate(self.services)
        ]
        lines = [
            "# Server",
            "redis_mode:sentinel",
            f"run_id:{self.run_id}",
            "",
            "# Sentinel",
            f"sentinel_masters:{len(masters)}",
            "sentinel_tilt:0",
            *masters,
        ]
        return "\r\n".join([*lines, ""]).encode()


def _matches(pattern: bytes) -> bool:
    """Return whether a pattern of PSUBSCRIBE is about another master."""
    return fnmatchcase(_SWITCHED.decode(), pattern[:64].decode("latin-1"))


def _shown(word: bytes) -> str:
    """Return a client's word, fit for an error reply."""
    return "".join(chr(byte) if 32 < byte < 127 else "?" for byte in word[:64])


class _SentinelClient(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, face: SentinelFace) -> None:
        self._face = face
        self._transport: asyncio.Transport
        self._scanner = RequestScanner()
        self._protocol = 2
        self._channels: set[bytes] = set()
        self._patterns: set[bytes] = set()
        self._reached = ""
        self._told: Named | None = None
        self._waiting: deque[list[bytes]] = deque()  # requests beyond what all may ask in a second
        self._late: asyncio.TimerHandle | None = None

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a client, unless there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        face = self._face
        if len(face.clients) >= SENTINEL_FACE_CLIENTS_MAX:
            face.refused += 1
            self._transport.write(b"-ERR max number of clients reached\r\n")
            self._transport.close()
            return
        face.clients.add(self)
        self._reached = str(transport.get_extra_info("sockname")[0])
        self._told = face.name_master(self._reached)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        del exc
        self._face.clients.discard(self)
        if self._late is not None:
            self._late.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        if self not in self._face.clients:
            return
        scanner = self._scanner
        found = scanner.feed(data)
        self._waiting += [request.args for request in found if request.args]
        if (
            scanner.broken is not None
            or any(request.size > SENTINEL_FACE_REQUEST_BYTES_MAX for request in found)
            or scanner.partial_bytes > SENTINEL_FACE_REQUEST_BYTES_MAX
            or scanner.announced > SENTINEL_FACE_REQUEST_BYTES_MAX
            or self._transport.get_write_buffer_size() > SENTINEL_FACE_UNREAD_BYTES_MAX
        ):
            self._refuse(b"-ERR Protocol error\r\n")
            return
        self._work()

    # ---- work

    def end(self) -> None:
        """End the connection."""
        self._transport.close()

    def _refuse(self, reply: bytes) -> None:
        self._face.ended += 1
        self._face.clients.discard(self)
        self._transport.write(reply)
        self._transport.close()

    def _work(self) -> None:
        """Answer requests as far as the second allows; go on in the next."""
        self._late = None
        loop = asyncio.get_running_loop()
        while self._waiting and not self._transport.is_closing():
            if not self._face.may_ask(loop.time()):
                self._face.delayed += 1
                self._transport.pause_reading()
                self._late = loop.call_later(1 - loop.time() % 1, self._resume)
                return
            self._reply(self._waiting.popleft())

    def _resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._work()

    def _reply(self, args: list[bytes]) -> None:
        face, name = self._face, args[0].upper()
        face.questions += 1
        if len(args) > SENTINEL_FACE_ARGS_MAX:
            self._refuse(b"-ERR Protocol error: too many arguments\r\n")
            return
        try:
            if name in (b"SUBSCRIBE", b"UNSUBSCRIBE", b"PSUBSCRIBE", b"PUNSUBSCRIBE"):
                self._subscribe(name, args[1:])
                return
            told = self._of_connection(name, args)
            if told is None:
                told = [face.answer(args, self._reached)]
            self._transport.write(encoded(told[0], self._protocol))
        except FaceError as exc:
            self._transport.write(f"-{exc}\r\n".encode())
        if name == b"QUIT":
            self._transport.close()

    def _of_connection(self, name: bytes, args: list[bytes]) -> list[Told] | None:
        """Return the reply to a request about the connection, in a list; None for another one.

        Raises:
            FaceError: the reply is an error.
        """
        if name == b"PING":
            if self._subscribed and self._protocol != _RESP3:
                return [[b"pong", args[1] if len(args) > 1 else b""]]
            return [args[1] if len(args) > 1 else "PONG"]
        if name in (b"AUTH", b"QUIT", b"SELECT", b"READONLY"):
            return ["OK"]
        if name == b"CLIENT":
            verb = args[1].upper() if len(args) > 1 else b""
            return [1 if verb == b"ID" else b"" if verb == b"GETNAME" else "OK"]
        if name == b"HELLO":
            return [self._hello(args[1:])]
        return None

    def _hello(self, args: list[bytes]) -> Told:
        if args:
            if args[0] not in (b"2", b"3"):
                raise FaceError("NOPROTO unsupported protocol version")
            self._protocol = int(args[0])
        return {
            "server": b"redis",
            "version": b"7.0.0",
            "proto": self._protocol,
            "id": 1,
            "mode": b"sentinel",
            "role": b"sentinel",
            "modules": [],
        }

    # ---- subscriptions

    @property
    def _subscribed(self) -> int:
        return len(self._channels) + len(self._patterns)

    def _subscribe(self, name: bytes, wanted: list[bytes]) -> None:
        ends, patterns = name.endswith(b"UNSUBSCRIBE"), name.startswith(b"P")
        known = self._patterns if patterns else self._channels
        if not wanted and not ends:
            raise FaceError(f"ERR wrong number of arguments for '{name.decode().lower()}' command")
        for each in wanted or sorted(known) or [b""]:
            known.discard(each)
            if not ends and self._subscribed < SENTINEL_FACE_ARGS_MAX:
                known.add(each)
            self._push([name.lower(), each, self._subscribed])

    def _push(self, told: list[Told]) -> None:
        data = encoded(told, self._protocol)
        self._transport.write(b">" + data[1:] if self._protocol == _RESP3 else data)

    def tell_change(self) -> None:
        """Publish another master, where the client listens; end one that does not read."""
        before, self._told = self._told, self._face.name_master(self._reached)
        if self._transport.get_write_buffer_size() > SENTINEL_FACE_UNREAD_BYTES_MAX:
            self._face.ended += 1
            self._transport.abort()
            return
        if before is None or before == self._told:
            return
        for service in self._face.services:
            text = f"{service} {before.host} {before.port} {self._told.host} {self._told.port}"
            if _SWITCHED in self._channels:
                self._push([b"message", _SWITCHED, text.encode()])
            for pattern in filter(_matches, sorted(self._patterns)):
                self._push([b"pmessage", pattern, _SWITCHED, text.encode()])
