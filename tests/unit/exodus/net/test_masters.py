"""Which master a process believes, and which connections it closes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import hiredis
import pytest

from exodus.net.clusters import NoMaster
from exodus.net.masters import Master, standing
from exodus.net.role import RoleReport, role_report
from exodus.net.sentinel import Verdict
from exodus.plan.address import Address, Service

SERVICE = Service(
    sentinels=("10.0.9.1:26379", "10.0.9.2:26379"),
    service="unit",
    username="exodus",
    address_map={"10.0.0.1:6379": "127.0.0.1:7001", "10.0.0.2": "gate"},
)
ROLE = RoleReport(True, "run", 100, "replid", "", -1)
OLD = Verdict("10.0.0.1:6379", 1, ("10.0.0.2:6379",), (), 3, 3)
NEW = replace(OLD, master="10.0.0.2:6379", config_epoch=2, replicas=())


class _Connection:
    ended = False

    def end(self) -> None:
        self.ended = True


def test_an_announced_address_is_mapped_whole_or_by_its_host() -> None:
    assert SERVICE.server("10.0.0.1:6379").place == "127.0.0.1:7001"
    assert SERVICE.server("10.0.0.2:6380").place == "gate:6380"
    assert SERVICE.server("10.0.0.3:6379").place == "10.0.0.3:6379"
    assert SERVICE.server("[::1]:6379").place == "[::1]:6379"


def test_nothing_is_known_at_first() -> None:
    with pytest.raises(NoMaster, match="not asked"):
        standing(SERVICE)
    address = Address(host="h", port=1)
    assert standing(address) is address


async def test_a_failover_ends_connections_to_the_old_master_only() -> None:
    master, old, new = Master(SERVICE), _Connection(), _Connection()
    assert not master.take(OLD, ROLE, "")
    assert master.believed is not None
    master.end_by(master.believed.address, old.end)
    assert not master.take(OLD, replace(ROLE, offset=200), "")
    assert master.take(NEW, ROLE, "")
    master.end_by(master.believed.address, new.end)
    await asyncio.sleep(0)
    assert (old.ended, new.ended) == (True, False)


async def test_the_same_server_after_two_failovers_is_another_life() -> None:
    """It was a replica meanwhile, and lost what the other master did not have."""
    master, connection = Master(SERVICE), _Connection()
    master.take(OLD, ROLE, "")
    assert master.believed is not None
    master.end_by(master.believed.address, connection.end)
    assert master.take(replace(OLD, config_epoch=3), ROLE, "")
    await asyncio.sleep(0)
    assert connection.ended


@pytest.mark.parametrize("role", [replace(ROLE, is_master=False), "Connection refused"])
def test_a_server_that_is_no_master_is_not_believed(role: RoleReport | str) -> None:
    master = Master(SERVICE)
    master.take(OLD, ROLE, "")
    assert not master.take(NEW, role, "")
    assert master.believed is not None
    assert master.believed.announced == OLD.master
    assert NEW.master in master.why


def test_what_only_a_minority_says_is_not_certain() -> None:
    master = Master(SERVICE)
    master.take(replace(OLD, answered=1), ROLE, "b: timeout")
    assert master.why == "only 1 of 3 Sentinels answer: b: timeout"
    master.take(OLD, ROLE, "")
    assert master.why == ""
    master.take(None, "", "all: timeout")
    assert (master.why, master.believed is None) == ("all: timeout", False)


def test_a_look_counts_for_longer_where_a_watch_hears_of_failovers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    master = Master(SERVICE)
    assert not master.fresh
    master.take(OLD, ROLE, "")
    assert master.fresh
    now = __import__("time").monotonic()
    monkeypatch.setattr("exodus.net.masters.time.monotonic", lambda: now + 1)
    assert not master.fresh
    master.watches = 1
    assert master.fresh
    master.doubt()
    assert not master.fresh


def test_a_role_is_read_from_the_servers_replies() -> None:
    server = b"# Server\r\nrun_id:abc\r\n"
    info = b"role:master\r\nmaster_repl_offset:7\r\nmaster_replid:x\r\nsecond_repl_offset:5\r\n"
    role = [b"master", 7, [[b"10.0.0.2", b"6379", b"6"]]]
    found = role_report(role, server, info)
    assert (found.is_master, found.run_id, found.offset) == (True, "abc", 7)
    assert (found.offset_before, found.replicas) == (5, {"10.0.0.2:6379": 6})
    assert not role_report([b"slave", b"h", 1, b"connected", 3], server, info).is_master
    refused = hiredis.ReplyError("NOPERM no")
    assert role_report(refused, server, info).is_master
    with pytest.raises(ValueError, match="NOPERM"):
        role_report(role, refused, info)
    with pytest.raises(ValueError, match="NOAUTH"):
        role_report(hiredis.ReplyError("NOAUTH"), server, info)
