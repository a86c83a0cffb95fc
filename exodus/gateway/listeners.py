"""Listening sockets that outlive the process which reads them.

To close a listening socket resets the connections in its queue, and a worker that dies closes its
own. So the supervisor makes one socket a worker on the same port (SO_REUSEPORT: the kernel spreads
connections over them), keeps all of them open, and lends them out. Connections that arrive while a
worker is restarted wait. A new version takes the sockets over from the old one (`Offer`,
`take_over`), so the port always has a listener.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from exodus.plan.bounds import (
    LISTENERS_ASK_S,
    LISTENERS_BACKLOG_MAX,
    LISTENERS_FDS_AT_ONCE,
    LISTENERS_FDS_MAX,
    LISTENERS_TAKEOVER_S,
)

log = logging.getLogger(__name__)
_TAKEN = b"taken"


def listen(host: str, port: int, count: int) -> list[socket.socket]:
    """Return `count` sockets that share a port, or one at `unix:PATH` for all.

    Raises:
        OSError: the address is in use, or is not of this machine.
    """
    if host.startswith("unix:"):
        return [_listen_unix(Path(host.removeprefix("unix:")))]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket(family, socket.SOCK_STREAM)
            found.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if count > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((host, port))
            port = sock.getsockname()[1]  # for port 0 the kernel chose one, which all share
            sock.listen(LISTENERS_BACKLOG_MAX)
            sock.setblocking(False)
    except OSError:
        for sock in found:
            sock.close()
        raise
    return found


def listen_all(host: str, port: int, listeners: int, count: int) -> list[socket.socket]:
    """Return `count` sockets for each of some listeners, which have ports from `port` on.

    Raises:
        OSError: as `listen`.
    """
    found: list[socket.socket] = []
    try:
        for number in range(listeners):
            found += listen(host, port + number, count)
    except OSError:
        for sock in found:
            sock.close()
        raise
    return found


def _listen_unix(path: Path) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if path.is_socket() and not _answers(path):
            path.unlink()  # the process was killed
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        sock.listen(LISTENERS_BACKLOG_MAX)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def unlink(host: str) -> None:
    """Remove the file of a Unix socket without a listener."""
    if host.startswith("unix:"):
        Path(host.removeprefix("unix:")).unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
    return True


class Offer:
    """Hands the listening sockets to a successor that asks at a Unix socket."""

    def __init__(self, path: Path, sockets: Sequence[socket.socket]) -> None:
        self.taken = threading.Event()
        self._path = path
        self._sockets = list(sockets)
        path.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        path.chmod(0o600)  # a process that may connect here may take the port
        self._server.listen(1)
        threading.Thread(target=self._serve, name="takeover", daemon=True).start()

    def _serve(self) -> None:
        while not self.taken.is_set():
            try:
                peer, _ = self._server.accept()
            except OSError:
                return  # closed
            with peer:
                peer.settimeout(LISTENERS_TAKEOVER_S)
                try:
                    fds = [sock.fileno() for sock in self._sockets]
                    for at in range(0, len(fds), LISTENERS_FDS_AT_ONCE):
                        more = b"+" if at + LISTENERS_FDS_AT_ONCE < len(fds) else b"."
                        socket.send_fds(peer, [more], fds[at : at + LISTENERS_FDS_AT_ONCE])
                    if peer.recv(16) == _TAKEN:
                        self.taken.set()
                except OSError as exc:
                    log.warning("a successor asked for the port and disconnected: %s", exc)

    def close(self) -> None:
        """End the offer."""
        self._server.close()
        if not self.taken.is_set():
            self._path.unlink(missing_ok=True)


class Takeover:
    """Listening sockets from a predecessor, which accepts until `confirm`."""

    def __init__(self, peer: socket.socket, sockets: list[socket.socket]) -> None:
        self._peer = peer
        self.sockets = sockets

    def confirm(self) -> None:
        """Tell the predecessor that it may drain: this process accepts."""
        self._peer.sendall(_TAKEN)
        self._peer.close()


def take_over(path: Path) -> Takeover | None:
    """Take the sockets of a predecessor that offers them at `path`; None without one."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(LISTENERS_ASK_S)
    try:
        peer.connect(str(path))
        fds: list[int] = []
        more = b"+"
        while more == b"+" and len(fds) < LISTENERS_FDS_MAX:
            more, found, _, _ = socket.recv_fds(peer, 1, LISTENERS_FDS_AT_ONCE)
            fds += found
    except OSError:
        peer.close()
        return None
    return Takeover(peer, [inherited(fd) for fd in fds])


def inherited(fd: int) -> socket.socket:
    """Return a listening socket that this process was started with."""
    sock = socket.socket(fileno=os.dup(fd))
    sock.setblocking(False)
    return sock
