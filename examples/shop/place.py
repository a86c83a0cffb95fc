"""Where the shop's database is: an address that may change while the shop runs. A cluster is
`redis-cluster://host:port` of one of its nodes.

As an application that reads its configuration again, the shop moves between two requests of a
connection. No request is under way then, so none is lost or done twice.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

_LOOK_S = 0.2
_CLUSTER = "redis-cluster"
_TIMEOUT_S = 60


def is_cluster(url: str) -> bool:
    """Return whether an address is one of a cluster."""
    return urlsplit(url).scheme == _CLUSTER


def connect(url: str, *, timeout_s: float | None = _TIMEOUT_S) -> redis.Redis:
    """Return a client without retries. It has one connection, or one for each node.

    A cluster's client follows MOVED and ASK, which say that nothing was written.
    """
    if not is_cluster(url):
        return redis.Redis.from_url(
            url,
            single_connection_client=timeout_s is not None,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout_s,
            socket_connect_timeout=10,
        )
    parts = urlsplit(url)
    client = redis.RedisCluster(
        host=parts.hostname,
        port=parts.port or 6379,
        username=parts.username,
        password=parts.password,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout_s,
        socket_connect_timeout=10,
    )
    return cast("redis.Redis", client)  # the commands that the shop uses are the same


class Place:
    """An address, or a file that holds the address."""

    def __init__(self, url: str, file: Path | None = None) -> None:
        self._url = url
        self._file = file
        self._looked = 0.0

    @property
    def url(self) -> str:
        """Return the address to use now."""
        now = time.monotonic()
        if self._file is not None and now - self._looked > _LOOK_S:
            self._looked = now
            self._url = self._file.read_text().strip() or self._url
        return self._url
