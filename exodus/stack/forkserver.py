"""Processes that begin with everything imported: a server imports once, and each process is forked from it.

A flow run needs two seconds of processor time to import Prefect and five more for Great Expectations, at each start and at each resume after a
decision. The stack's work pool starts this file instead (`run`), which asks the server for a fork, hands over its own environment, working
directory and standard streams, passes signals on, and ends as the fork ends. If it is killed, so is the fork; if the server ends, its forks do.
Where there is no server `run` becomes the module itself: slower, and in every other respect the same.

Flows are not imported beforehand, so that a changed one is read anew by each run. What a library has read of the environment while it was
imported is read again by REFRESH (module:function). This file is run by its path, imports next to nothing and knows nothing of what it starts.

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
_REQUEST_S = 5.0  # within which a request has to be there in full
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1

# ---------------------------------------------------------------------- the server


class Request(TypedDict):
    """What a client asks for, beside its standard streams."""

    module: str
    refresh: str
    folder: str
    environment: dict[str, str]


class Fork(Exception):
    """Raised in a forked process, to leave the server's stack: what it is to be."""

    def __init__(self, request: Request, streams: list[int]) -> None:
        super().__init__()
        self.request, self.streams = request, streams


class Server:
    """One thread; knows its forks by their clients' connections."""

    def __init__(self, path: str) -> None:
        self._listener = _bound(path)
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, socket.socket] = {}  # by the fork's pid
        self._wake, self._waker = socket.socketpair()

    def serve(self) -> None:
        """Until a signal ends it.

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
        """In a fork: nothing of the server stays."""
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
                _say(f"the client of {pid} did not hear of its end: {exc}")
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
    """A socket's path may have 107 bytes; through a descriptor of its folder it is short wherever that is."""
    folder = os.open(os.path.dirname(path), os.O_PATH)  # noqa: PTH120 - as above; open until the process ends
    return f"/proc/self/fd/{folder}/{os.path.basename(path)}"  # noqa: PTH119


def _received(client: socket.socket) -> tuple[Request, list[int]]:
    head, streams, _, _ = socket.recv_fds(client, _HEAD_BYTES, 3)
    size, body = int.from_bytes(head, "little"), b""
    while len(body) < size:
        part = client.recv(size - len(body))
        if not part:
            raise ConnectionResetError("the client ended in the middle of it")
        body += part
    if len(streams) != 3:
        raise ValueError(f"{len(streams)} streams instead of 3")
    request: Request = json.loads(body)
    return request, streams


def become(fork: Fork, server: int) -> None:
    """In a fork: be what the client would have been, had it imported everything itself."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        raise SystemExit(1)  # it ended before that took effect
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
    """Import, and fork for whoever asks."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    own = os.getpid()
    try:
        Server(path).serve()
    except Fork as fork:
        order = fork
    become(order, own)


# ---------------------------------------------------------------------- the client


def run(path: str, module: str, refresh: str) -> None:
    """Have `module` run by a fork, and end as it ends; without a server, become it."""
    server = socket.socket(socket.AF_UNIX)
    # A signal that comes before it can be sent on waits: it would end this client, and so kill the fork that it was for.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    try:
        server.connect(_short(path))
        body = json.dumps({"module": module, "refresh": refresh, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()  # noqa: PTH109
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
        os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606 - what the stack itself started this for
    said = server.recv(16)
    if not said:
        raise SystemExit("the fork server ended, and what it had forked with it")
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
