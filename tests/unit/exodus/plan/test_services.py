"""A side behind Sentinel in the migration file."""

from __future__ import annotations

from typing import Any

import pytest

from exodus.errors import OperatorError
from exodus.plan.address import Service, split_place
from exodus.plan.migration_file import MigrationFile, migration_of
from exodus.plan.plan import Plan

SERVICE = {"sentinels": ["a:1", "[::1]:2", "c:3"], "service": "mymaster", "username": "exodus"}


def _file(source: object, **more: object) -> MigrationFile:
    servers = {"target": "redis://h:1", "control_store": "redis://h:2"}
    return migration_of({"name": "m", "source": source, **servers, **more}, "f.yaml")


def test_a_service_is_read_and_kept() -> None:
    plan = _file({**SERVICE, "address_map": {"10.0.0.1:6379": "h:7001"}}).plan
    assert isinstance(plan.source, Service)
    assert plan.source.url == "redis+sentinel://exodus@a:1,[::1]:2,c:3/mymaster"
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert [each.place for each in plan.source.sentinel_addresses] == ["a:1", "[::1]:2", "c:3"]


def test_the_logins_of_servers_and_sentinels_are_apart() -> None:
    fields = {"password_env": "DATA", "sentinel_username": "s", "sentinel_password_env": "WATCH"}
    source = _file({**SERVICE, **fields}).plan.source
    assert isinstance(source, Service)
    assert (source.server("h:1").username, source.server("h:1").password_env) == ("exodus", "DATA")
    sentinel = source.sentinel_addresses[0]
    assert (sentinel.username, sentinel.password_env) == ("s", "WATCH")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({**SERVICE, "sentinels": ["a"]}, "source.sentinels: 'a' is no address: write host:port"),
        ({**SERVICE, "sentinels": "a:1"}, "sentinels is a list"),
        ({**SERVICE, "sentinels": ["a:1", "a:1"]}, "names one address twice"),
        ({**SERVICE, "sentinels": []}, "source.sentinels"),
        ({"sentinels": ["a:1"]}, "source.service: field required"),
        ({**SERVICE, "service": "my master"}, "'my master' is no name of a master"),
        ({**SERVICE, "url": "redis://h:1"}, "source has a url and sentinels"),
        ({**SERVICE, "address_map": {"a": "b:1"}}, "host:port on both sides"),
        ({**SERVICE, "sentinel_pasword_env": "X"}, "sentinel_pasword_env: there is no such field"),
        ("redis+sentinel://a:1/m", "source.sentinels and source.service"),
    ],
)
def test_an_error_names_the_field_and_what_to_write(source: object, said: str) -> None:
    with pytest.raises(OperatorError) as caught:
        _file(source)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"strategy": "native"}, "strategy: native with source.sentinels"),
        ({"fence": {"source": "replica"}}, "fence.source: replica with source.sentinels"),
    ],
)
def test_what_sentinel_would_undo_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(OperatorError, match=said):
        _file(SERVICE, **more)


def test_migrate_needs_a_target_of_its_own_users() -> None:
    servers = {"source": "redis://h:1", "target": SERVICE, "control_store": "redis://h:2"}
    with pytest.raises(OperatorError, match=r"strategy: migrate with target\.sentinels"):
        migration_of({"name": "m", "strategy": "migrate", **servers}, "f.yaml")


def test_the_control_store_is_one_server() -> None:
    servers = {"source": "redis://h:1", "target": "redis://h:2", "control_store": SERVICE}
    with pytest.raises(OperatorError, match="control_store is one server"):
        migration_of({"name": "m", **servers}, "f.yaml")


@pytest.mark.parametrize("text", ["", "h", "h:", ":1", "h:0", "h:65536", "::1:1", "[h]:1", "h h:1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        split_place(text)
