"""Fork processes from a server that has imported everything.

A flow run needs two seconds of processor time to import Prefect and five more for Great
Expectations, at each start and at each resume after a decision. The stack's work pool starts this
file instead (`run`). It asks the server for a fork and passes on its environment, working
directory, standard streams and signals, and it ends as the fork ends. If it is killed, the fork is
killed. If the server ends, its forks end. Without a server `run` becomes the module itself: slower,
with the same effect.

The server does not import flows, so each run reads a changed flow again. REFRESH (module:function)
reads again what a library read of the environment during its import. This file runs by its path,
imports almost nothing, and knows nothing about what it starts.

    python -P forkserver.py serve SOCKET MODULE…
    python -I -S forkserver.py run SOCKET MODULE REFRESH
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import warnings
from typing import TypedDict

_HEAD_BYTES = 4
_REQUEST_S = 5.0  # for a request to arrive in full
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1

# ---------------------------------------------------------------------- the server


class ForkRequest(TypedDict):
    """A client's request, without its standard streams."""

    module: str
    refresh: str
    folder: str
    environment: dict[str, str]


class Fork(Exception):
    """Raised in a forked process to leave the server's stack. It has the request."""

    def __init__(self, request: ForkRequest, streams: list[int]) -> None:
        super().__init__()
        self.request, self.streams = request, streams


class ForkServer:
    """One thread that knows its forks by their clients' connections."""

    def __init__(self, path: str) -> None:
        self._listener = _bound(path)
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, socket.socket] = {}  # by the fork's pid
        self._wake, self._waker = socket.socketpair()

    def serve(self) -> None:
        """Serve until a signal ends it.

        Raises:
            Fork: in each forked process.
        """
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno())
        self._listener.listen(64)
        for watched in (self._listener, self._wake):
            self._selector.register(watched, selectors.EVENT_READ)
        while True:
            for ready, _ in self._selector.select():
                if ready.fileobj is self._listener:
                    self._accept()
                elif ready.fileobj is self._wake:
                    self._wake.recv(4096)
                    self._reap()
                else:
                    self._hear(ready.data)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        client.settimeout(_REQUEST_S)
        try:
            request, streams = _received(client)
        except (OSError, ValueError) as exc:
            _say(f"a request could not be read: {exc}")
            client.close()
            return
        pid = os.fork()
        if not pid:
            self._leave()
            client.close()
            raise Fork(request, streams)
        for stream in streams:
            os.close(stream)
        client.sendall(b"\0")
        self._clients[pid] = client
        self._selector.register(client, selectors.EVENT_READ, pid)

    def _leave(self) -> None:
        """Close everything of the server, in a fork."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for each in (self._listener, self._wake, self._waker, *self._clients.values()):
            each.close()

    def _hear(self, pid: int) -> None:
        try:
            said = self._clients[pid].recv(64)
        except ConnectionError:
            said = b""
        if not said:
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so it is still that process
            self._selector.unregister(self._clients[pid])
        for number in said:
            os.kill(pid, number)

    def _reap(self) -> None:
        while self._clients:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            client = self._clients.pop(pid)
            if client in self._selector.get_map():
                self._selector.unregister(client)
            try:
                client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            except OSError as exc:
                _say(f"the client of {pid} was not told about its end: {exc}")
            client.close()


def _say(text: str) -> None:
    os.write(2, text.encode() + b"\n")  # into the server's log


def _bound(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    if os.path.exists(path):  # noqa: PTH110 - pathlib is one import more at each start of a client
        os.unlink(path)  # noqa: PTH108
    before = os.umask(0o177)
    try:
        listener.bind(_short(path))
    finally:
        os.umask(before)
    return listener


def _short(path: str) -> str:
    """Return a short path for a socket: at most 107 bytes are allowed.

    It uses a descriptor of the folder.
    """
    folder = os.open(os.path.dirname(path), os.O_PATH)  # noqa: PTH120 - as above; open until the process ends
    return f"/proc/self/fd/{folder}/{os.path.basename(path)}"  # noqa: PTH119


def _received(client: socket.socket) -> tuple[ForkRequest, list[int]]:
    head, streams, _, _ = socket.recv_fds(client, _HEAD_BYTES, 3)
    size, body = int.from_bytes(head, "little"), b""
    while len(body) < size:
        part = client.recv(size - len(body))
        if not part:
            raise ConnectionResetError("the client ended during the request")
        body += part
    if len(streams) != 3:
        raise ValueError(f"{len(streams)} streams instead of 3")
    request: ForkRequest = json.loads(body)
    return request, streams


def become(fork: Fork, server: int) -> None:
    """Become the client's module, in a fork."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        raise SystemExit(1)  # the server ended before prctl took effect
    for number, stream in enumerate(fork.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(fork.request["environment"])
    os.chdir(fork.request["folder"])
    sys.path.insert(0, fork.request["folder"])  # as `python -m` does
    module = fork.request["module"]
    sys.argv = [module]
    place, _, function = fork.request["refresh"].partition(":")
    getattr(importlib.import_module(place), function)()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def serve(path: str, modules: list[str]) -> None:
    """Import the modules, then fork for each client."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    own = os.getpid()
    try:
        ForkServer(path).serve()
    except Fork as fork:
        order = fork
    become(order, own)


# ---------------------------------------------------------------------- the client


def run(path: str, module: str, refresh: str) -> None:
    """Run `module` in a fork and end as it ends; without a server, become the module."""
    server = socket.socket(socket.AF_UNIX)
    # Block signals until they can be passed on: a signal would end this client and so kill its
    # fork.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    try:
        server.connect(_short(path))
        body = json.dumps(
            {
                "module": module,
                "refresh": refresh,
                "folder": os.getcwd(),  # noqa: PTH109 - pathlib is one import more at each start
                "environment": dict(os.environ),
            }
        ).encode()
        socket.send_fds(server, [len(body).to_bytes(_HEAD_BYTES, "little")], [0, 1, 2])
        server.sendall(body)
        taken = server.recv(1)
    except OSError:
        taken = b""
    if taken:
        for number in _FORWARDED:
            signal.signal(number, lambda number, _: server.sendall(bytes([number])))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    if not taken:
        os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606 - the stack started this file for it
    said = server.recv(16)
    if not said:
        raise SystemExit("the fork server ended, and its forks with it")
    status = int(said)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    raise SystemExit(status)


if __name__ == "__main__":
    what, at, *names = sys.argv[1:]
    if what == "serve":
        serve(at, names)
    else:
        run(at, *names)
