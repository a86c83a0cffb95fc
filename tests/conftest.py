"""Fixtures of all tests, and their order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clusters import make_cluster
from tests.support.local_migration import local, modern
from tests.support.pair_of_clusters import _pair, pair
from tests.support.schedule import FewMigrations
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


# A shell starts a job in the background with SIGINT ignored, and its children inherit that. They do
# not inherit a handler.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    """A Prefect server of the module's own, which flows and tasks find."""
    from prefect.testing.utilities import prefect_test_harness  # it takes two seconds

    with prefect_test_harness(server_startup_timeout=120):
        yield


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
    """Return the files in the order in which workers take them: whole migrations, the longest
    first, then faults, and fast tests at the end.
    """
    longest = {name: place for place, name in enumerate(_LONGEST)}

    def place(item: pytest.Item) -> tuple[int, int]:
        if item.get_closest_marker("e2e") is not None:
            return 0, longest.get(item.path.stem, len(longest))
        return (1 if item.get_closest_marker("fault") is not None else 2), 0

    return list(dict.fromkeys(item.path for item in sorted(items, key=place)))


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist nobody asks
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> FewMigrations | None:
    """Run at most two whole migrations at a time: see `schedule.py`."""
    return FewMigrations(config, log) if config.getoption("dist") == "loadfile" else None
