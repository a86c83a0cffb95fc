"""The lag probe: which keys it writes, and its percentiles."""

from __future__ import annotations

import pytest

from exodus.commands.key_slots import slot_of
from exodus.commands.slots import Shard, View
from exodus.live.lag_probe import percentile, probe_keys
from exodus.net.clusters import cluster_of
from exodus.plan.address import Address, Cluster
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Cutover


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [
        ([], 0.5, 0.0),
        ([7.0], 0.99, 7.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        (list(map(float, range(100))), 0.99, 99.0),
        ([1.0] * 99 + [5.0], 0.5, 1.0),
    ],
)
def test_the_percentile_is_one_of_the_values(
    values: list[float], share: float, wanted: float
) -> None:
    assert percentile(values, share) == wanted


def _view(*first_slots: int) -> View:
    ends = [*first_slots[1:], 16_384]
    return View(
        tuple(
            Shard(f"10.0.0.{number}:1", f"id{number}", ((first, end - 1),))
            for number, (first, end) in enumerate(zip(first_slots, ends, strict=True))
        ),
        1,
    )


def test_each_master_of_both_sides_is_on_a_way_and_keeps_its_key_while_it_takes_it() -> None:
    source = Cluster.model_validate({"cluster": ["lag-source:1"]})
    target = Cluster.model_validate({"cluster": ["lag-target:1"]})
    plan = Plan(name="m", source=source, target=target)
    cluster_of(source).view, cluster_of(target).view = _view(0, 8_000), _view(0, 4_000)
    keys = probe_keys(plan, {})
    assert set(keys) == {
        "source 10.0.0.0:1 to target 10.0.0.0:1",
        "source 10.0.0.0:1 to target 10.0.0.1:1",
        "source 10.0.0.1:1 to target 10.0.0.1:1",
    }
    assert sorted(map(slot_of, keys.values())) == [0, 4_000, 8_000]
    cluster_of(target).view = _view(0, 3_000)  # slots moved; the keys still take their ways
    assert probe_keys(plan, keys) == keys
    cluster_of(target).view = _view(0, 5_000)  # now one does not
    changed = probe_keys(plan, keys)
    assert [name for name in keys if changed[name] != keys[name]] == [
        "source 10.0.0.0:1 to target 10.0.0.1:1"
    ]
    server = Address.parse("redis://a:1", field="source")
    mixed = Plan(name="m", source=server, target=target, cutover=Cutover.OWN)
    assert set(probe_keys(mixed, {})) == {
        "source to target 10.0.0.0:1",
        "source to target 10.0.0.1:1",
    }
    single = Plan(name="m", source=server, target=Address.parse("redis://b:1", field="target"))
    assert probe_keys(single, {}) == {"": b"exodus-rehearsal:lag-probe"}
