"""A migration between clusters that is compared, under a cluster client of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis.cluster import RedisCluster

from exodus.plan.address import Credentials
from exodus.plan.vocabulary import Feed, Side, UserRole
from exodus.topology.rights import UsedFeatures, rule_of, server_of
from tests.support.cluster_gateway import cluster_migration
from tests.support.clusters import ClusterBox
from tests.support.comparing import comparing
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

Box = ClusterBox | DatabaseServer


class App:
    """A cluster client of the gateway, in a thread for each request."""

    def __init__(self, local: LocalMigration) -> None:
        self._client = RedisCluster(host="127.0.0.1", port=local.port)

    async def __call__(self, text: str, key: str = "") -> Any:
        words = text.replace("{k}", key).split()
        return await asyncio.to_thread(self._client.execute_command, *words)

    async def run(self, *words: object) -> Any:
        """Send a request whose words may have spaces."""
        return await asyncio.to_thread(self._client.execute_command, *words)

    def close(self) -> None:
        self._client.close()


@asynccontextmanager
async def compared(
    sides: tuple[Box, Box], control: DatabaseServer, folder: Path, **plan: object
) -> AsyncIterator[tuple[LocalMigration, App]]:
    """A migration that is compared, and an application."""
    both = all(isinstance(side, ClusterBox) for side in sides)
    listen = {} if both else {"facade": "cluster"}
    async with (
        cluster_migration(*sides, control, folder, listen=listen, **plan) as local,
        comparing(local),
    ):
        app = await asyncio.to_thread(App, local)
        try:
            yield local, app
        finally:
            app.close()


def make_comparers(boxes: dict[Side, ClusterBox], folder: Path) -> dict[str, Credentials]:
    """Make a user for the comparer on each node, with what `exodus users --cluster` prints."""
    file = folder / "comparer"
    file.write_text("secret")
    for side, box in boxes.items():
        server, wanted = server_of(str(box.kind)), UsedFeatures(feed=Feed.TRACKING, cluster=True)
        rule = rule_of([UserRole.COMPARER], side, *server, wanted).split()
        for node in box.nodes:
            with node.client() as client:
                client.execute_command("ACL", "SETUSER", "exodus-comparer", "on", ">secret", *rule)
    login = Credentials(username="exodus-comparer", password_file=file)
    return {str(side): login for side in boxes}
