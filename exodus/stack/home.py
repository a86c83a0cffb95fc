"""A stack's folder: what runs, where it logs, where it keeps its data. Default `.exodus/` in the working directory."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil
from pydantic import BaseModel, ConfigDict

from exodus.private_files import FILE_MODE, open_to_others, private_folder, write_private
from exodus.safe_text import remember

_PRIVATE = ("*.password", "*.given-password", "prefect.login", "prefect.env", "migration.yaml", "pids.json")


class Running(BaseModel):
    """One process that was started; `created` tells it from a later process with the same pid."""

    model_config = ConfigDict(extra="forbid")

    name: str
    pid: int
    created: float
    port: int | None = None

    def process(self) -> psutil.Process | None:
        """The process, if it is still this one."""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        except psutil.NoSuchProcess:
            return None
        return None


@dataclass(frozen=True)
class Home:
    """Paths of one stack."""

    root: Path

    @property
    def logs(self) -> Path:
        """Folder of logs."""
        return self.root / "logs"

    @property
    def data(self) -> Path:
        """Folder of data."""
        return self.root / "data"

    @property
    def migration_file(self) -> Path:
        """The migration that the stack was started for."""
        return self.root / "migration.yaml"

    @property
    def prefect_env(self) -> Path:
        """`NAME=value` lines that lead a command to this stack's Prefect."""
        return self.root / "prefect.env"

    def log(self, name: str) -> Path:
        """One process's log."""
        return self.logs / f"{name}.log"

    def make(self) -> None:
        """Make the folders; they hold secrets, so nobody else may look. Modes of existing ones are corrected.

        Raises:
            OperatorError: another user owns one.
        """
        for folder in (self.root, self.logs, self.data):
            private_folder(folder)
        for file in self.private_files():
            if open_to_others(file):
                file.chmod(FILE_MODE)

    def private_files(self) -> list[Path]:
        """Return the files here that hold passwords, or lead to them."""
        return sorted(path for pattern in _PRIVATE for path in self.root.glob(pattern))

    def secret(self, name: str) -> Path:
        """A file with a random password, made once."""
        path = self.root / f"{name}.password"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(24) + "\n")
        return path

    @property
    def prefect_login_file(self) -> Path:
        """The file with the authentication string of the stack's Prefect, as its UI asks for it."""
        return self.root / "prefect.login"

    def prefect_login(self) -> str:
        """Return the authentication string of the stack's Prefect, USER:PASSWORD, made once."""
        path = self.prefect_login_file
        if not path.exists():
            write_private(path, f"exodus:{secrets.token_urlsafe(24)}\n")
        return remember(path.read_text().strip())

    def running(self) -> list[Running]:
        """What was recorded and still runs."""
        return [entry for entry in self.recorded() if entry.process() is not None]

    def recorded(self) -> list[Running]:
        """What was recorded, in the order of its start."""
        path = self.root / "pids.json"
        if not path.exists():
            return []
        return [Running.model_validate(entry) for entry in orjson.loads(path.read_bytes())]

    def record(self, entries: list[Running]) -> None:
        """Replace the record."""
        write_private(self.root / "pids.json", orjson.dumps([entry.model_dump() for entry in entries], option=orjson.OPT_INDENT_2))

    def prefect_environment(self) -> dict[str, str]:
        """The variables of `prefect.env`; empty where no stack was started here."""
        if not self.prefect_env.exists():
            return {}
        lines = self.prefect_env.read_text().splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines) if name}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
