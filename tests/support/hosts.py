"""Machines of a test: network namespaces on one bridge, each with its own host name.

Without root or `ip` they are addresses of loopback, and the test says so. Then everything else is
the same, but nothing shows that a process used another machine's address.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from exodus.stack.processes import Started, end, start

_TOOLS = ("ip", "unshare", "hostname")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def allowed() -> bool:
    """Return whether namespaces can be made here."""
    if os.geteuid() or not all(map(shutil.which, _TOOLS)):
        return False
    name = f"exo{secrets.token_hex(3)}"
    for kind in (("netns", "add", name), ("link", "add", name, "type", "bridge")):
        if subprocess.run(["ip", *kind], capture_output=True, check=False).returncode:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            return False
    _ip("link", "del", name)
    _ip("netns", "del", name)
    return True


class Host:
    """One machine, and the processes that run on it."""

    def __init__(self, name: str, address: str, namespace: str | None) -> None:
        self.name, self.address, self._namespace = name, address, namespace
        self.started: list[Started] = []

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs there."""
        if self._namespace is None:
            return list(command)
        named = 'hostname "$0" && exec "$@"'
        return [
            "ip",
            "netns",
            "exec",
            self._namespace,
            "unshare",
            "--uts",
            "sh",
            "-c",
            named,
            self.name,
            *command,
        ]

    def start(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
    ) -> Started:
        """Start a process there."""
        folder.mkdir(parents=True, exist_ok=True)
        started = start(
            name, self.command(command), log=folder / f"{name}.log", env=env, cwd=folder
        )
        self.started.append(started)
        return started

    @property
    def real(self) -> bool:
        """Return whether it is a namespace."""
        return self._namespace is not None

    def pids(self) -> list[int]:
        """Return all processes that run there; for an address of loopback they are unknown."""
        if self._namespace is None:
            return []
        return [
            int(pid)
            for pid in subprocess.run(
                ["ip", "netns", "pids", self._namespace], capture_output=True, check=True
            ).stdout.split()
        ]

    def end(self) -> None:
        """End all of them."""
        end([each.running() for each in self.started if each.process.poll() is None])
        for each in self.started:
            each.process.wait()


class Network:
    """A bridge, this machine's address on it, and hosts."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.real = allowed()
        self._id = secrets.token_hex(3)
        self._bridge = f"exb{self._id}"
        third = secrets.randbelow(200) + 20
        self.here = f"10.199.{third}.1" if self.real else "127.0.0.1"
        self.hosts: dict[str, Host] = {}
        self._namespaces: list[str] = []
        if not self.real:
            print("hosts are addresses of loopback: this machine does not allow network namespaces")
        else:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{self.here}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
        for number, name in enumerate(hosts, 2):
            address = f"10.199.{third}.{number}" if self.real else f"127.0.0.{number}"
            namespace = self._join(number, address) if self.real else None
            self.hosts[name] = Host(name, address, namespace)

    def _join(self, number: int, address: str) -> str:
        namespace, here, there = (
            f"exn{self._id}{number}",
            f"exh{self._id}{number}",
            f"ext{self._id}{number}",
        )
        _ip("netns", "add", namespace)
        self._namespaces.append(namespace)
        _ip("link", "add", here, "type", "veth", "peer", "name", there)
        _ip("link", "set", there, "netns", namespace)
        _ip("link", "set", here, "master", self._bridge, "up")
        inside = ("netns", "exec", namespace, "ip")
        _ip(*inside, "addr", "add", f"{address}/24", "dev", there)
        _ip(*inside, "link", "set", there, "up")
        _ip(*inside, "link", "set", "lo", "up")
        return namespace

    def close(self) -> None:
        for host in self.hosts.values():
            host.end()
        for namespace in self._namespaces:
            _ip("netns", "del", namespace)
        if self.real:
            _ip("link", "del", self._bridge)


@contextlib.contextmanager
def network(*hosts: str) -> Iterator[Network]:
    """Yield machines for as long as the context is open."""
    made = Network(hosts)
    try:
        yield made
    finally:
        made.close()


def answers(address: str, port: int) -> bool:
    """Return whether a process listens there."""
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True
