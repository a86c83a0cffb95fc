"""The folder of a stack: its processes, logs and data.

Default: `.exodus/` in the working directory.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil
from pydantic import BaseModel, ConfigDict

from exodus.private_files import FILE_MODE, open_to_others, private_folder, write_private
from exodus.safe_text import remember

_PORTS = range(27_500, 32_700)
_PRIVATE = (
    "*.password",
    "*.given-password",
    "prefect.login",
    "prefect.env",
    "migration.yaml",
    "pids.json",
)


class Running(BaseModel):
    """One started process. `created` distinguishes it from a later process with the same pid."""

    model_config = ConfigDict(extra="forbid")

    name: str
    pid: int
    created: float
    port: int | None = None

    def process(self) -> psutil.Process | None:
        """Return the process, if it is still the same one."""
        try:
            process = psutil.Process(self.pid)
            if (
                abs(process.create_time() - self.created) < 1
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                return process
        except psutil.NoSuchProcess:
            return None
        return None


@dataclass(frozen=True)
class Home:
    """The paths of one stack."""

    root: Path

    @property
    def logs(self) -> Path:
        """Return the folder of logs."""
        return self.root / "logs"

    @property
    def data(self) -> Path:
        """Return the folder of data."""
        return self.root / "data"

    @property
    def migration_file(self) -> Path:
        """Return the stack's migration file."""
        return self.root / "migration.yaml"

    @property
    def prefect_env(self) -> Path:
        """Return the file with the variables of this stack's Prefect, `NAME=value` lines."""
        return self.root / "prefect.env"

    def log(self, name: str) -> Path:
        """Return the log of one process."""
        return self.logs / f"{name}.log"

    def make(self) -> None:
        """Create the folders for this user only, because they hold secrets.

        Correct the modes of existing ones.

        Raises:
            OperatorError: another user owns a folder.
        """
        for folder in (self.root, self.logs, self.data):
            private_folder(folder)
        for file in self.private_files():
            if open_to_others(file):
                file.chmod(FILE_MODE)

    def private_files(self) -> list[Path]:
        """Return the files that hold passwords or name them."""
        return sorted(path for pattern in _PRIVATE for path in self.root.glob(pattern))

    def secret(self, name: str) -> Path:
        """Return a file with a random password; create it once."""
        path = self.root / f"{name}.password"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(24) + "\n")
        return path

    @property
    def prefect_login_file(self) -> Path:
        """Return the file with the authentication string of the stack's Prefect."""
        return self.root / "prefect.login"

    def prefect_login(self) -> str:
        """Return Prefect's authentication string, USER:PASSWORD; create it once."""
        path = self.prefect_login_file
        if not path.exists():
            write_private(path, f"exodus:{secrets.token_urlsafe(24)}\n")
        return remember(path.read_text().strip())

    def running(self) -> list[Running]:
        """Return the recorded processes that still run."""
        return [entry for entry in self.recorded() if entry.process() is not None]

    def recorded(self) -> list[Running]:
        """Return the recorded processes in the order of their start."""
        path = self.root / "pids.json"
        if not path.exists():
            return []
        return [Running.model_validate(entry) for entry in orjson.loads(path.read_bytes())]

    def record(self, entries: list[Running]) -> None:
        """Replace the record of processes."""
        write_private(
            self.root / "pids.json",
            orjson.dumps([entry.model_dump() for entry in entries], option=orjson.OPT_INDENT_2),
        )

    def prefect_environment(self) -> dict[str, str]:
        """Return the variables of `prefect.env`; empty without a stack."""
        if not self.prefect_env.exists():
            return {}
        lines = self.prefect_env.read_text().splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines) if name}


def free_port() -> int:
    """Return a port on which nobody listens now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def free_ports(count: int) -> int:
    """Return the first of some ports in a row on which nobody listens now.

    They are below those that a kernel gives to connections by itself (from 32768 on), since a
    connection would take one before the caller listens there.
    """
    while True:
        first = _PORTS.start + secrets.randbelow(len(_PORTS) - count)
        try:
            with contextlib.ExitStack() as held:
                for port in range(first, first + count):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
                return first
        except OSError:
            continue
