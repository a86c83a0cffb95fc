"""A process that is forked with everything imported differs in nothing from a started one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from exodus.stack import forkserver
from tests.support.wait import wait_until

_JOB = """
import os, signal, sys, time, seen
def stop(number, frame):
    print("stopping", flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
print(os.environ["SAID"], os.getcwd(), seen.value, seen.server == os.getppid(), flush=True)
print(os.getpid(), file=sys.stderr, flush=True)
if os.environ["SAID"] != "short":
    time.sleep(60)
"""
_SEEN = (
    "import os\nvalue, server = os.environ.get('SAID', 'nothing'), os.getpid()\ndef "
    "again():\n    global value\n    value = os.environ['SAID']\n"
)


class Jobs:
    """A folder with a module to run, and clients of a server."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "forks" / "s"
        self.clients: list[subprocess.Popen[str]] = []
        self.socket.parent.mkdir()
        (folder / "job.py").write_text(_JOB)
        (folder / "seen.py").write_text(_SEEN)

    def serve(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", forkserver.__file__, "serve", str(self.socket), "seen"]
        server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(self.folder)})
        wait_until(self.socket.exists, within_s=10, otherwise="the server never listened")
        return server

    def run(self, said: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-I",
            "-S",
            forkserver.__file__,
            "run",
            str(self.socket),
            "job",
            "seen:again",
        ]
        client = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "SAID": said},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.clients.append(client)
        return client

    def end(self) -> None:
        """Ends every client that a failed test left, so that the next test is not blamed for it."""
        for client in self.clients:
            client.kill()
            for stream in (client.stdout, client.stderr):
                assert stream is not None
                stream.close()
            client.wait()

    def pid(self, client: subprocess.Popen[str]) -> int:
        assert client.stderr is not None
        return int(client.stderr.readline())


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path)
    yield jobs
    jobs.end()


@pytest.fixture
def server(jobs: Jobs) -> Iterator[subprocess.Popen[bytes]]:
    process = jobs.serve()
    yield process
    process.kill()
    process.wait()


def _ends(pid: int) -> None:
    def ended() -> bool:
        # One look, not two: a process may go between being found and being asked.
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_until(ended, within_s=10, otherwise="it goes on")


def test_a_fork_has_the_clients_environment_folder_and_streams(
    jobs: Jobs, server: subprocess.Popen[bytes]
) -> None:
    out, _ = jobs.run("short").communicate(timeout=30)
    assert out == f"short {jobs.folder} short True\n"


def test_a_signal_goes_on_and_the_status_comes_back(
    jobs: Jobs, server: subprocess.Popen[bytes]
) -> None:
    client = jobs.run("long")
    assert jobs.pid(client) != client.pid
    client.terminate()
    out, _ = client.communicate(timeout=30)
    assert out.endswith("stopping\n")
    assert client.returncode == 7


def test_a_killed_client_takes_its_fork_along(jobs: Jobs, server: subprocess.Popen[bytes]) -> None:
    client, other = jobs.run("long"), jobs.run("long")
    fork, lives = jobs.pid(client), jobs.pid(other)
    client.kill()
    client.communicate(timeout=30)
    _ends(fork)
    assert psutil.pid_exists(lives)
    other.terminate()
    other.communicate(timeout=30)


def test_a_killed_fork_is_a_killed_client(jobs: Jobs, server: subprocess.Popen[bytes]) -> None:
    client = jobs.run("long")
    os.kill(jobs.pid(client), signal.SIGKILL)
    client.communicate(timeout=30)
    assert client.returncode == -signal.SIGKILL


def test_a_server_that_ends_leaves_nothing_behind(
    jobs: Jobs, server: subprocess.Popen[bytes]
) -> None:
    client = jobs.run("long")
    fork = jobs.pid(client)
    server.kill()
    _, said = client.communicate(timeout=30)
    assert "the fork server ended" in said
    assert client.returncode == 1
    _ends(fork)


def test_a_client_without_a_server_helps_itself(jobs: Jobs) -> None:
    client = jobs.run("short")
    out, _ = client.communicate(timeout=30)
    assert out == f"short {jobs.folder} short False\n"
    assert client.returncode == 0


def test_a_path_of_any_length_will_do(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["a-folder-with-a-long-name"] * 6)
    folder.mkdir(parents=True)
    jobs = Jobs(folder)
    process = jobs.serve()
    try:
        out, _ = jobs.run("short").communicate(timeout=30)
        assert out.split()[-1] == "True"
    finally:
        process.kill()
        process.wait()


def test_nobody_else_can_ask(jobs: Jobs, server: subprocess.Popen[bytes]) -> None:
    assert jobs.socket.stat().st_mode & 0o077 == 0
