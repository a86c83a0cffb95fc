"""Scripts that write, tried on a target that is a cluster: on scratch copies, by a user who may use
nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio.cluster import RedisCluster as AsyncCluster

from exodus.commands.key_slots import slot_of
from exodus.plan.address import Credentials
from exodus.plan.settings import RoleUser, Users
from exodus.plan.vocabulary import Side
from exodus.shadow import confinement
from exodus.shadow.causes import Cause
from exodus.shadow.findings import findings
from exodus.shadow.scratch import UNDECLARED
from exodus.shadow.scratch_cluster import TEXT_UNKNOWN
from exodus.shadow.trials import LEAVES_COPIES, NO_SCRIPT_USER
from exodus.shadow.verdicts import NO_SCRIPT, SEVERAL_SLOTS
from exodus.shadow.write_replies import NAMES, OTHER_STATE
from exodus.stack.servers import ServerKind
from tests.support.clusters import ClusterBox
from tests.support.comparing import beat_of, comparer_follows, counted, ledger, quiet, row_of
from tests.support.comparing_clusters import App, Box, compared, make_comparers
from tests.support.local_migration import LocalMigration
from tests.support.pair_of_clusters import Pair
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault

_MADE = ("shop", "shop-scripts", "exodus-comparer")
_USERS = Path(__file__).resolve().parents[2] / "docs" / "operating" / "users.md"
_RIGHTS = ("~*", "&*", "+@read", "+@write", "+@scripting", "+client|setname", "+multi", "+exec")
_COPIES = tuple(f"~{pattern}" for pattern in confinement.PATTERNS)
_MOVES = (
    "redis.call('RPUSH', KEYS[1], ARGV[1]) "
    "if redis.call('LLEN', KEYS[1]) < 3 then return redis.call('EXISTS', KEYS[2]) end "
    "return redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT')"
)
_COUNTS = "return redis.call('INCRBY', KEYS[1], ARGV[1])"
_LIBRARY = (
    "#!lua name=lib\nredis.register_function('counts', function(keys, args) "
    "return redis.call('INCRBY', keys[1], args[1] + {more}) end)\n"
    "redis.register_function('tells', function(keys) "
    "return redis.call('INCR', keys[1]) * 10 + {more} end)\n"
    "redis.register_function('turns', function(keys) {turns} "
    "return redis.call('INCR', keys[1]) end)"
)
# Of the script: why its reply is not compared, or that it is not tried
_UNDECLARED = {
    "reads": "redis.call('INCR', KEYS[1]) return redis.call('GET', '{t}other')",
    "swallows": "redis.call('INCR', KEYS[1]) redis.pcall('INCR', '{t}other') return 1",
    "derives": "redis.call('INCR', KEYS[1]) return redis.call('INCR', KEYS[1] .. ':index')",
    "replaces": "redis.call('INCR', KEYS[1]) "
    "return redis.call('SET', string.gsub(KEYS[1], 'replaces', 'stray'), 1)",
    "argument": "redis.call('INCR', KEYS[1]) return redis.call('INCR', '{t}' .. ARGV[1])",
}


@pytest.fixture(autouse=True)
def _as_before(pair: Pair) -> Iterator[None]:
    """Other tests use the clusters, too."""
    yield
    for box in pair:
        for node in box.nodes:
            with node.client() as client:
                client.execute_command("ACL", "DELUSER", *_MADE)
                client.acl_log_reset()
                client.config_set("lua-time-limit", 5_000)
        for node in box.masters():
            with node.client() as client:
                client.function_flush()


def _documented() -> list[str]:
    """Return the rights of `compare_script_user`, as the docs print them."""
    lines = _USERS.read_text().splitlines()
    words = [line.split()[3:] for line in lines if line.startswith("ACL SETUSER shop-scripts ")]
    return [word for line in words for word in line if word not in ("on", ">PASSWORD")]


def _make_users(box: Box, folder: Path) -> dict[str, object]:
    """Make the application's user and that of scripts on each node; the plan's fields."""
    secret = folder / "secret-of-users"
    secret.write_text("app-secret")
    for node in box.nodes if isinstance(box, ClusterBox) else [box]:
        with node.client() as client:
            for name, rights in (("shop", _RIGHTS), ("shop-scripts", _documented())):
                rule = ["reset", "on", ">app-secret", *rights]
                client.execute_command("ACL", "SETUSER", name, *rule)
    named = {
        field: Credentials(username=name, password_file=secret)
        for field, name in (("compare_user", "shop"), ("compare_script_user", "shop-scripts"))
    }
    return {**named, "compare_scripts": True}


@asynccontextmanager
async def _trying(
    sides: tuple[Box, Box], control: DatabaseServer, folder: Path, **plan: object
) -> AsyncIterator[tuple[LocalMigration, App]]:
    fields = {**_make_users(sides[1], folder), **plan}
    async with compared(sides, control, folder, **fields) as (local, app):
        await local.change(shadow_salt=8, shadow_scripts=True)
        await comparer_follows(local)
        yield local, app


async def _settled(local: LocalMigration, count: int) -> None:
    """Wait until so many writes have an outcome, and their keys are not written any more."""

    async def settled() -> bool:
        facts = await beat_of(local)
        rows = facts.rows.values()
        told = sum(row.get("by_error", 0) + row.get("by_reply", 0) for row in rows)
        return told >= count and not facts.keys_unsettled

    await until(settled, within_s=20, otherwise="some writes have no outcome")


async def _reason(local: LocalMigration, command: str, why: str, count: int) -> None:
    """Wait until so many requests were not compared for a reason."""

    async def told() -> bool:
        facts = await beat_of(local)
        by_error = facts.by_error.get(command, {}).get(why, 0)
        return by_error + facts.why_not_tried.get(command, {}).get(why, 0) >= count

    try:
        await until(told, within_s=20, otherwise=f"not {count} {command}: {why}")
    except AssertionError as exc:
        facts = await beat_of(local)
        raise AssertionError(exc, facts.by_error, facts.why_not_tried, facts.rows) from exc


def _left(target: Box) -> list[bytes]:
    nodes = target.masters() if isinstance(target, ClusterBox) else [target]
    found: list[bytes] = []
    for node in nodes:
        with node.client() as client:
            found += client.scan_iter(match="*{scratch.*", count=1_000)
    return found


def _refused_keys(target: ClusterBox) -> int:
    found = 0
    for node in target.masters():
        with node.client() as client:
            found += client.info("stats")["acl_access_denied_key"]
    return found


def _load(box: Box, *, more: int = 0, turns: str = "") -> None:
    """Load the library on each master."""
    library = _LIBRARY.format(more=more, turns=turns)
    for node in box.masters() if isinstance(box, ClusterBox) else [box]:
        with node.client() as client:
            client.function_load(library, replace=True)


async def test_scripts_that_write_are_compared_on_a_cluster(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """EVAL, EVALSHA, FCALL and a transaction, on every node, with the comparer's rights alone. A
    script or a function that only the target lacks is told.
    """
    comparer = RoleUser(
        **make_comparers({Side.SOURCE: pair.source, Side.TARGET: pair.target}, tmp_path)
    )
    users = Users(comparer=comparer)
    names = [f"c{number}" for number in range(12)]
    shas = set()
    for box in pair:
        _load(box)
        for node in box.masters():
            with node.client() as client:
                shas.add(client.script_load(_COUNTS))
    for node in pair.target.nodes:
        with node.client() as client:
            client.acl_log_reset()  # of the tests before
    (sha,) = shas
    async with _trying(pair, control_server, tmp_path, users=users) as (local, app):
        for name in names:
            await app(f"SET {name} 1")
        await _settled(local, len(names))
        for name in names[:4]:
            assert await app.run("EVAL", _COUNTS, 1, name, 4) == 5
        for name in names[4:8]:
            assert await app.run("EVALSHA", sha, 1, name, 4) == 5
        for name in names[8:]:
            assert await app.run("FCALL", "counts", 1, name, 4) == 5
        for command in ("EVAL", "EVALSHA", "FCALL"):
            await row_of(local, command, "by_reply", 4)
        assert await ledger(local) == []
        for node in pair.target.masters():
            with node.client() as client:
                client.script_flush()
                client.function_flush()
        await app.run("EVALSHA", sha, 1, names[0], 4)
        await row_of(local, "EVALSHA", "inconclusive")
        assert (await beat_of(local)).inconclusive == {NO_SCRIPT: 1}
        await app.run("FCALL", "counts", 1, names[8], 4)
        await row_of(local, "FCALL", "divergences")
        (row,) = await ledger(local)
        assert (row["key"], row["cause"]) == (names[8], Cause.CONFIGURATION)
    assert _left(pair.target) == []
    for node in pair.target.nodes:
        with node.client() as client:
            refused = [each for each in client.acl_log() if each["object"] != "client|no-evict"]
            assert refused == []


async def test_a_script_with_another_effect_or_reply_on_the_cluster_is_found(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """On the target one function adds one more, and another one answers one more."""
    _load(pair.source)
    _load(pair.target, more=1)
    async with _trying(pair, control_server, tmp_path) as (local, app):
        names = ["a", "b", "c"]
        for name in (*names, "told"):
            await app(f"SET {name} 1")
        await _settled(local, 4)
        for name in names:
            assert await app.run("FCALL", "counts", 1, name, 4) == 5
        await _reason(local, "FCALL", OTHER_STATE, 3)
        counts = {"command": "FCALL", **await counted(local, "FCALL")}
        (finding,) = findings([counts], [], {"FCALL": 3})
        assert finding["name"] == "FCALL effect"
        assert await ledger(local) == []
        assert await app.run("FCALL", "tells", 1, "told") == 20
        await row_of(local, "FCALL", "divergences")
        (row,) = await ledger(local)
        assert (row["key"], row["command"], row["cause"]) == ("told", "FCALL", Cause.VERSION)
        assert row["kind"] == "replies differ"
    assert _left(pair.target) == []


async def test_a_script_that_looks_at_the_names_of_its_keys_is_no_divergence(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """The names of scratch copies are others. A name that begins like the key serves some."""
    scripts = {
        "n1": "redis.call('INCR', KEYS[1]) return string.match(KEYS[1], '^n%d')",
        "n2": "redis.call('INCR', KEYS[1]) return #KEYS[1]",
        "n3": "return redis.call('SET', KEYS[1], KEYS[1])",
    }
    async with _trying(pair, control_server, tmp_path) as (local, app):
        for name in scripts:
            await app(f"SET {name} 1")
        await _settled(local, 3)
        for name, script in scripts.items():
            await app.run("EVAL", script, 1, name)
        await row_of(local, "EVAL", "by_reply")
        await _reason(local, "EVAL", NAMES, 2)
        assert await ledger(local) == []


_ASKS = (
    "#!lua name=asks\nlocal function asks(keys) "
    "return redis.call('INCR', keys[1]) * 0 + (keys[1] == 'f1' and 1 or 0) end\n"
    "redis.register_function{function_name='asks', callback=asks}"
)
# Each of one key, whose full name it knows
_KNOWS = {
    "n1": "redis.call('INCR', KEYS[1]) return KEYS[1] == 'n1' and 1 or 0",
    "n2": "return redis.call('INCRBY', KEYS[1], KEYS[1] == 'n2' and ARGV[1] or 1)",
    "n3": "#!lua flags=allow-oom\nredis.call('INCR', KEYS[1]) return KEYS[1] == 'n3' and 1 or 0",
    "n4": "local names = {n4 = 1} redis.call('INCR', KEYS[1]) return names[KEYS[1]] or 0",
}


async def test_a_script_that_knows_the_full_names_of_its_keys_is_no_divergence(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """Under every name of a copy it answers alike, and not as at the source. So it runs once more
    and sees the names of its keys; where its text is not told, nothing is confirmed.
    """
    by_sha = "redis.call('INCR', KEYS[1]) return KEYS[1] == '{}' and 1 or 0"
    shas = []
    for box in pair:
        for node in box.masters():
            with node.client() as client:
                client.function_load(_ASKS, replace=True)
                shas = [client.script_load(by_sha.format(name)) for name in ("s1", "s2")]
    async with _trying(pair, control_server, tmp_path) as (local, app):
        names = (*_KNOWS, "f1", "s1", "s2")
        for name in names:
            await app(f"SET {name} 1")
        await _settled(local, len(names))
        for name, script in _KNOWS.items():
            assert await app.run("EVAL", script, 1, name, 5) in (1, 6)
        await _reason(local, "EVAL", NAMES, len(_KNOWS))
        assert await app.run("FCALL", "asks", 1, "f1") == 1
        await _reason(local, "FCALL", NAMES, 1)
        assert await app.run("EVALSHA", shas[0], 1, "s1") == 1
        await _reason(local, "EVALSHA", NAMES, 1)
        for node in pair.target.nodes:
            with node.client() as client:
                client.execute_command("ACL", "SETUSER", "shop-scripts", "-script|show")
        assert await app.run("EVALSHA", shas[1], 1, "s2") == 1
        await _reason(local, "EVALSHA", TEXT_UNKNOWN, 1)
        assert await ledger(local) == []
    assert _left(pair.target) == []


async def test_a_script_reaches_no_key_but_its_copies(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    async with _trying(pair, control_server, tmp_path) as (local, app):
        keys = {name: f"{{t}}{name}" for name in _UNDECLARED}
        for key in (*keys.values(), "{t}other"):
            await app(f"SET {key} 1")
        await _settled(local, len(keys) + 1)

        async def copied() -> bool:
            with pair.target.client() as client:
                return client.get("{t}other") == b"1"

        await until(copied, within_s=10, otherwise="the key was not copied")
        for name, script in _UNDECLARED.items():
            # Past the journal: what the copy has then comes from a trial.
            with pair.source.client() as client:
                before = client.get("{t}other")
            await app.run("EVAL", script, 1, keys[name], "other")
            with pair.source.client() as client:
                client.set("{t}other", before)
        await _reason(local, "EVAL", UNDECLARED, len(_UNDECLARED))
        again = next(iter(_UNDECLARED))
        await app.run("EVAL", _UNDECLARED[again], 1, keys[again], "other")
        await _reason(local, "EVAL", UNDECLARED, len(_UNDECLARED) + 1)
        await app.run("EVAL", _UNDECLARED[again], 1, keys[again], "other")
        await _reason(local, "EVAL", UNDECLARED, len(_UNDECLARED) + 2)
        refused = _refused_keys(pair.target)
        await app.run("EVAL", _UNDECLARED[again], 1, keys[again], "other")
        await _reason(local, "EVAL", UNDECLARED, len(_UNDECLARED) + 3)
        assert _refused_keys(pair.target) == refused  # left out after three times
        await quiet(local)
        rows = [row for row in await ledger(local) if row["command"] == "EVAL"]
        assert rows == []
        with pair.target.client() as client:
            assert client.get("{t}other") == b"1"
    assert _left(pair.target) == []


async def test_what_a_script_is_not_tried_for_is_counted(
    pair: Pair, redis82: DatabaseServer, control_server: DatabaseServer, tmp_path: Path
) -> None:
    """Keys of several slots, a key that the application's user may not use, and rights of the user
    of scripts that reach beyond the copies, or not to them.
    """

    def of_users(*rule: str, user: str = "shop-scripts") -> None:
        for node in pair.target.nodes:
            with node.client() as client:
                client.execute_command("ACL", "SETUSER", user, *rule)

    async with _trying((redis82, pair.target), control_server, tmp_path) as (local, app):
        plain = local.app()
        await plain.eval("return redis.call('MSET', KEYS[1], 1, KEYS[2], 2)", 2, "a", "b")
        await _reason(local, "EVAL", SEVERAL_SLOTS, 1)
        for rule, cure, why in (
            (["+flushall"], ["-flushall"], "may run FLUSHALL: a script could leave its copies"),
            (["+keys"], ["-keys"], "may run KEYS: a script could leave its copies"),
            (["~c*"], ["resetkeys", *_COPIES], confinement.OTHER_KEYS[20:]),
            (["resetkeys"], _COPIES, confinement.NO_COPIES[20:]),
        ):
            of_users(*rule)
            await app.run("EVAL", _COUNTS, 1, "c", 4)
            await _reason(local, "EVAL", f"compare_script_user {why}", 1)
            of_users(*cure)
        before = (await counted(local, "EVAL")).get("equal", 0)
        await app.run("EVAL", _COUNTS, 1, "c", 4)
        await row_of(local, "EVAL", "equal", before + 1)
        assert await ledger(local) == []
        # It swallows the refusal: its reply tells nothing of it.
        await app.run("EVAL", "redis.pcall('FLUSHDB') return redis.call('INCR', KEYS[1])", 1, "z")
        await _reason(local, "EVAL", LEAVES_COPIES, 1)
        of_users("resetkeys", "~c*", user="shop")
        await app.run("EVAL", _COUNTS, 1, "d", 4)
        await row_of(local, "EVAL", "divergences")
        (row,) = await ledger(local)
        assert (row["key"], row["cause"]) == ("d", Cause.PERMISSION)
    assert _left(pair.target) == []


async def test_a_target_that_does_not_tell_what_it_refuses_is_tried_no_script(
    redis82: DatabaseServer, control_server: DatabaseServer, tmp_path: Path
) -> None:
    target = ClusterBox(ServerKind.REDIS_62, tmp_path / "target", masters=2)
    try:
        sides = redis82, target
        async with _trying(sides, control_server, tmp_path) as (local, app):
            await app.run("EVAL", _COUNTS, 1, "c", 4)
            await _reason(local, "EVAL", confinement.NOT_TOLD, 1)
            for node in target.masters():
                with node.client() as client:
                    assert "cmdstat_incrby" not in client.info("commandstats")
    finally:
        target.close()


async def test_without_a_user_of_its_own_no_script_that_writes_is_tried(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    async with _trying(pair, control_server, tmp_path, compare_script_user=None) as (local, app):
        await app.run("EVAL", _COUNTS, 1, "c", 4)
        await _reason(local, "EVAL", NO_SCRIPT_USER, 1)


async def _calls(local: LocalMigration, number: int, sha: str, stop: asyncio.Event) -> int:
    count = 0
    async with AsyncCluster(host="127.0.0.1", port=local.port) as app:
        while not stop.is_set():
            key = f"{number}:{count % 40}"
            await app.eval(_COUNTS, 1, f"e{key}", 1)
            await app.evalsha(sha, 1, f"s{key}", 1)
            await app.execute_command("FCALL", "counts", 1, f"f{key}", 1)
            await app.eval(_MOVES, 2, f"{{m{key}}}a", f"{{m{key}}}b", count)
            await app.incr(f"e{key}")
            count += 1
            await asyncio.sleep(0.05)
    return count


async def test_nothing_is_confirmed_without_a_defect_through_a_reshard_of_the_target(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    shas = set()
    for box in pair:
        _load(box)
        for node in box.masters():
            with node.client() as client:
                shas.add(client.script_load(_COUNTS))
    stop = asyncio.Event()
    async with _trying(pair, control_server, tmp_path) as (local, _):
        calling = [asyncio.create_task(_calls(local, number, *shas, stop)) for number in range(3)]
        for count, key in enumerate(("e0:1", "f1:2", "s2:3", "m0:4", "e1:5", "f2:6"), 1):
            await row_of(local, "EVAL", "by_reply", 4 * count)
            owner, slot = pair.target.master_of(key), slot_of(key.encode())
            other = next(node for node in pair.target.masters() if node is not owner)
            await asyncio.to_thread(pair.target.reshard, range(slot, slot + 1), other)
            await row_of(local, "EVAL", "by_reply", 4 * count + 2)
            await asyncio.to_thread(pair.target.reshard, range(slot, slot + 1), owner)
        await row_of(local, "EVAL", "by_reply", 40)
        stop.set()
        await asyncio.gather(*calling)
        await quiet(local)
        assert await ledger(local) == []
        for command in ("EVAL", "EVALSHA", "FCALL"):
            row = await counted(local, command)
            assert row["equal"] > 20, row
            assert row["by_reply"] > 10, row
        facts = await beat_of(local)
        others = {why for reasons in facts.by_error.values() for why in reasons}
        assert not others & {NAMES, OTHER_STATE}, facts.by_error
    assert _left(pair.target) == []


async def test_a_script_that_does_not_end_is_ended_on_its_node(
    pair: Pair, control_server: DatabaseServer, tmp_path: Path
) -> None:
    _load(pair.source)
    _load(pair.target, turns="while true do end")
    for node in pair.target.nodes:
        with node.client() as client:
            client.config_set("lua-time-limit", 200)
    async with _trying(pair, control_server, tmp_path) as (local, app):
        await app("SET k 1")
        await row_of(local, "SET", "compared")
        with pair.target.patient():
            await app.run("FCALL", "turns", 1, "k")
            await row_of(local, "FCALL", "too_slow")
            await app("GET k")
            await row_of(local, "GET", "equal")
            await app.run("FCALL", "turns", 1, "k")
            await row_of(local, "FCALL", "not_tried")
            await app("SET k 2")  # its trial removes the copy that the script had
            await row_of(local, "SET", "equal", 2)
        assert await ledger(local) == []

    def answers() -> bool:
        with pair.target.client() as client:
            return client.set("probe", 1)

    assert await asyncio.to_thread(answers)
    assert _left(pair.target) == []
