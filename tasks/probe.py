"""Probe both sides: facts, compatibility, an exercise of the target, an unchanged source."""

from __future__ import annotations

import hashlib
from dataclasses import asdict

from exodus.control.route import read_route
from exodus.cutover.preflight import check_all
from exodus.net.leg import ReplyError
from exodus.plan.own_keys import RESERVED_PREFIX
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from tasks.checks import check, of_findings
from tasks.context import Json, Opened, opened, opens_migration, run
from tasks.kept import kept_task

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
def exercise_target(migration: str) -> list[Json]:
    """Write and read each type once on a key of Exodus, and remove the key."""

    async def work() -> list[Json]:
        rows: list[Json] = []
        async with opened(migration) as it:
            node = await it.endpoint(Side.TARGET).any_node()
            async with await node.connect(name="exodus-exercise") as leg:
                for name, commands, wanted in _EXERCISES:
                    replies = await leg.pipeline(commands)  # type: ignore[arg-type]
                    errors = [str(reply) for reply in replies if isinstance(reply, ReplyError)]
                    ok = not errors and replies[-1] == wanted
                    detail = errors[0] if errors else "" if ok else f"answered {replies[-1]!r}"
                    rows.append(check(f"target takes: {name}", ok, detail))
                await leg.call("UNLINK", _KEY)
        return rows

    return run(work())


async def _print_of(endpoint: Endpoint) -> str:
    """Return a digest of what must not change on a production server: role, users and settings."""
    async with await endpoint.connect(name="exodus-probe") as leg:
        replies = await leg.pipeline([("ROLE",), ("ACL", "LIST"), ("CONFIG", "GET", "*")])
        role, users, config = replies
        shape = (
            role[0] if isinstance(role, list) else str(role),
            users if isinstance(users, list) else None,
            config if isinstance(config, list) else None,
        )
    return hashlib.sha256(repr(shape).encode()).hexdigest()


@kept_task("Fingerprint the source")
@opens_migration
async def fingerprint_source(it: Opened) -> Json:
    """Return a digest of the source's role, users and settings, and the route."""
    route = await read_route(it.store)
    return {
        "digest": await _print_of(it.endpoint(Side.SOURCE)),
        "authority": str(route.authority),
        "epoch": route.epoch,
    }


@kept_task("Check that the source is unchanged")
@opens_migration
async def unchanged(it: Opened, before: Json) -> list[Json]:
    """Compare the source's fingerprint and the route with earlier ones."""
    route = await read_route(it.store)
    now = await _print_of(it.endpoint(Side.SOURCE))
    same_route = (str(route.authority), route.epoch) == (before["authority"], before["epoch"])
    return [
        check("the source's role, users and settings are unchanged", now == before["digest"]),
        check("the route is unchanged", same_route, f"epoch {route.epoch}"),
    ]
