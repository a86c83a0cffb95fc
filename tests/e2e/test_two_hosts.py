"""A whole migration on two machines, with a gateway, a syncer and a worker on each.

One machine has Exodus as a package only. Every phase begins on one machine, and continues on the
other after the answer. Meanwhile the first machine's worker stands still, as if it were gone.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
import yaml

from exodus.backfill import runs as runs_of
from exodus.cli.prefect_api import PrefectApi
from exodus.control import ledger
from exodus.control.checkpoint import SliceProgress, load_progress
from exodus.control.registry import heartbeats
from exodus.control.store import ControlStore
from exodus.plan.migration_file import MigrationFile, load_migration
from exodus.stack import prefect
from exodus.stack.home import Home, free_port
from exodus.stack.prefect import project_root
from exodus.stack.processes import Started, end, start, wait_ready
from exodus.stack.servers import ServerKind
from tests.support.hosts import Network, answers, network
from tests.support.servers import DatabaseServer
from tests.support.wait import wait_until
from tests.support.wheel import install

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
KEYS = 60_000
VALUE = "x" * 1_000
PORT = 6400
_SAID = {"decision": "approve", "decided_by": "the test", "why": "because it is tested"}


class Application:
    """Counts in a key of its own through one gateway, and notes what was acknowledged."""

    def __init__(self, address: str, name: str) -> None:
        self._client = redis.Redis(host=address, port=PORT, single_connection_client=True)
        self._name, self._stop = name, threading.Event()
        self.acknowledged: dict[str, int] = {}
        self.errors: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        step = 0
        while not self._stop.wait(0.005):
            step += 1
            key = f"{self._name}:{step % 100}"
            try:
                self.acknowledged[key] = int(self._client.incr(key))
                self._client.get(f"cold:{step % KEYS}")
            except redis.RedisError as exc:
                self.errors.append(str(exc))

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()


class Machines:
    """The servers and Prefect on this machine; the data plane and a worker on each of two hosts."""

    def __init__(
        self, net: Network, servers: list[DatabaseServer], folder: Path, package: Path
    ) -> None:
        self.net, self.servers, self.folder = net, servers, folder
        self.workers: dict[str, Started] = {}
        self.dask: dict[str, Started] = {}
        self.forks: dict[str, dict[str, str]] = {}
        here, port = net.here, free_port()
        self.home = Home(folder / "prefect")
        self.home.make()
        self.env = {
            **prefect.environment(self.home, port),
            "PREFECT_API_URL": f"http://{here}:{port}/api",
            "PREFECT_SERVER_API_HOST": here,
            "EXODUS_EVIDENCE_DIR": str(folder / "evidence"),
        }
        database = Path(self.env["PREFECT_HOME"]) / "prefect.db"
        database.parent.mkdir(parents=True)
        if prefect._template().exists():
            shutil.copyfile(prefect._template(), database)
        self._start_prefect(here, port)
        names = ("source", "target", "control_store")
        servers = {
            name: {
                "url": f"redis://exodus@{here}:{box.port}",
                "password_file": str(box.address().password_file),
            }
            for name, box in zip(names, servers, strict=True)
        }
        gateway = {"host": net.hosts["host-a"].address, "port": PORT}
        document = {
            "name": "orders",
            **servers,
            "gateway": gateway,
            "observe_seconds": 1.5,
            "slices": 8,
            "sample": 0.3,
            # Everything shares one machine with other tests, which disturb latencies
            "test_checks": {
                **dict.fromkeys(("load", "latency", "failures"), "off"),
                "rehearsal_rounds": 1,
                "rehearsal_kill": False,
            },
        }
        self.scheduler = f"tcp://{here}:{free_port()}"
        document["workers"] = {"kind": "dask", "dask_scheduler": self.scheduler}
        self.file = folder / "migration.yaml"
        self.file.write_text(yaml.safe_dump(document))
        self.bins = {"host-a": Path(sys.executable).parent, "host-b": package}

    def _start_prefect(self, here: str, port: int) -> None:
        command = [str(Path(sys.executable).parent / "prefect"), "server", "start"]
        self.server = start(
            "prefect-server", command, log=self.folder / "prefect-server.log", env=self.env
        )
        self._wait = lambda: wait_ready(self.server, lambda: answers(here, port), within_s=120)

    def exodus(self, host: str, *arguments: str) -> str:
        """Run an operator's command on one host."""
        command = self.net.hosts[host].command([str(self.bins[host] / "exodus"), *arguments])
        env = {**os.environ, **self.env}
        done = subprocess.run(
            command,
            env=env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        self._wait()
        said = self.exodus("host-b", "deploy")
        assert "work pool exodus (type process)" in said
        assert "deployments named <flow>/exodus" in said
        for name, host in self.net.hosts.items():
            command = [
                str(self.bins[name] / "python"),
                "-m",
                "prefect",
                "worker",
                "start",
                "--pool",
                "exodus",
                "--name",
                name,
            ]
            self._start_forks(name)
            own = {
                "PREFECT_HOME": str(self.folder / name / "prefect"),
                "PREFECT_LOCAL_STORAGE_PATH": str(self.folder / name / "results"),
            }
            self.workers[name] = host.start(
                "worker", command, self.folder / name, env={**self.env, **own, **self.forks[name]}
            )
        self.exodus("host-a", "apply", "--yes", str(self.file))
        for name, host in self.net.hosts.items():
            exodus = [str(self.bins[name] / "exodus")]
            common = ["--file", str(self.file)]
            listen = [
                "--listen",
                f"{host.address}:{PORT}",
                "--state-dir",
                str(self.folder / name / "state"),
                "--lend-own-address",
            ]
            host.start(
                "gateway",
                [*exodus, "gateway", "--id", f"gw-{name}", *common, *listen],
                self.folder / name,
            )
            host.start(
                "syncer", [*exodus, "syncer", "--id", f"sy-{name}", *common], self.folder / name
            )
        self._start_dask()
        first = self.net.hosts["host-a"]
        first.start(
            "comparer",
            [str(self.bins["host-a"] / "exodus"), "comparer", "--file", str(self.file)],
            self.folder / "host-a",
        )
        for host in self.net.hosts.values():
            wait_until(
                lambda host=host: answers(host.address, PORT),
                within_s=60,
                otherwise=f"no gateway answers on {host.name}",
            )

    def _start_dask(self) -> None:
        """Start a scheduler here, and on each host a worker that copies one slice at a time."""
        host, _, port = self.scheduler.removeprefix("tcp://").partition(":")
        command = [
            sys.executable,
            "-m",
            "distributed.cli.dask_scheduler",
            "--host",
            host,
            "--port",
            port,
            "--no-dashboard",
        ]
        self.dask_scheduler = start(
            "dask-scheduler", command, log=self.folder / "dask-scheduler.log"
        )
        wait_until(lambda: answers(host, int(port)), within_s=60, otherwise="no Dask scheduler")
        for name in self.net.hosts:
            self.start_dask_worker(name)

    def start_dask_worker(self, name: str) -> None:
        machine, folder = self.net.hosts[name], self.folder / name
        command = [
            str(self.bins[name] / "python"),
            "-m",
            "distributed.cli.dask_worker",
            self.scheduler,
            "--nthreads",
            "1",
            "--no-dashboard",
        ]
        command += [
            "--host",
            machine.address,
            "--name",
            f"{name}-{len(machine.started)}",
            "--local-directory",
            str(folder / "dask"),
        ]
        self.dask[name] = machine.start("dask-worker", command, folder)

    def registered_dask_workers(self, name: str) -> int:
        return (self.folder / name / "dask-worker.log").read_text().count("Registered to")

    def _start_forks(self, name: str) -> None:
        """Start the server that runs are forked from, as in the local stack.

        Without it the test would import the libraries thirteen times.
        """
        packages = (
            project_root()
            if name == "host-a"
            else next(self.bins[name].parent.glob("lib/python*/site-packages"))
        )
        server, path = (
            packages / "exodus" / "stack" / "forkserver.py",
            self.folder / name / "forks.sock",
        )
        python = str(self.bins[name] / "python")
        self.forks[name] = {
            "FORKS_PYTHON": python,
            "FORKS_SERVER": str(server),
            "FORKS_SOCKET": str(path),
        }
        command = [python, "-P", str(server), "serve", str(path), *prefect._IMPORTED_BEFOREHAND]
        self.net.hosts[name].start(
            "forks", command, self.folder / name, env={**self.env, **self.forks[name]}
        )

    def fork_runs(self) -> None:
        """Fork all runs from now on. The pool that `exodus deploy` makes started the runs
        before.
        """
        client = '"$FORKS_PYTHON" -I -S "$FORKS_SERVER" run "$FORKS_SOCKET"'
        command = f"sh -c 'exec {client} prefect.engine {prefect._REFRESH}'"
        template = {
            "job_configuration": {"command": command, "stream_output": True},
            "variables": {"type": "object", "properties": {}, "additionalProperties": False},
        }
        user, _, password = self.env["PREFECT_API_AUTH_STRING"].partition(":")
        with httpx.Client(base_url=self.env["PREFECT_API_URL"], auth=(user, password)) as api:
            assert (
                api.patch("/work_pools/exodus", json={"base_job_template": template}).status_code
                == 204
            )

    def only(self, name: str) -> None:
        """Let the worker of one host work, and stop the other."""
        for each, worker in self.workers.items():
            os.killpg(worker.process.pid, signal.SIGCONT if each == name else signal.SIGSTOP)

    def both(self) -> None:
        for worker in self.workers.values():
            os.killpg(worker.process.pid, signal.SIGCONT)

    def log(self, name: str) -> str:
        return self.workers[name].log.read_text()

    def close(self) -> None:
        self.both()
        for host in self.net.hosts.values():
            host.end()
        for ours in (self.dask_scheduler, self.server):
            end([ours.running()])
            ours.process.wait()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    package = install(tmp_path / "package")
    with network("host-a", "host-b") as net:
        config = {
            "bind": f"{net.here} 127.0.0.1" if net.real else "127.0.0.1",
            "protected_mode": "no",
        }
        kinds = (ServerKind.REDIS_62, ServerKind.VALKEY_91, ServerKind.VALKEY_91)
        servers = []
        made = None
        try:
            for number, kind in enumerate(kinds):
                more = {"appendonly": "yes"} if number == 2 else {}
                servers.append(
                    DatabaseServer(kind, tmp_path / f"server-{number}", **config, **more)
                )
            with servers[0].client() as source:
                source.mset({f"cold:{number}": VALUE for number in range(KEYS)})
            made = Machines(net, servers, tmp_path, package)
            made.start()
            yield made
        finally:
            if made is not None:
                made.close()
            for box in servers:
                box.close()


async def _slices(file: MigrationFile) -> list[SliceProgress]:
    async with await ControlStore.connect(file.control_store, file.plan.name) as store:
        run = await runs_of.current(store)
        return [] if run is None else list((await load_progress(store, run.run)).values())


class Killer(threading.Thread):
    """Ends the Dask worker of one host during the backfill, once it has copied something."""

    def __init__(self, machines: Machines, name: str) -> None:
        super().__init__(daemon=True)
        self._machines, self._name = machines, name
        self._file = load_migration(machines.file)
        self.seen = 0

    def run(self) -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            found = asyncio.run(_slices(self._file))
            if any(each.worker.startswith(self._name) and each.keys_seen for each in found):
                self.seen = sum(each.keys_seen for each in found)
                os.killpg(self._machines.dask[self._name].process.pid, signal.SIGKILL)
                return


async def _entries(
    file: MigrationFile,
) -> tuple[list[ledger.LedgerEntry], dict[str, str], dict[str, dict]]:
    async with await ControlStore.connect(file.control_store, file.plan.name) as store:
        entries = await ledger.read(store)
        shown = {
            entry.evidence: await store.report(entry.evidence)
            for entry in entries
            if entry.event == "decided"
        }
        hosts = {
            beat.process: beat.host
            for kind in ("gateway", "syncer")
            for beat in await heartbeats(store, kind)
        }
        return entries, hosts, shown


class Runs:
    """Runs of phases, as Prefect knows them."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines
        self._api = PrefectApi(
            machines.env["PREFECT_API_URL"], machines.env["PREFECT_API_AUTH_STRING"]
        )

    def start(self, phase: str, **parameters: str) -> str:
        return str(self._api.start(phase, {"migration": "orders", **parameters})["id"])

    def becomes(self, run_id: str, wanted: str, *, at: str) -> None:
        """Wait until a run is in a state; fail if that never happens."""

        def there() -> bool:
            return self._api.run(run_id)["state"]["name"] in (
                wanted,
                "Failed",
                "Crashed",
                "Cancelled",
            )

        wait_until(there, within_s=90, otherwise=f"a run never became {wanted} on {at}")
        state = self._api.run(run_id)["state"]
        assert state["name"] == wanted, (state["message"], self._machines.log(at)[-3000:])

    def approve(self, run_id: str) -> None:
        wait_until(lambda: self._api.asks(run_id), within_s=30, otherwise="its form never came")
        self._api.resume(run_id, dict(_SAID))
        wait_until(
            lambda: self._api.run(run_id)["state"]["name"] != "Suspended",
            within_s=30,
            otherwise="it was not resumed",
        )

    def close(self) -> None:
        self._api.close()


def _phase(machines: Machines, runs: Runs, phase: str, gates: int, begins: str) -> None:
    """Begin a phase on one machine, and continue it on the other after each answer."""
    other = {"host-a": "host-b", "host-b": "host-a"}
    at = begins
    machines.only(at)
    run_id = runs.start(phase)
    for gate in range(gates):
        runs.becomes(run_id, "Suspended", at=at)
        if gate:  # between the cutover and the finalise
            runs.becomes(runs.start("renew", kind="drift"), "Completed", at=at)
        at = other[at]
        machines.only(at)
        runs.approve(run_id)
    runs.becomes(run_id, "Completed", at=at)
    for name in machines.workers:
        assert run_id in machines.log(name), f"{phase} did not run on {name}"


def _compare_on_both(machines: Machines, runs: Runs, file: MigrationFile) -> None:
    """The comparison that a schedule renews: each host's Dask worker compares some of the
    slices.
    """
    wait_until(
        lambda: machines.registered_dask_workers("host-b") == 2,
        within_s=60,
        otherwise="host-b's worker did not come back",
    )
    machines.both()
    runs.becomes(runs.start("renew", kind="comparison"), "Completed", at="host-a")

    async def report() -> dict:
        async with await ControlStore.connect(file.control_store, file.plan.name) as store:
            return await store.report("verification.comparison") or {}

    found = asyncio.run(report())
    assert {worker.partition(":")[0] for worker in found["workers"]} == {"host-a", "host-b"}
    assert found["divergences_total"] == 0
    assert found["keys_authority"] == found["keys_verified"] + found["keys_dirty"] >= KEYS


def _came_from_the_wheel(package: Path) -> None:
    code = (
        "import exodus.compiled, flows.migrate, blocks; print(flows.migrate.__file__, "
        "exodus.compiled.why_not())"
    )
    said = subprocess.run(
        [package / "python", "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    ).stdout
    assert said.startswith(str(package.parent)), said
    assert said.strip().endswith("None"), (
        f"the wheel has compiled modules that do not fit its sources: {said}"
    )


def test_a_whole_migration_whose_phases_go_from_machine_to_machine(machines: Machines) -> None:
    _came_from_the_wheel(machines.bins["host-b"])
    file, runs = load_migration(machines.file), Runs(machines)
    apps = [Application(host.address, f"hits:{name}") for name, host in machines.net.hosts.items()]
    try:
        for number, phase in enumerate(
            ("pre-test", "analyze", "compare", "test", "migrate", "commit")
        ):
            if phase == "analyze":
                machines.fork_runs()
            if phase == "commit":
                _, hosts, _ = asyncio.run(_entries(file))
                if machines.net.real:
                    assert hosts == {
                        f"{kind}-{name}": name
                        for kind in ("gw", "sy")
                        for name in machines.net.hosts
                    }
            killer = Killer(machines, "host-b")
            if phase == "migrate" and machines.net.real:
                killer.start()
            _phase(
                machines,
                runs,
                phase,
                2 if phase == "commit" else 1,
                ("host-b", "host-a")[number % 2],
            )
            if phase == "test":  # each of the other schedules, as by its clock
                machines.both()
                for renewed in [
                    runs.start("renew", kind=kind) for kind in ("workload", "rehearsal")
                ]:
                    runs.becomes(renewed, "Completed", at="host-a")
            if phase == "migrate" and machines.net.real:
                killer.join()
                machines.start_dask_worker("host-b")
                slices = asyncio.run(_slices(file))
                assert 0 < killer.seen < KEYS, "the worker was not ended in the middle"
                assert all(each.done for each in slices)
                assert "host-a" in {each.worker.partition(":")[0] for each in slices}, (
                    "what was left was not taken over"
                )
                assert sum(each.keys_seen for each in slices) < KEYS * 1.2, (
                    "chunks that were checkpointed were done again"
                )
                _compare_on_both(machines, runs, file)
    finally:
        machines.both()
        for app in apps:
            app.end()
        runs.close()
    entries, _, shown = asyncio.run(_entries(file))
    decided = [entry for entry in entries if entry.event == "decided"]
    assert [entry.phase.value for entry in decided] == [
        "pre-test",
        "analyze",
        "compare",
        "test",
        "migrate",
        "commit",
        "commit",
    ]
    for entry in decided:
        assert ledger.digest(shown[entry.evidence]) == entry.evidence_digest, (
            "the digest is of what the person saw"
        )
    started = [entry.phase for entry in entries if entry.event == "started"]
    assert len(started) == len(set(started)) == 6
    assert [entry.verdict for entry in entries if entry.event == "switched"] == ["target"]
    with machines.servers[1].client() as target:
        assert target.dbsize() >= KEYS
        for app in apps:
            assert app.errors == []
            assert sum(app.acknowledged.values()) > 1_000
            assert {key: int(target.get(key) or 0) for key in app.acknowledged} == app.acknowledged
    head = next(
        entry for entry in entries if entry.event == "noted" and entry.gate == "evidence"
    ).verdict
    machines.exodus("host-b", "evidence", "fetch", "--file", str(machines.file), "bundle")
    assert "unchanged" in machines.exodus("host-b", "evidence", "check", "bundle", "--head", head)
