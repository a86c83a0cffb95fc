"""The checks of a service behind Sentinel, each seen to fail."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from exodus.control.store import ControlStore
from exodus.cutover.fence import Fence
from exodus.cutover.rehearsal_report import changed, fingerprint_of_side
from exodus.cutover.topology_check import (
    check_replicas_have,
    check_unchanged,
    look_at_servers,
)
from exodus.errors import CutoverAborted, DecisionRefused, SourceError
from exodus.net.leg import Leg
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.pair_checks import Finding
from exodus.topology.permits import try_rights
from exodus.topology.rights import UsedFeatures, UserRole, rule_of, server_of
from exodus.topology.service_checks import check_services
from tests.support.sentinels import ServiceBox
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


def _plan(box: ServiceBox, target: DatabaseServer, **more: object) -> Plan:
    return Plan(name="checked", source=box.address(**more), target=target.address())


def _severities(found: list[Finding]) -> list[str]:
    return [each.severity for each in found]


async def test_what_is_right_and_what_is_not(
    source_service: ServiceBox, valkey91: DatabaseServer
) -> None:
    master, (replica,) = source_service.master(), source_service.replicas()
    found = await check_services(_plan(source_service, valkey91))
    assert _severities(found) == ["ok", "ok"]
    assert f"master 127.0.0.1:{master.port}, replicas 127.0.0.1:{replica.port}" in found[0].what

    with replica.client() as client:
        client.config_set("replica-read-only", "no")
        found = await check_services(_plan(source_service, valkey91))
        client.config_set("replica-read-only", "yes")
    assert "takes writes as a replica" in found[1].what

    plan = _plan(source_service, valkey91)
    wrong = plan.source.model_copy(update={"service": "nobody"})
    (fatal,) = await check_services(plan.model_copy(update={"source": wrong}))
    assert (fatal.severity, "knows no master 'nobody'" in fatal.why) == ("fatal", True)

    few = plan.source.model_copy(update={"sentinels": plan.source.sentinels[:1]})  # type: ignore[union-attr]
    found = await check_services(plan.model_copy(update={"source": few}))
    assert "name all Sentinels in source.sentinels, 3 at least" in found[1].next_step


async def test_a_replica_that_exodus_does_not_reach_is_named_with_the_remedy(
    source_service: ServiceBox, valkey91: DatabaseServer, control_server: DatabaseServer
) -> None:
    """In the checks, and by the fence."""
    (replica,) = source_service.replicas()
    plan = _plan(source_service, valkey91, address_map={f"127.0.0.1:{replica.port}": "127.0.0.1:1"})
    found = await check_services(plan)
    assert _severities(found) == ["ok", "fatal"]
    assert "address_map" in found[1].next_step
    async with await ControlStore.connect(control_server.address(), plan.name) as store:
        await store.save_plan(plan)
        async with Fence(store, Side.SOURCE, plan) as fence:
            with pytest.raises(DecisionRefused, match=r"on its replica 127\.0\.0\.1:1"):
                await fence.check_possible()


async def test_a_replica_without_exodus_rights_cannot_be_fenced(
    source_service: ServiceBox, valkey91: DatabaseServer, control_server: DatabaseServer
) -> None:
    (replica,) = source_service.replicas()
    plan = _plan(source_service, valkey91)
    with replica.client() as client:
        client.execute_command("ACL", "SETUSER", "exodus", "-acl")
    try:
        async with await ControlStore.connect(control_server.address(), plan.name) as store:
            await store.save_plan(plan)
            async with Fence(store, Side.SOURCE, plan) as fence:
                with pytest.raises(DecisionRefused, match="on its replica") as caught:
                    await fence.check_possible()
        assert "NOPERM" in caught.value.why or "no permissions" in caught.value.why
    finally:
        replica.kill()
        replica.start()
        source_service.follow(replica)


async def test_a_fence_that_is_lifted_is_not_raised_again(
    source_service: ServiceBox,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gateway that keeps the fence up acts between the master and the replica: its right has
    ended. It would leave a fence behind that nobody knows of.
    """
    plan = _plan(source_service, valkey91)
    async with await ControlStore.connect(control_server.address(), plan.name) as store:
        await store.save_plan(plan)
        async with (
            Fence(store, Side.SOURCE, plan) as fence,
            Fence(store, Side.SOURCE, plan) as other,
        ):
            await fence.prepare("s1")
            await fence.raise_()
            assert all(map(DatabaseServer.fenced, source_service.nodes))
            record = await fence.record()
            assert record is not None
            change, kept_up = fence._replicas.change, []

            async def beside_a_gateway(*of: object) -> bool:
                await other.keep_raised(record)
                kept_up.append(True)
                return await change(*of)  # type: ignore[arg-type]

            monkeypatch.setattr(fence._replicas, "change", beside_a_gateway)
            await fence.lower(record)
            assert kept_up
            assert await fence.record() is None
    assert not any(map(DatabaseServer.fenced, source_service.nodes))


async def test_a_replica_that_is_behind_keeps_the_fences_record(
    source_service: ServiceBox, valkey91: DatabaseServer, control_server: DatabaseServer
) -> None:
    """Its rules are given back when it is in step again."""
    plan = _plan(source_service, valkey91)
    (replica,) = source_service.replicas()
    async with await ControlStore.connect(control_server.address(), plan.name) as store:
        await store.save_plan(plan)
        async with Fence(store, Side.SOURCE, plan) as fence:
            await fence.prepare("s1")
            await fence.raise_()
            with replica.client() as client:
                client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")  # its master's, too
            record = await fence.record()
            assert record is not None
            with pytest.raises(SourceError, match="could not be lifted"):
                await fence.lower(record)
            assert [source_service.master().fenced(), replica.fenced()] == [False, True]
            with replica.client() as client:
                client.execute_command("CLIENT", "UNPAUSE")
            record = await fence.record()
            assert record is not None
            await fence.lower(record)
            assert await fence.record() is None
    assert not any(map(DatabaseServer.fenced, source_service.nodes))


async def test_what_changed_under_a_switch_gives_it_up(
    source_service: ServiceBox, valkey91: DatabaseServer
) -> None:
    plan = _plan(source_service, valkey91)
    standing = await look_at_servers(plan)
    servers = {f"127.0.0.1:{node.port}" for node in source_service.nodes}
    await check_unchanged(plan, standing, Side.SOURCE, servers)
    with pytest.raises(CutoverAborted, match="prepared for") as caught:
        await check_unchanged(plan, standing, Side.SOURCE, set(standing[Side.SOURCE].masters))
    assert "appeared and is not fenced" in caught.value.why
    with pytest.raises(CutoverAborted) as caught:
        await check_unchanged(plan, {}, Side.SOURCE, servers)
    assert "there was a failover" in caught.value.why


async def test_a_failover_voids_no_rehearsal(source_service: ServiceBox) -> None:
    """Port and folder belong to a server; every other setting belongs to the service."""
    prints = []
    for node in source_service.nodes:
        async with await Leg.connect(node.address(), Side.SOURCE) as leg:
            leg.place = source_service.address()
            prints.append(await fingerprint_of_side(leg))
    assert changed(*prints) == []
    async with await Leg.connect(source_service.address(), Side.SOURCE) as leg:
        await leg.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        now = await fingerprint_of_side(leg)
        await leg.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert "maxmemory-policy" in str(changed(prints[0], now))


async def test_a_replica_of_the_new_side_must_have_all_keys(
    source_service: ServiceBox, valkey91: DatabaseServer
) -> None:
    plan = _plan(source_service, valkey91)
    (replica,) = source_service.replicas()
    await look_at_servers(plan)
    async with await Leg.connect(plan.source, Side.SOURCE) as leg:
        await leg.call("SET", "k", 1)
        assert await check_replicas_have(plan, Side.SOURCE, leg, 5) == 1
        replica.server.started.process.send_signal(signal.SIGSTOP)
        try:
            await leg.call("SET", "k", 2)
            with pytest.raises(
                CutoverAborted, match=r"no replica of .* has all that was copied there"
            ):
                await check_replicas_have(plan, Side.SOURCE, leg, 0.1)
        finally:
            replica.resume()
    assert await check_replicas_have(plan, Side.TARGET, leg, 5) is None


async def test_the_rights_that_a_service_needs_are_tried(
    source_service: ServiceBox, valkey91: DatabaseServer, tmp_path: Path
) -> None:
    """A user with exactly the printed rights passes. Without one of them, the checks name it."""
    file = tmp_path / "password"
    file.write_text("secret")
    server = server_of("redis-6.2")
    rule = rule_of(UserRole, Side.SOURCE, *server, UsedFeatures(sentinel=True)).split()
    plan = _plan(source_service, valkey91)
    login = {"username": "exodus-rights", "password_file": file}
    plan = plan.model_copy(update={"source": plan.source.model_copy(update=login)})
    for node in source_service.nodes:
        with node.client() as client:
            client.execute_command("ACL", "SETUSER", "exodus-rights", "on", ">secret", *rule)
    assert await try_rights(plan, Side.SOURCE, *server) == []
    assert _severities(await check_services(plan)) == ["ok", "ok"]
    with source_service.client() as client:
        client.execute_command("ACL", "SETUSER", "exodus-rights", "-wait")
    refused = await try_rights(plan, Side.SOURCE, *server)
    assert [each.command for each in refused] == ["wait"]
