"""A cluster client's application that checks itself: what it was told must be there, once, and what
it deleted must stay deleted.

Each thread has keys of its own, so it knows what the next answer must be.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException

from tests.support.clusters import ClusterBox
from tests.support.servers import DatabaseServer
from tests.support.wait import wait_until

_COUNTERS, _TOKENS = 40, 20


class ClusterApp:
    """Threads that increment counters, and set and delete tokens, at a rate together."""

    def __init__(
        self, connect: Callable[[], RedisCluster], *, threads: int = 4, per_s: float = 2_000
    ) -> None:
        self.acknowledged = 0
        self.errors: Counter[str] = Counter()
        self.violations: list[str] = []
        self.counts: dict[str, int] = {}
        self.unknown: set[str] = set()  # keys whose last write was answered by an error
        self.deleted: set[str] = set()
        self.stall_s = 0.0  # the longest time that one write took
        self._connect, self._every_s = connect, threads / per_s
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(threads)
        ]

    def _run(self, number: int) -> None:
        draw = random.Random(number)
        with self._connect() as client:
            due = time.monotonic()
            while not self._stop.is_set():
                due = max(due + self._every_s, time.monotonic() - 0.5)
                time.sleep(max(0.0, due - time.monotonic()))  # the pace of a thread
                began = time.monotonic()
                if draw.random() < 0.7:
                    self._count(client, f"app:{number}:count:{draw.randrange(_COUNTERS)}")
                else:
                    key = f"app:{number}:token:{draw.randrange(_TOKENS)}"
                    self._flip(client, key)
                self.stall_s = max(self.stall_s, time.monotonic() - began)

    def _count(self, client: RedisCluster, key: str) -> None:
        try:
            found = int(client.incr(key))
        except (redis.RedisError, RedisClusterException) as exc:
            self._failed(key, exc)
            return
        wanted = self.counts.get(key, 0) + 1
        if found != wanted and not (key in self.unknown and found == wanted + 1):
            self.violations.append(f"{key} is {found}, and not {wanted}")
        self.unknown.discard(key)
        self.counts[key] = found
        self.acknowledged += 1

    def _flip(self, client: RedisCluster, key: str) -> None:
        delete = key not in self.deleted
        try:
            if delete:
                client.delete(key)
                self.deleted.add(key)
            else:
                found = client.set(key, "here", get=True)
                if found is not None and key not in self.unknown:
                    self.violations.append(f"{key} came back after it had been deleted")
                self.deleted.discard(key)
        except (redis.RedisError, RedisClusterException) as exc:
            self._failed(key, exc)
            return
        self.unknown.discard(key)
        self.acknowledged += 1

    def _failed(self, key: str, exc: Exception) -> None:
        self.unknown.add(key)
        self.errors[type(exc).__name__] += 1

    def __enter__(self) -> ClusterApp:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_more(self, count: int) -> None:
        """Wait until so many more writes were acknowledged."""
        wanted = self.acknowledged + count
        wait_until(lambda: self.acknowledged >= wanted, within_s=60, otherwise="no write passes")

    def check(self, box: ClusterBox | DatabaseServer) -> None:
        """Compare what was acknowledged with what is there."""
        assert self.violations == []
        with box.client() as client:
            for key, count in self.counts.items():
                there = int(client.get(key) or 0)
                assert there == count or (key in self.unknown and there == count + 1), key
            for key in self.deleted - self.unknown:
                assert not client.exists(key), f"{key} is there again"
