"""Probe both sides: facts, compatibility, an exercise of the target, an unchanged source."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from dataclasses import asdict

from exodus.control.route import read_route
from exodus.cutover.preflight import check_all
from exodus.net.leg import Reply, ReplyError
from exodus.plan.bounds import TASKS_PROBE_ADDED_MS, TASKS_PROBE_NAMED, TASKS_PROBE_PINGS
from exodus.plan.own_keys import RESERVED_PREFIX
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node
from tasks.checks import Level, check, of_findings
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task

_NAME = re.compile(r" name=(\S*)")
_KEY = RESERVED_PREFIX + b"exercise}"
# One write and one read a type, on a key of Exodus, and the expected reply of the read.
_EXERCISES: list[tuple[str, list[tuple[object, ...]], object]] = [
    ("string", [("SET", _KEY, "v", "PX", 60_000), ("GET", _KEY)], b"v"),
    ("counter", [("DEL", _KEY), ("INCR", _KEY)], 1),
    ("list", [("DEL", _KEY), ("RPUSH", _KEY, "a", "b"), ("LRANGE", _KEY, 0, -1)], [b"a", b"b"]),
    ("set", [("DEL", _KEY), ("SADD", _KEY, "a"), ("SMEMBERS", _KEY)], [b"a"]),
    ("hash", [("DEL", _KEY), ("HSET", _KEY, "f", "v"), ("HGETALL", _KEY)], [b"f", b"v"]),
    ("sorted set", [("DEL", _KEY), ("ZADD", _KEY, "1.5", "m"), ("ZSCORE", _KEY, "m")], b"1.5"),
    ("stream", [("DEL", _KEY), ("XADD", _KEY, "1-1", "f", "v"), ("XLEN", _KEY)], 1),
    (
        "script",
        [("EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", 1, _KEY, "s"), ("GET", _KEY)],
        b"s",
    ),
    ("transaction", [("MULTI",), ("SET", _KEY, "t"), ("EXEC",), ("GET", _KEY)], b"t"),
    ("expiry", [("PEXPIRE", _KEY, 60_000), ("TTL", _KEY), ("PERSIST", _KEY), ("PTTL", _KEY)], -1),
]


@kept_task("Check both sides")
@opens_migration
async def check_sides(it: Opened) -> list[Json]:
    """Run the pre-flight checks; return them as checks of the phase. They change nothing."""
    return of_findings([asdict(finding) for finding in await check_all(it.plan, it.store)])


@kept_task("Describe both sides")
@opens_migration
async def describe_sides(it: Opened) -> Json:
    """Return facts of both sides: versions, sizes, capabilities."""
    return {side.value: asdict(await it.endpoint(side).facts()) for side in Side}


@kept_task("Exercise the target")
@opens_migration
async def exercise_target(it: Opened) -> list[Json]:
    """Write and read each type once on a key of Exodus of each node, and remove the key."""
    wrong: dict[str, list[str]] = {name: [] for name, _, _ in _EXERCISES}
    nodes = await it.endpoint(Side.TARGET).each_node()
    for node in nodes:
        key = _KEY if node.shard is None else node.scratch
        where = "" if len(nodes) == 1 else f"{node.where}: "
        async with await node.connect(name="exodus-exercise") as leg:
            for name, commands, wanted in _EXERCISES:
                sent = [[key if word == _KEY else word for word in words] for words in commands]
                replies = await leg.pipeline(sent)  # type: ignore[arg-type]
                errors = [str(reply) for reply in replies if isinstance(reply, ReplyError)]
                if errors or replies[-1] != wanted:
                    said = errors[0] if errors else f"answered {replies[-1]!r}"
                    wrong[name].append(f"{where}{said}")
            await leg.call("UNLINK", key)
    return [
        check(f"target takes: {name}", not said, "; ".join(said)) for name, said in wrong.items()
    ]


async def _state_of(endpoint: Endpoint) -> Json:
    """Return what must not change on a production side, and what a person should see of it: of a
    cluster, on each master and replica.
    """
    servers = await endpoint.each_server()
    each = {server.where: await _state_of_server(server) for server in servers}
    first = next(iter(each.values()))
    if len(each) == 1:
        return first
    clients: Counter[str] = Counter()
    for state in each.values():
        clients.update(state["clients"])
    return {
        "role": ", ".join(f"{where} {state['role']}" for where, state in sorted(each.items())),
        "users": [f"{where} {user}" for where, state in each.items() for user in state["users"]],
        "settings": {
            f"{name} of {where}": value
            for where, state in each.items()
            for name, value in state["settings"].items()
        },
        "untold": {
            what: f"{where}: {why}"
            for where, state in each.items()
            for what, why in state["untold"].items()
        },
        "own_connections": sum(state["own_connections"] for state in each.values()),
        "clients": dict(clients),
        "used_memory": sum(state["used_memory"] for state in each.values()),
        "ping_ms_p50": max(state["ping_ms_p50"] for state in each.values()),
        "ping_ms_max": max(state["ping_ms_max"] for state in each.values()),
    }


async def _state_of_server(server: Node) -> Json:
    async with await server.connect(name="exodus-probe") as leg:
        role, users, config, clients = await leg.pipeline(
            [("ROLE",), ("ACL", "LIST"), ("CONFIG", "GET", "*"), ("CLIENT", "LIST")]
        )
        pings = []
        for _ in range(TASKS_PROBE_PINGS):
            began = time.perf_counter()
            await leg.call("PING")
            pings.append((time.perf_counter() - began) * 1000)
    told = _texts(config)
    node = await server.info()
    untold = {"users": users, "settings": config}
    return {
        "role": node["role"] if isinstance(role, ReplyError) else _texts(role)[0],
        "users": sorted(hashlib.sha256(user.encode()).hexdigest() for user in _texts(users)),
        "settings": dict(zip(told[::2], told[1::2], strict=True)),
        "untold": {
            what: str(said) for what, said in untold.items() if isinstance(said, ReplyError)
        },
        "own_connections": clients.count(b" name=exodus") if isinstance(clients, bytes) else 0,
        "clients": _clients(clients),
        "used_memory": int(node["used_memory"]),
        "ping_ms_p50": round(sorted(pings)[len(pings) // 2], 3),
        "ping_ms_max": round(max(pings), 3),
    }


def _clients(reply: Reply) -> dict[str, int]:
    """Return connections by name, of an answer to CLIENT LIST."""
    if not isinstance(reply, bytes):
        return {}
    found = Counter(_NAME.findall(reply.decode("utf-8", "backslashreplace")))
    return {name or "(no name)": count for name, count in sorted(found.items())}


def _texts(reply: Reply) -> list[str]:
    """Return the texts of a reply; none where it is refused."""
    return [
        part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part)
        for part in (reply if isinstance(reply, list) else ())
    ]


@kept_task("Fingerprint the source")
@opens_migration
async def fingerprint_source(it: Opened) -> Json:
    """Return the source's role, users, settings, and latency, and the route.

    Users are hashed: their rules contain hashes of passwords. Settings may contain secrets, too, so
    each value is hashed.
    """
    route = await read_route(it.store)
    state = await _state_of(it.endpoint(Side.SOURCE))
    state["settings"] = {name: _hash(value) for name, value in state["settings"].items()}
    return {**state, "authority": str(route.authority), "epoch": route.epoch}


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


@kept_task("Check that the source is unchanged")
@opens_migration
async def unchanged(it: Opened, before: Json, cost: Json) -> list[Json]:
    """Compare the source and the route with `fingerprint_source`, and name what changed.

    `cost` is what the source itself told of the time in which MONITOR ran; empty without MONITOR.
    A PING of that time would show how busy the reader of MONITOR is.
    """
    route = await read_route(it.store)
    now = await _state_of(it.endpoint(Side.SOURCE))
    changed = sorted(
        name
        for name in before["settings"].keys() | now["settings"].keys()
        if before["settings"].get(name) != _hash(now["settings"].get(name, ""))
    )
    users = len(set(before["users"]) ^ set(now["users"]))
    same_route = (str(route.authority), route.epoch) == (before["authority"], before["epoch"])
    came = sorted(name for name in now["clients"] if name not in before["clients"])
    foreign = [name for name in came if not name.startswith("exodus")]
    own = sorted(name for name in now["clients"] if name.startswith("exodus"))
    return [
        check(
            "only Exodus's own connections were added to the source",
            not foreign,
            (f"new: {', '.join(foreign[:TASKS_PROBE_NAMED])}; " if foreign else "")
            + f"of Exodus: {', '.join(own) or 'none'}",
            level=Level.INFO,
        ),
        check("the source's role is unchanged", now["role"] == before["role"], now["role"]),
        _unchanged(
            "users",
            "ACL LIST",
            f"{users} user rule(s) differ" if users else "",
            len(now["users"]),
            {**before["untold"], **now["untold"]},
        ),
        _unchanged(
            "settings",
            "CONFIG GET",
            ", ".join(changed[:TASKS_PROBE_NAMED]),
            len(now["settings"]),
            {**before["untold"], **now["untold"]},
        ),
        check("the route is unchanged", same_route, f"epoch {route.epoch}"),
        check(
            "the source answers as fast as before",
            now["ping_ms_p50"] <= before["ping_ms_p50"] + TASKS_PROBE_ADDED_MS
            and not cost.get("stopped"),
            f"PING p50 {before['ping_ms_p50']} ms before and {now['ping_ms_p50']} ms after; memory "
            f"{before['used_memory']:,} and {now['used_memory']:,} bytes; "
            f"{now['own_connections']} connection(s) of Exodus" + _during(cost),
            level=Level.INFO,
        ),
    ]


def _during(cost: Json) -> str:
    """Return what the source told of itself while MONITOR ran."""
    if not cost:
        return ""
    return (
        f"; processor {cost['cpu_share_before']:.1%} of a core before and "
        f"{cost['cpu_share_during']:.1%} while MONITOR ran, at {cost['requests_per_s_before']:,.0f}"
        f" and {cost['requests_per_s_during']:,.0f} requests/s, with "
        f"{cost['buffer_bytes_added']:,} bytes more of buffers"
    )


def _unchanged(what: str, command: str, changed: str, count: int, untold: dict[str, str]) -> Json:
    """Return the check that users or settings are unchanged; a finding where nobody can know."""
    name = f"the source's {what} are unchanged"
    if what in untold:
        return check(
            name,
            False,
            f"the source does not tell them: {untold[what]}",
            level=Level.SHOULD,
            why="nobody knows whether they changed while Exodus watched",
            next_step=f"let Exodus's user run {command} (exodus users), or compare them by the "
            "provider's console",
        )
    return check(
        name,
        not changed,
        changed or f"{count} {what}",
        why="somebody changed them while Exodus watched, or Exodus did",
        next_step=f"compare {command} with what you expect, then start Pre-test again",
    )
