"""Two clusters that tests share: what a test changes, it puts back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from exodus.stack.servers import ServerKind
from tests.support.clusters import ClusterBox
from tests.support.servers import DatabaseServer


class Pair(NamedTuple):
    """Source and target."""

    source: ClusterBox
    target: ClusterBox

    def empty(self) -> None:
        """Remove all keys."""
        for node in (*self.source.masters(), *self.target.masters()):
            with node.client() as client:
                client.flushall()


@contextmanager
def pair_of_clusters(folder: Path) -> Iterator[Pair]:
    """Three masters of Valkey 8.1, and two of Valkey 9.1 with a replica each."""
    source = ClusterBox(ServerKind.VALKEY_81, folder / "source", masters=3)
    try:
        target = ClusterBox(ServerKind.VALKEY_91, folder / "target", masters=2, replicas=1)
    except BaseException:
        source.close()
        raise
    try:
        yield Pair(source, target)
    finally:
        source.close()
        target.close()


@contextmanager
def setting(node: DatabaseServer, name: str, value: str) -> Iterator[None]:
    """Give one node another setting meanwhile."""
    with node.client(decode_responses=True) as client:
        before = client.config_get(name)[name]
        client.config_set(name, value)
        try:
            yield
        finally:
            client.config_set(name, before)


@pytest.fixture(scope="session")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair_of_clusters(tmp_path_factory.mktemp("pair")) as found:
        yield found


@pytest.fixture
def pair(_pair: Pair) -> Pair:
    """Return the two clusters, without keys."""
    _pair.empty()
    return _pair
