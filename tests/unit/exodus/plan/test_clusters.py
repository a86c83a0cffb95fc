"""A side of a plan that is a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from exodus.errors import OperatorError
from exodus.plan.address import Address, Cluster
from exodus.plan.migration_file import load_migration, migration_of
from exodus.plan.plan import Plan
from exodus.plan.settings import Listen
from exodus.plan.vocabulary import CopyStrategy, Cutover, Feed

CLUSTER = {
    "cluster": ["10.0.0.1:7001", "node-2.example:7001", "[2001:db8::1]:7001"],
    "username": "exodus",
    "password_env": "SECRET",
    "tls": True,
    "address_map": {"172.17.0.2:6379": "10.0.0.5:7001", "inner": "outer.example"},
}
SERVER = {"url": "redis://exodus@127.0.0.1:6380"}


def migration(**more: object) -> dict[str, object]:
    return {
        "name": "m",
        "source": CLUSTER,
        "target": SERVER,
        "control_store": "redis://127.0.0.1:6400",
        "cutover": "own",
        **more,
    }


def test_a_migration_file_may_name_nodes(tmp_path: Path) -> None:
    path = tmp_path / "migration.yaml"
    path.write_text(yaml.safe_dump(migration()))
    source = load_migration(path).plan.source
    assert isinstance(source, Cluster)
    assert source.url == (
        "rediss+cluster://exodus@10.0.0.1:7001,node-2.example:7001,[2001:db8::1]:7001"
    )
    assert [seed.place for seed in source.seeds] == list(CLUSTER["cluster"])
    assert all(seed.tls and seed.username == "exodus" for seed in source.seeds)
    plan = Plan.model_validate_json(load_migration(path).plan.model_dump_json())
    assert plan.source == source


def test_announced_addresses_are_mapped_and_named_ones_are_not() -> None:
    cluster = Cluster.model_validate({**CLUSTER, "address_map": {"10.0.0.1:7001": "1.2.3.4:1"}})
    assert cluster.server("10.0.0.1:7001").place == "1.2.3.4:1"
    assert cluster.seeds[0].place == "10.0.0.1:7001"
    mapped = Cluster.model_validate(CLUSTER)
    assert mapped.server("172.17.0.2:6379").place == "10.0.0.5:7001"
    assert mapped.server("inner:6400").place == "outer.example:6400"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({**CLUSTER, "cluster": "10.0.0.1:7001"}, "cluster is a list"),
        ({**CLUSTER, "cluster": ["10.0.0.1"]}, "no address"),
        ({**CLUSTER, "cluster": []}, "at least 1"),
        ({**CLUSTER, "cluster": ["a:1", "a:1"]}, "names one address twice"),
        ({**CLUSTER, "url": "redis://a:1"}, "has a cluster and a url"),
        ({**CLUSTER, "sentinels": ["a:1"], "service": "s"}, "has a cluster and sentinels"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(OperatorError, match=said):
        migration_of(migration(source=fields), "the file")


def test_a_url_with_another_scheme_says_what_to_write() -> None:
    with pytest.raises(OperatorError) as refused:
        Address.parse("redis+cluster://a:1,b:1", field="source")
    assert "source.cluster" in refused.value.next_step


def test_the_control_store_is_one_server() -> None:
    with pytest.raises(OperatorError, match="it names a cluster"):
        migration_of(migration(control_store=CLUSTER), "the file")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"cutover": Cutover.GATEWAY}, "cutover: gateway with source.cluster"),
        ({"strategy": CopyStrategy.NATIVE}, "strategy: native with source.cluster"),
        ({"strategy": CopyStrategy.MIGRATE}, "strategy: migrate with source.cluster"),
        ({"feed": Feed.GATEWAY}, "feed: gateway with source.cluster"),
    ],
)
def test_what_clusters_cannot_do_yet_is_refused(more: dict[str, object], said: str) -> None:
    fields = {"cutover": Cutover.OWN, **more}
    with pytest.raises(ValidationError, match=said):
        Plan(
            name="m",
            source=Cluster.model_validate(CLUSTER),
            target=Address.parse("redis://127.0.0.1:6380", field="target"),
            **fields,  # type: ignore[arg-type]
        )


def test_gateways_move_clusters_of_one_kind_of_client() -> None:
    """Two clusters, or a cluster and a server that looks like one to cluster clients."""
    cluster = Cluster.model_validate(CLUSTER)
    other = Cluster.model_validate({"cluster": ["b:1"]})
    server = Address.parse("redis://127.0.0.1:6380", field="target")
    both = Plan(name="m", source=cluster, target=other)
    assert (both.cutover, both.has_gateways, both.has_cluster) == ("gateway", True, True)
    facade = Listen.model_validate({"facade": "cluster"})
    for source, target in ((cluster, server), (server, cluster)):
        assert Plan(name="m", source=source, target=target, gateway=facade).has_gateways
        with pytest.raises(ValidationError, match=r"set gateway\.facade"):
            Plan(name="m", source=source, target=target)
    own = Plan(name="m", source=cluster, target=server, cutover=Cutover.OWN)
    assert (own.has_gateways, own.has_cluster) == (False, True)
    plain = Plan(name="m", source=server, target=Address.parse("redis://a:1", field="target"))
    assert (plain.has_gateways, plain.has_cluster) == (True, False)


@pytest.mark.parametrize(
    ("advertise", "told"),
    [(None, None), ("gw.example", None), ("gw.example:30400", 30400), ("[::1]:30400", 30400)],
)
def test_a_host_or_a_host_and_the_first_port_is_advertised(
    advertise: str | None, told: int | None
) -> None:
    assert Listen(advertise=advertise).told_port == told


@pytest.mark.parametrize("advertise", ["gw.example:x", "gw.example:65530", "gw.example:0", ":7000"])
def test_what_no_client_could_use_is_not_advertised(advertise: str) -> None:
    with pytest.raises(ValidationError, match=r"address|leaves no ports for 16 listeners"):
        Listen(advertise=advertise)
