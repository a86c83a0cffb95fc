"""Fixtures of all tests, and their order."""

from __future__ import annotations

import pytest

from tests.support.clusters import make_cluster
from tests.support.local_migration import local, modern
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

__all__ = [
    "_control",
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
    """Order the tests: the longest files first, so that no file runs alone at the end.

    A test that ends the migration of its module's stack comes last in its module.
    """
    first = {item.path: number for number, item in reversed(list(enumerate(items)))}
    items.sort(
        key=lambda item: (
            item.get_closest_marker("e2e") is None,
            item.get_closest_marker("fault") is None,
            first[item.path],
            item.get_closest_marker("last") is not None,
        )
    )
