"""Fixtures of all tests, and their order."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.support.clusters import make_cluster
from tests.support.local_migration import local, modern
from tests.support.pair_of_clusters import _pair, pair
from tests.support.script import Script
from tests.support.sentinels import (
    _source_service,
    _target_service,
    source_service,
    target_service,
)
from tests.support.servers import (
    _control,
    _redis62,
    _redis82,
    _valkey81,
    _valkey91,
    control_server,
    make_server,
    redis62,
    redis82,
    valkey81,
    valkey91,
)

# Files of whole migrations that take minutes, the longest first.
_LONGEST = (
    "test_lifecycle",
    "test_two_hosts",
    "test_operator",
    "test_tutorial",
    "test_job_queues",
    "test_roles",
    "test_clusters",
)
_BETWEEN = 4  # files of faults between two of whole migrations

__all__ = [
    "_control",
    "_pair",
    "_redis62",
    "_redis82",
    "_source_service",
    "_target_service",
    "_valkey81",
    "_valkey91",
    "control_server",
    "local",
    "make_cluster",
    "make_server",
    "modern",
    "pair",
    "redis62",
    "redis82",
    "source_service",
    "target_service",
    "valkey81",
    "valkey91",
]


@pytest.fixture(autouse=True)
def _every_script_is_played():
    """Fail where a test built a script and did not play it: such a script checks nothing."""
    Script.unplayed()
    yield
    assert not Script.unplayed(), "a Script was built, or extended, and not played"


@pytest.hookimpl(trylast=True)  # after pytest-randomly
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests: see `_files_in_order`.

    A test that ends the migration of its module's stack comes last in its module.
    """
    place = {path: number for number, path in enumerate(_files_in_order(items))}
    items.sort(key=lambda item: (place[item.path], item.get_closest_marker("last") is not None))


def _files_in_order(items: list[pytest.Item]) -> list[Path]:
    """Return the files in the order in which workers take them.

    Whole migrations use all cores, and faults mostly wait. So two files of whole migrations run
    beside files of faults, the longest first, and no file runs alone at the end.
    """
    migrations: dict[Path, None] = {}
    others: dict[Path, bool] = {}
    for item in items:
        if item.get_closest_marker("e2e") is not None:
            migrations[item.path] = None
        else:
            others[item.path] = item.get_closest_marker("fault") is None
    longest = {name: place for place, name in enumerate(_LONGEST)}
    waiting = iter(sorted(migrations, key=lambda path: longest.get(path.stem, len(longest))))
    order = list(islice(waiting, 2))
    for number, path in enumerate(sorted(others, key=lambda path: others[path]), start=1):
        order.append(path)
        if number % _BETWEEN == 0:
            order.extend(islice(waiting, 1))
    return [*order, *waiting]
