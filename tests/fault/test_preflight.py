"""Wrong input is refused with a clear error before anything is changed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from exodus.errors import ExodusError, OperatorError, SourceError
from exodus.plan.address import Address
from exodus.plan.migration_file import load_migration
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Feed, Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from exodus.topology.pair_checks import check_pair, raise_if_fatal
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault
_SIDES = "name: a\nsource: redis://h:1\ntarget: redis://h:2\ncontrol_store: redis://h:3\n"


async def _check(source: Address, target: Address, **plan: object) -> None:
    made = Plan(name="check", source=source, target=target, **plan)  # type: ignore[arg-type]
    raise_if_fatal(
        await check_pair(Endpoint(Side.SOURCE, source), Endpoint(Side.TARGET, target), made)
    )


async def test_a_good_pair_passes_and_nothing_is_changed(
    redis62: DatabaseServer, valkey91: DatabaseServer
) -> None:
    await _check(redis62.address(), valkey91.address())
    assert redis62.client().dbsize() == 0
    assert valkey91.client().dbsize() == 0


async def test_the_same_server_under_another_name(redis62: DatabaseServer) -> None:
    with pytest.raises(OperatorError, match="is the source"):
        await _check(redis62.address(), redis62.address().model_copy(update={"host": "localhost"}))


async def test_a_target_that_holds_keys(redis62: DatabaseServer, valkey91: DatabaseServer) -> None:
    valkey91.client().set("foreign", 1)
    with pytest.raises(OperatorError, match="holds 1 keys") as caught:
        await _check(redis62.address(), valkey91.address())
    assert "allow_nonempty" in caught.value.next_step
    await _check(redis62.address(), valkey91.address(), allow_nonempty=True)


async def test_a_wrong_password(
    redis62: DatabaseServer, valkey91: DatabaseServer, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-password\n")
    with pytest.raises(OperatorError, match="refuses the login") as caught:
        await _check(
            redis62.address().model_copy(update={"password_file": wrong}), valkey91.address()
        )
    assert "not-the-password" not in str(caught.value)


async def test_a_server_that_does_not_answer(valkey91: DatabaseServer) -> None:
    with pytest.raises(SourceError, match="failed"):
        await _check(Address(host="127.0.0.1", port=1), valkey91.address())


async def test_a_source_that_evicts_is_told_where_the_feed_does_not_see_it(
    make_server, valkey91: DatabaseServer
) -> None:
    source = make_server(ServerKind.REDIS_62, maxmemory="100mb", maxmemory_policy="volatile-lru")
    ends = Endpoint(Side.SOURCE, source.address()), Endpoint(Side.TARGET, valkey91.address())
    for feed, warned in ((Feed.GATEWAY, True), (Feed.TRACKING, False)):
        plan = Plan(name="check", source=source.address(), target=valkey91.address(), feed=feed)
        found = [
            finding.severity
            for finding in await check_pair(*ends, plan)
            if finding.check == "eviction on the source"
        ]
        assert found == ["warning"] * warned


async def test_a_target_too_small(make_server, redis62: DatabaseServer) -> None:
    small = make_server(ServerKind.VALKEY_91, maxmemory="2mb")
    redis62.client().set("big", "x" * 4_000_000)
    with pytest.raises(OperatorError, match="maxmemory"):
        await _check(redis62.address(), small.address())


async def test_an_older_target_that_lacks_a_type(
    redis82: DatabaseServer, redis62: DatabaseServer
) -> None:
    client = redis82.client()
    client.hset("h", mapping={"a": 1})
    # Payloads do not fit, but every key can be copied by type
    await _check(redis82.address(), redis62.address())
    client.execute_command("HPEXPIRE", "h", 3_600_000, "FIELDS", 1, "a")
    with pytest.raises(OperatorError, match="hash field TTLs"):
        await _check(redis82.address(), redis62.address())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "name: a\nsource: http://h:1\ntarget: redis://h:2\ncontrol_store: redis://h:3\n",
            ["source", "http", "redis://"],
        ),
        (
            "name: a\nsource: redis://h:99999\ntarget: redis://h:2\ncontrol_store: redis://h:3\n",
            ["source", "port"],
        ),
        (
            "name: a\nsource: redis://h:1/4\ntarget: redis://h:2\ncontrol_store: redis://h:3\n",
            ["source", "/4", "database"],
        ),
        ("name: a\ntarget: redis://h:2\ncontrol_store: redis://h:3\n", ["source is missing"]),
        (
            "name: A b\nsource: redis://h:1\ntarget: redis://h:2\ncontrol_store: redis://h:3\n",
            ["name", "A b"],
        ),
        (
            "name: a\nsource: redis://h:1\ntarget: redis://h:2\ncontrol_store: "
            "redis://h:3\nslices: 6\n",
            ["slices", "6", "power of two"],
        ),
        (
            f"{_SIDES}logins: [{{user: shop, password_file: a}}]\n",
            ["logins", "shop", "target_password_env"],
        ),
        (
            f"{_SIDES}logins: [{{user: shop, target_password_file: b}}]\n",
            ["logins", "shop", "nobody else"],
        ),
        (
            "name: a\nsource: redis://h:1\ntarget: redis://h:2\ncontrol_store: "
            "redis://h:3\nspeed: 9\n",
            ["speed"],
        ),
        ("- a\n", ["mapping"]),
        ("a: [\n", ["YAML"]),
    ],
)
def test_a_migration_file_that_cannot_be(tmp_path: Path, text: str, words: list[str]) -> None:
    """The message names the field, the value and the remedy."""
    path = tmp_path / "migration.yaml"
    path.write_text(text)
    with pytest.raises(ExodusError) as caught:
        load_migration(path)
    assert caught.value.exit_status == 2
    for word in words:
        assert word in str(caught.value)
    assert caught.value.next_step


def test_a_password_is_in_no_repr_and_no_dump(tmp_path: Path) -> None:
    address = Address.parse("redis://u:hunter2@h:1", field="source")
    plan = Plan(name="p", source=address, target=address)
    for shown in (repr(address), address.url, plan.model_dump_json(), repr(plan), str(plan)):
        assert "hunter2" not in shown


async def test_facts_are_the_same_however_many_ask_at_once(redis62: DatabaseServer) -> None:
    """Before, one process's DUMP met another one's DEL. Live sync then copied everything type by
    type, four times slower.
    """
    node = await Endpoint(Side.SOURCE, redis62.address()).any_node()
    found = await asyncio.gather(*[node.facts() for _ in range(30)])
    assert {facts.payload_version for facts in found} == {9}


@pytest.mark.parametrize(
    "kind", [ServerKind.REDIS_62, ServerKind.REDIS_82, ServerKind.VALKEY_81, ServerKind.VALKEY_91]
)
async def test_the_payload_version_is_known_without_a_key_whatever_the_user_may(
    make_server, kind: ServerKind
) -> None:
    server = make_server(kind)
    with server.client() as client:
        client.set("k", 1)
        wanted = int.from_bytes(client.dump("k")[-10:-8], "little")
        for rules, found in (([], wanted), (["-function"], wanted), (["-dump"], None)):
            client.execute_command(
                "ACL",
                "SETUSER",
                "exodus",
                "+@all",
                *([] if kind is ServerKind.REDIS_62 and rules == ["-function"] else rules),
            )
            facts = await Endpoint(Side.SOURCE, server.address()).facts()
            assert facts.payload_version == found
