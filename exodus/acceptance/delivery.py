"""What a plain read or write does not show: transactions, scripts, functions, publish/subscribe,
keyspace events, blocking requests.

Tried on the target on scratch keys, as `compare_user` where the plan names one: with an
application's rights.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable

import redis.asyncio as redis

from exodus.acceptance.observed import tried_as
from exodus.acceptance.rows import Checked, not_done, on_each, told
from exodus.control import registry
from exodus.control.store import ControlStore
from exodus.cutover.functions import compare_libraries
from exodus.cutover.script_loading import load_scripts, unseen
from exodus.cutover.script_loading import told as scripts_told
from exodus.errors import ExodusError
from exodus.net.client import answered
from exodus.net.leg import Leg, ReplyError
from exodus.net.master_client import make_side_client
from exodus.plan.bounds import ACCEPTANCE_BLOCK_S, ACCEPTANCE_DELIVERY_S, ACCEPTANCE_NAMED
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side, UserRole
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import Node
from exodus.topology.permits import why_refused

_SCRATCH = "exodus:load:smoke:"
_SCRIPT = "redis.call('SET', KEYS[1], ARGV[1]); return redis.call('GET', KEYS[1])"


async def check_delivery(plan: Plan, store: ControlStore) -> list[Checked]:
    """Try each of them once; on a cluster, once on each node."""
    nodes = await Endpoint(Side.TARGET, tried_as(plan)).each_node()

    async def tried(node: Node) -> list[Checked]:
        # A message reaches subscribers of every node, whichever node it was published on.
        after = nodes[(nodes.index(node) + 1) % len(nodes)]
        return await _deliver(plan, node, after)

    rows = await on_each(nodes, tried)
    rows += await _code(plan, store)
    return [*rows, *await _events(plan)]


async def _deliver(plan: Plan, node: Node, publisher: Node) -> list[Checked]:
    prefix = f"{_SCRATCH}{node.tag}{secrets.token_hex(6)}:"
    clients = [
        make_side_client(
            place, field="target", timeout_s=ACCEPTANCE_DELIVERY_S, client_name="exodus-smoke"
        )
        for place in (node.place, node.place, publisher.place)
    ]
    one, other, publishing = clients
    tries: list[tuple[str, Callable[[], Awaitable[str]]]] = [
        ("transaction", lambda: _transaction(one, f"{prefix}t")),
        ("watched key that changes", lambda: _watch(one, other, f"{prefix}w")),
        ("script", lambda: _script(one, f"{prefix}s")),
        ("publish and subscribe", lambda: _publish(one, publishing, f"{prefix}channel")),
        ("blocking pop", lambda: _block(one, other, f"{prefix}b")),
        ("time limit of a blocking pop", lambda: _block_out(one, f"{prefix}empty")),
    ]
    refused = {} if plan.compare_user is not None else await _refused(node, prefix)
    rows = []
    try:
        for name, attempt in tries:
            why = refused.get(name)
            said = f"Exodus's user may not; set compare_user: {why}"
            rows.append(
                await _tried(name, attempt) if why is None else told(f"delivery: {name}", said)
            )
    finally:
        async with await Endpoint(Side.TARGET, plan.target).connect(name="exodus-smoke") as leg:
            await leg.call("UNLINK", *[f"{prefix}{name}" for name in ("t", "w", "s", "b", "empty")])
        for client in clients:
            await client.aclose()
    return rows


async def _refused(node: Node, prefix: str) -> dict[str, str]:
    """Return what Exodus's own user may not try, and why; a try would stand in the server's log."""
    needed: dict[str, list[tuple[object, ...]]] = {
        "transaction": [("MULTI",), ("SET", prefix, 1), ("INCR", prefix), ("EXEC",)],
        "watched key that changes": [("WATCH", prefix), ("SET", prefix, 1), ("EXEC",)],
        "script": [("EVAL", "return 1", 1, prefix), ("SET", prefix, 1), ("GET", prefix)],
        "publish and subscribe": [("SUBSCRIBE", prefix), ("PUBLISH", prefix, 1)],
        "blocking pop": [("BLPOP", prefix, 1), ("RPUSH", prefix, 1)],
        "time limit of a blocking pop": [("BLPOP", prefix, 1)],
    }
    found = {}
    async with await node.connect(name="exodus-smoke") as leg:
        for name, requests in needed.items():
            why = await why_refused(leg, *requests)
            if why is not None:
                found[name] = why
    return found


async def _tried(name: str, attempt: Callable[[], Awaitable[str]]) -> Checked:
    try:
        async with asyncio.timeout(ACCEPTANCE_DELIVERY_S):
            wrong = await attempt()
    except (redis.RedisError, OSError, TimeoutError) as exc:
        wrong = str(exc) or f"no answer within {ACCEPTANCE_DELIVERY_S:.0f} s"
    return Checked(
        f"delivery: {name}",
        not wrong,
        wrong,
        "applications that use it would fail after the cutover",
        "look at the target's settings and at the user's rights there",
    )


async def _transaction(client: redis.Redis, key: str) -> str:
    async with client.pipeline(transaction=True) as pipe:
        pipe.set(key, "1", px=60_000)
        pipe.incr(key)
        found = await pipe.execute()
    return "" if found == [True, 2] else f"answered {found!r}"


async def _watch(client: redis.Redis, other: redis.Redis, key: str) -> str:
    async with client.pipeline(transaction=True) as pipe:
        await pipe.watch(key)
        await answered(other.set(key, "theirs", px=60_000))
        pipe.multi()
        pipe.set(key, "ours")
        try:
            await pipe.execute()
        except redis.WatchError:
            return ""
    return "EXEC ran although a watched key had changed"


async def _script(client: redis.Redis, key: str) -> str:
    found = await answered(client.eval(_SCRIPT, 1, key, "v"))
    return "" if found == b"v" else f"answered {found!r}"


async def _publish(client: redis.Redis, other: redis.Redis, channel: str) -> str:
    async with client.pubsub() as subscriber:
        await subscriber.subscribe(channel)
        await subscriber.get_message(timeout=ACCEPTANCE_DELIVERY_S)  # the subscription itself
        await answered(other.publish(channel, "v"))
        message = await subscriber.get_message(
            ignore_subscribe_messages=True, timeout=ACCEPTANCE_DELIVERY_S
        )
    if message is None or message["data"] != b"v":
        return f"a message to one subscriber came as {message!r}"
    return ""


async def _block(client: redis.Redis, other: redis.Redis, key: str) -> str:
    waiting = asyncio.ensure_future(answered(client.blpop([key], timeout=ACCEPTANCE_DELIVERY_S)))
    await asyncio.sleep(ACCEPTANCE_BLOCK_S / 4)
    await answered(other.rpush(key, "v"))
    found = await waiting
    return "" if found is not None and found[1] == b"v" else f"answered {found!r}"


async def _block_out(client: redis.Redis, key: str) -> str:
    began = time.monotonic()
    found = await answered(client.blpop([key], timeout=ACCEPTANCE_BLOCK_S))
    took = time.monotonic() - began
    if found is not None:
        return f"answered {found!r}"
    if took >= ACCEPTANCE_BLOCK_S / 2:
        return ""
    return f"a limit of {ACCEPTANCE_BLOCK_S} s ended after {took:.3f} s"


async def _code(plan: Plan, store: ControlStore) -> list[Checked]:
    """Check that the target takes the applications' scripts and function libraries."""
    acting = plan.acting(UserRole.SWITCH)
    loading = {node.where: node for node in await Endpoint(Side.TARGET, acting.target).each_node()}
    source = await Endpoint(Side.SOURCE, plan.source).any_node()

    async def tried(node: Node) -> list[Checked]:
        async with (
            await source.connect(name="exodus-smoke") as ours,
            await node.connect(name="exodus-smoke") as theirs,
            await loading[node.where].connect(name="exodus-smoke") as loads,
        ):
            return [
                await _scripts_on(store, loads),
                await _libraries_on(ours, theirs),
            ]

    asked = scripts_told(unseen(await registry.heartbeats(store, "gateway")))
    return [
        *await on_each(await Endpoint(Side.TARGET, plan.target).each_node(), tried),
        told("scripts called by digest only", asked or "none", line=asked),
    ]


async def check_libraries(plan: Plan) -> list[Checked]:
    """Check that each node of the target takes the source's function libraries.

    Each is loaded under a name of Exodus's own and removed at once.
    """
    source = await Endpoint(Side.SOURCE, plan.source).any_node()

    async def tried(node: Node) -> list[Checked]:
        async with (
            await source.connect(name="exodus-smoke") as ours,
            await node.connect(name="exodus-smoke") as theirs,
        ):
            return [await _libraries_on(ours, theirs)]

    return await on_each(await Endpoint(Side.TARGET, plan.target).each_node(), tried)


async def _scripts_on(store: ControlStore, loading: Leg) -> Checked:
    loaded: set[bytes] = set()
    refused = await load_scripts(store, loading, loaded)
    wrong = [*refused, *await _missing(loading, loaded)]
    return Checked(
        "scripts of the applications",
        not wrong,
        "; ".join(wrong[:ACCEPTANCE_NAMED]) or f"{len(loaded)} are loaded on the target",
        "EVALSHA would be answered NOSCRIPT, or with an error",
        "correct the script, or choose a target that takes it",
    )


async def _libraries_on(source: Leg, target: Leg) -> Checked:
    libraries = await compare_libraries(source, target)
    if libraries.not_told:
        return told("function libraries", libraries.not_told)
    refusals = [libraries.not_taken] if libraries.not_taken and libraries.differ else []
    if libraries.code:
        refused = await _libraries_refused(target, libraries.code)
        refusals += [f"{name}: {why}" for name, why in refused.items()]
    return Checked(
        "function libraries",
        not refusals,
        "; ".join(refusals)
        or f"{len(libraries.equal)} equal, {len(libraries.differ)} that the cutover carries",
        "FCALL would fail",
        "correct the library, or choose a target that takes it",
    )


async def _missing(target: Leg, digests: set[bytes]) -> list[str]:
    wanted = sorted(digests)
    if await why_refused(target, ("SCRIPT", "EXISTS", "0" * 40)) is not None:
        return []  # it was loaded just now
    there = await target.call("SCRIPT", "EXISTS", *wanted) if wanted else []
    return [
        f"{sha.decode()[:12]}…: not on the target"
        for sha, found in zip(wanted, there, strict=True)
        if not found
    ]


async def _libraries_refused(target: Leg, code: dict[str, bytes]) -> dict[str, str]:
    """Return why the target does not take a library: tried under a name of Exodus's own."""
    found: dict[str, str] = {}
    asked = (
        ("FUNCTION", "LOAD", "#!lua name=exodus_smoke\n"),
        ("FUNCTION", "DELETE", "exodus_smoke"),
    )
    if await why_refused(target, *asked) is not None:
        return found  # the cutover carries them, and tells what was refused
    for name, text in code.items():
        head, _, body = text.partition(b"\n")
        scratch = b"exodus_smoke_" + secrets.token_hex(4).encode()
        engine = head.split(b" ", 1)[0]
        # A server registers each function by name, so the functions of a loaded library clash.
        library = engine + b" name=" + scratch + b"\n" + body
        reply = (await target.pipeline([("FUNCTION", "LOAD", library)]))[0]
        if not isinstance(reply, ReplyError):
            await target.call("FUNCTION", "DELETE", scratch)
        elif "already exists" not in str(reply):
            found[name] = str(reply)[:200]
    return found


async def _events(plan: Plan) -> list[Checked]:
    """Check that keyspace events come, where the source sends them. A node tells of its own keys
    alone.
    """
    what = "delivery: keyspace events"
    async with await Endpoint(Side.SOURCE, plan.source).connect(name="exodus-smoke") as source:
        reply = (await source.pipeline([("CONFIG", "GET", "notify-keyspace-events")]))[0]
    if isinstance(reply, ReplyError):
        why = f"the source does not tell whether it sends them: {reply}"
        return [not_done(what, why, "let Exodus's user run CONFIG GET, or compare them yourself")]
    flags = reply[1].decode() if isinstance(reply, list) and reply else ""
    if "K" not in flags and "E" not in flags:
        return [told(what, "the source sends none")]

    async def tried(node: Node) -> list[Checked]:
        return [await _event(what, node, flags)]

    return await on_each(await Endpoint(Side.TARGET, plan.target).each_node(), tried)


async def _event(what: str, node: Node, flags: str) -> Checked:
    client = make_side_client(node.place, field="target", timeout_s=ACCEPTANCE_DELIVERY_S)
    key = f"{_SCRATCH}{node.tag}{secrets.token_hex(6)}:event"
    channel = f"__keyspace@0__:{key}" if "K" in flags else "__keyevent@0__:*"
    try:
        async with client.pubsub() as subscriber:
            await subscriber.psubscribe(channel)
            await subscriber.get_message(timeout=ACCEPTANCE_DELIVERY_S)
            await answered(client.set(key, "v", px=60_000))
            await answered(client.delete(key))
            message = await subscriber.get_message(
                ignore_subscribe_messages=True, timeout=ACCEPTANCE_DELIVERY_S
            )
    except (redis.RedisError, OSError, ExodusError) as exc:
        return Checked(what, False, str(exc), "subscribers of keyspace events get none of these")
    finally:
        await client.aclose()
    return Checked(
        what,
        message is not None,
        f"the source sends {flags}; the target sent {'one' if message else 'none'}",
        "subscribers of keyspace events get none of these",
        "exodus carry settings, or CONFIG SET notify-keyspace-events on the target",
    )
