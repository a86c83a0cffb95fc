"""`exodus up` and `exodus down`: all parts of a migration on one machine.

Prefect's server takes longest, so it starts first and is waited for last. If a part does not start,
the last lines of its log are shown and all others are stopped. A second `up` lists the running
parts and restarts ended ones with their data and their port.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from redis.exceptions import RedisError

from exodus.control.store import ControlStore
from exodus.errors import ExodusError, OperatorError
from exodus.plan.address import Address
from exodus.plan.bounds import SENTINELS_MIN, STACK_CLUSTER_MASTERS, STACK_LISTENERS
from exodus.plan.migration_file import load_migration
from exodus.plan.vocabulary import Side
from exodus.private_files import write_private
from exodus.stack import prefect, servers
from exodus.stack.clusters import CLUSTER_SETTINGS, cluster_port, join
from exodus.stack.home import Home, Running, free_port, free_ports
from exodus.stack.processes import Started, end, start, wait_ready
from exodus.stack.servers import ServerKind, start_sentinel, start_server, wait_server
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import check_pair, raise_if_fatal

MIGRATION = "demo"
DATA_PLANE = ("gateway", "syncer", "comparer")


class TopologyKind(StrEnum):
    """What the embedded source and target are."""

    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"
    TO_CLUSTER = "to-cluster"  # from one server, whose clients see a cluster of one node
    SENTINEL_TO_CLUSTER = "sentinel-to-cluster"  # likewise

    def is_cluster(self, side: str) -> bool:
        """Return whether a side is a cluster."""
        return self is TopologyKind.CLUSTER or (self.has_facade and side == Side.TARGET)

    def is_service(self, side: str) -> bool:
        """Return whether a side is behind Sentinel."""
        return self is TopologyKind.SENTINEL or (
            self is TopologyKind.SENTINEL_TO_CLUSTER and side == Side.SOURCE
        )

    @property
    def has_facade(self) -> bool:
        """Return whether cluster clients use a side that is no cluster."""
        return self in (TopologyKind.TO_CLUSTER, TopologyKind.SENTINEL_TO_CLUSTER)


@dataclass
class StackOptions:
    """What to start. A URL names a real server instead of an embedded one."""

    source_url: str | None = None
    target_url: str | None = None
    source_password_file: Path | None = None
    target_password_file: Path | None = None
    source_kind: ServerKind = ServerKind.REDIS_62
    target_kind: ServerKind = ServerKind.VALKEY_91
    options: dict[str, Any] | None = None
    topology: TopologyKind = TopologyKind.STANDALONE


def urls(home: Home) -> dict[str, str]:
    """Return the addresses of a running stack."""
    ports = {entry.name: entry.port for entry in home.running() if entry.port}
    file = load_migration(home.migration_file)
    found = {
        "gateway": f"redis://{file.plan.gateway.host}:{file.plan.gateway.port}",
        "source": file.plan.source.url,
        "target": file.plan.target.url,
        "control store": file.control_store.url,
    }
    if "prefect-server" in ports:
        found["Prefect UI"] = f"http://127.0.0.1:{ports['prefect-server']}"
        login = shlex.quote(str(home.prefect_login_file.absolute()))
        found["Prefect login"] = f"cat {login}  # paste it when the UI asks for a password"
    return found


def up(
    home: Home,
    wanted: StackOptions,
    say: Callable[[str], None],
    *,
    serving: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Start the stack, or restart its ended parts; return the addresses.

    `serving` is called as soon as applications can use the gateway. The gateway does not need
    Prefect, which may still be starting.

    Raises:
        OperatorError: the two sides cannot be migrated as they are. All started parts are stopped.
        StackError: a part did not start. All started parts are stopped.
    """
    running = home.running()
    if running:
        names = {entry.name for entry in running}
        say(f"already running in {home.root}: {', '.join(sorted(names))}")
        _Stack(home, home.recorded()).start_again(say)
        return urls(home)
    home.make()
    stack = _Stack(home)
    try:
        stack.start(wanted, say, serving)
    except BaseException:
        end(stack.entries)
        home.record([])
        raise
    return urls(home)


def down(home: Home) -> list[str]:
    """Stop the recorded processes and return the names of those that ran. Data and logs stay."""
    if not home.root.exists():
        return []
    ended = end(home.recorded())
    if home.root.exists():
        home.record([])
    return ended


class _Stack:
    """The started parts. Each is recorded at once, so that an interruption leaves none unknown."""

    def __init__(self, home: Home, entries: Sequence[Running] = ()) -> None:
        self.home = home
        self.entries = list(entries)

    def add(self, started: Started) -> Started:
        self.entries = [
            *(entry for entry in self.entries if entry.name != started.name),
            started.running(),
        ]
        self.home.record(self.entries)
        return started

    def start_again(self, say: Callable[[str], None]) -> None:
        """Restart ended parts with their data and their port, dependencies first.

        An embedded source or target is not restarted: it kept no data, and an empty one is not the
        server that was migrated.

        Raises:
            StackError: a part does not start. The running ones are not touched.
        """
        home = self.home
        ports = {entry.name: entry.port for entry in self.entries}
        gone = {entry.name for entry in self.entries if entry.process() is None}
        if gone:
            say(f"restarting: {', '.join(sorted(gone))}")
        for name in sorted(
            gone - {"control_store", "prefect-server", "forkserver", "prefect-worker", *DATA_PLANE}
        ):
            say(f"{name} is not restarted: its data is lost")
        if "control_store" in gone:
            wait_server(
                self._embedded(
                    "control_store", ServerKind.VALKEY_91, ports["control_store"] or free_port()
                )
            )
        self._data_plane([name for name in DATA_PLANE if name in gone])
        prefect_port = ports["prefect-server"] or free_port()
        if "prefect-server" in gone:
            wait_ready(
                self.add(prefect.start_prefect_server(home, prefect_port)),
                lambda: prefect.healthy(prefect_port),
                within_s=120,
            )
        if "forkserver" in gone:
            self.add(prefect.start_forkserver(home, prefect_port))
        if "prefect-worker" in gone:
            wait_ready(
                self.add(prefect.start_worker(home, prefect_port)),
                lambda: prefect.worker_online(home, prefect_port),
                within_s=60,
            )

    def start(
        self, wanted: StackOptions, say: Callable[[str], None], serving: Callable[[], None]
    ) -> None:
        home = self.home
        port = free_port()
        environment = prefect.environment(home, port)
        # Prefect starts with a new state: blocks and runs of an earlier stack would name dead
        # ports.
        shutil.rmtree(environment["PREFECT_HOME"], ignore_errors=True)
        server = self.add(prefect.start_prefect_server(home, port))
        write_private(
            home.prefect_env, "".join(f"{name}={value}\n" for name, value in environment.items())
        )
        say("starting servers")
        self._servers(wanted)
        asyncio.run(self._register())
        say("starting gateway, syncer and comparer")
        shutil.rmtree(home.data / "gateway-1", ignore_errors=True)
        self._data_plane(DATA_PLANE)
        serving()
        say("starting Prefect")
        wait_ready(server, lambda: prefect.healthy(port), within_s=120)
        prefect.keep_template(home)
        prefect.make_pool(home, port)
        self.add(prefect.start_forkserver(home, port))
        worker = self.add(prefect.start_worker(home, port))
        with ThreadPoolExecutor(2) as pool:
            deploying = pool.submit(prefect.deploy, home, port)
            registering = pool.submit(prefect.register, home, port)
            registering.result()
            deploying.result()
        wait_ready(worker, lambda: prefect.worker_online(home, port), within_s=60)

    def _servers(self, wanted: StackOptions) -> None:
        home = self.home
        given: dict[str, dict[str, Any]] = {}
        embedded = []
        for name, url, password_file, kind in (
            ("source", wanted.source_url, wanted.source_password_file, wanted.source_kind),
            ("target", wanted.target_url, wanted.target_password_file, wanted.target_kind),
            ("control_store", None, None, ServerKind.VALKEY_91),
        ):
            if name in (wanted.options or {}):
                continue  # named by the caller, such as a cluster
            if url is not None:
                given[name] = _given(home, name, url, password_file)
                continue
            if name != "control_store" and wanted.topology.is_cluster(name):
                given[name] = self._cluster(name, kind)
                continue
            server_port = free_port()
            shutil.rmtree(home.data / name, ignore_errors=True)  # a stack begins empty
            server = self._embedded(name, kind, server_port)
            embedded.append(server)
            secret = str(home.secret(name).absolute())
            if name != "control_store" and wanted.topology.is_service(name):
                more, sentinels = self._behind_sentinel(name, kind, server)
                embedded += more
                given[name] = {
                    "sentinels": sentinels,
                    "service": name,
                    "username": servers.USER,
                    "password_file": secret,
                }
                continue
            given[name] = {
                "url": f"redis://{servers.USER}@127.0.0.1:{server_port}",
                "password_file": secret,
            }
        for server in embedded:
            wait_server(server)
        document = {
            "name": MIGRATION,
            **given,
            "gateway": _gateway(wanted.topology),
            # Servers, gateways and the load's player share one machine: it measures no target.
            "test_checks": {
                "load_seconds": 0.5,
                "load_times_max": 50.0,
                "latency_ms_added_max": 50.0,
            },
            **(wanted.options or {}),
        }
        write_private(home.migration_file, yaml.safe_dump(document, sort_keys=False))

    def _cluster(self, name: str, kind: ServerKind) -> dict[str, Any]:
        """Start the masters of a cluster, and give them their slots; return the side."""
        home = self.home
        started = []
        for number in range(1, STACK_CLUSTER_MASTERS + 1):
            node = f"{name}-{number}"
            shutil.rmtree(home.data / node, ignore_errors=True)
            server = start_server(
                kind,
                name=node,
                port=cluster_port(),
                folder=home.data / node,
                log=home.log(node),
                password_file=home.secret(name),
                private=False,
                **CLUSTER_SETTINGS,
            )
            self.add(server.started)
            started.append(server)
        for server in started:
            wait_server(server)
        ports = [server.port for server in started]
        password = home.secret(name).read_text().strip()
        join(ports, masters=STACK_CLUSTER_MASTERS, username=servers.USER, password=password)
        return {
            "cluster": [f"127.0.0.1:{port}" for port in ports],
            "username": servers.USER,
            "password_file": str(home.secret(name).absolute()),
        }

    def _behind_sentinel(
        self, name: str, kind: ServerKind, master: servers.Server
    ) -> tuple[list[servers.Server], list[str]]:
        """Start a replica and Sentinels for a master that was started."""
        home = self.home
        wait_server(master)
        replica = start_server(
            kind,
            name=f"{name}-replica",
            port=free_port(),
            folder=home.data / f"{name}-replica",
            log=home.log(f"{name}-replica"),
            password_file=home.secret(name),
            replicaof=f"127.0.0.1 {master.port}",
        )
        found = [replica]
        for number in range(1, SENTINELS_MIN + 1):
            sentinel = f"{name}-sentinel-{number}"
            shutil.rmtree(home.data / sentinel, ignore_errors=True)
            found.append(
                start_sentinel(
                    kind,
                    name=sentinel,
                    port=free_port(),
                    folder=home.data / sentinel,
                    log=home.log(sentinel),
                    service=name,
                    master_port=master.port,
                    quorum=SENTINELS_MIN // 2 + 1,
                )
            )
        for server in found:
            self.add(server.started)
        return found, [f"127.0.0.1:{server.port}" for server in found[1:]]

    def _embedded(self, name: str, kind: ServerKind, port: int) -> servers.Server:
        home = self.home
        private = name == "control_store"
        config = {"appendonly": "yes", "appendfsync": "everysec"} if private else {}
        server = start_server(
            kind,
            name=name,
            port=port,
            folder=home.data / name,
            log=home.log(name),
            password_file=home.secret(name),
            private=private,
            **config,
        )
        self.add(server.started)
        return server

    async def _register(self) -> None:
        """Check both sides and write the plan to the control store."""
        file = load_migration(self.home.migration_file)
        async with await ControlStore.connect(file.control_store, file.plan.name) as store:
            findings = await check_pair(
                Endpoint(Side.SOURCE, file.plan.source),
                Endpoint(Side.TARGET, file.plan.target),
                file.plan,
                store,
            )
            raise_if_fatal(findings)
            await store.save_plan(file.plan)

    def _data_plane(self, names: Sequence[str]) -> None:
        home = self.home
        file = load_migration(home.migration_file)
        parts: list[Started] = []
        if not file.plan.has_gateways:
            names = [name for name in names if name == "syncer"]
        for name in names:
            command = [
                sys.executable,
                "-m",
                "exodus.cli.app",
                name,
                "--file",
                str(home.migration_file.absolute()),
                "--id",
                f"{name}-1",
            ]
            if name == "gateway":
                command += ["--state-dir", str((home.data / "gateway-1").absolute())]
            port = file.plan.gateway.port if name == "gateway" else None
            parts.append(self.add(start(name, command, log=home.log(name), port=port)))
        for part in parts:
            if part.name == "gateway":
                wait_ready(part, lambda: servers.answers(file.plan.gateway.port), within_s=30)
            else:
                wait_ready(
                    part,
                    lambda kind=part.name: asyncio.run(_registered(home, kind)),  # type: ignore[misc]
                    within_s=30,
                )


def _gateway(topology: TopologyKind) -> dict[str, Any]:
    """Return where the gateway listens; in front of a cluster, on several ports in a row."""
    if not topology.is_cluster(Side.TARGET):
        return {"host": "127.0.0.1", "port": free_port()}
    facade = {"facade": "cluster"} if topology.has_facade else {}
    first = free_ports(STACK_LISTENERS)
    return {"host": "127.0.0.1", "port": first, "listeners": STACK_LISTENERS, **facade}


def _given(home: Home, name: str, url: str, password_file: Path | None) -> dict[str, str]:
    """Return a real server for the migration file. A password in its URL goes into a file."""
    address = Address.parse(url, field=name)
    if address.password is not None and password_file is None:
        password_file = home.root / f"{name}.given-password"
        write_private(password_file, address.password.get_secret_value() + "\n")
    return {
        "url": address.url,
        **({"password_file": str(password_file.absolute())} if password_file else {}),
    }


async def _registered(home: Home, kind: str) -> bool:
    file = load_migration(home.migration_file)
    try:
        async with await ControlStore.connect(file.control_store, file.plan.name) as store:
            return bool(await store.registrations(kind))
    except (ExodusError, RedisError, OSError) as exc:
        if isinstance(exc, OperatorError):
            raise
        return False  # not yet
