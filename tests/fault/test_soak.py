"""Writes under random kills of clients, workers and the control store: in the end the journal has
whatever the source executed.

Every write makes a key of its own, and nothing deletes keys. So the keys of the source are all that
it ever executed, acknowledged or not.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import psutil
import pytest
from redis.exceptions import RedisError

from exodus.control.changes import parse_entries
from exodus.control.registry import heartbeats
from exodus.net.client import answered
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode, encode_many
from exodus.stack.servers import ServerKind
from tests.support.full import FULL
from tests.support.local_migration import LocalMigration
from tests.support.process import GatewayProcess
from tests.support.wait import until

pytestmark = pytest.mark.fault
SOAK_S = float(os.environ.get("SOAK_S") or (600 if FULL else 7))
RSS_BYTES_MAX = 160 * 1024 * 1024  # of a worker, whatever it went through


class _Clients:
    """Applications that write, lose their connection now and then, and come back."""

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.acknowledged: set[bytes] = set()
        self.stop = asyncio.Event()
        self.draw = random.Random(seed)

    async def write(self, name: int) -> None:
        number = 0
        while not self.stop.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            try:
                for _ in range(self.draw.randrange(1, 120)):
                    keys = [
                        b"s:%d:%d" % (name, number + each)
                        for each in range(self.draw.choice((1, 1, 8)))
                    ]
                    number += len(keys)
                    requests = [("SET", key, number) for key in keys]
                    if self.draw.random() < 0.2:
                        writer.write(encode("MULTI") + encode_many(requests) + encode("EXEC"))
                        wanted = (
                            len(b"+OK\r\n")
                            + len(keys) * len(b"+QUEUED\r\n")
                            + len(b"*%d\r\n" % len(keys))
                            + len(keys) * 5
                        )
                    else:
                        writer.write(encode_many(requests))
                        wanted = 5 * len(keys)
                    await asyncio.wait_for(reader.readexactly(wanted), 20)
                    self.acknowledged.update(keys)
                    await asyncio.sleep(0.002)
                # Disconnect without waiting for the answer
                writer.write(encode("SET", b"s:%d:cut:%d" % (name, number), 1))
            except (OSError, asyncio.IncompleteReadError):
                pass  # the source's keys tell which writes in flight were executed
            writer.transport.abort()


class _Journal:
    """The journal's keys, read page by page: in one piece it would be too much for one reply."""

    def __init__(self, local: LocalMigration) -> None:
        self._local = local
        self._at = dict.fromkeys(range(local.plan.partitions), b"-")
        self.keys: set[bytes] = set()

    async def read_on(self) -> None:
        """Up to its present end."""
        client, names = self._local.store.client, self._local.store.keys
        for partition in self._at:
            while entries := await answered(
                client.xrange(names.journal(partition), min=self._at[partition], count=2000)
            ):
                changes = parse_entries(entries)
                self.keys.update(key for _, key in changes.keys)
                self._at[partition] = b"(" + entries[-1][0]


async def test_everything_the_source_executed_is_journalled(
    redis62, valkey91, make_server, tmp_path: Path
) -> None:
    control = make_server(ServerKind.VALKEY_91, appendonly="yes")
    local = LocalMigration(redis62, valkey91, control, tmp_path)
    await local.open()
    await local.change(journal="all")
    gateway = GatewayProcess(local, "--workers", "2")
    clients = _Clients(local.port, 1)
    draw = random.Random(2)
    try:
        gateway.wait_said("listens on", times=2)
        writing = [asyncio.create_task(clients.write(name)) for name in range(6)]
        loop = asyncio.get_running_loop()
        ends = loop.time() + SOAK_S
        kills, outages = 0, 0
        while loop.time() < ends:
            await asyncio.sleep(draw.uniform(0.5, 2.5) * (1 if SOAK_S < 60 else 3))
            if kills > outages:
                control.kill()
                await asyncio.sleep(draw.uniform(0.2, 1.5))
                control.start()
                outages += 1
            else:
                victim = draw.choice(psutil.Process(gateway.started.process.pid).children())
                victim.send_signal(signal.SIGKILL)
                kills += 1
        clients.stop.set()
        await asyncio.gather(*writing)
        source = local.servers[Side.SOURCE].client()
        executed = set(source.scan_iter(b"s:*", count=5000))

        seen = _Journal(local)

        async def complete() -> bool:
            try:
                await seen.read_on()
            except (OSError, RedisError):
                return False  # the store is on its way back
            return executed <= seen.keys

        try:
            await until(
                complete,
                within_s=30 + SOAK_S / 6,
                otherwise=f"writes are missing after {kills} kills and {outages} outages",
            )
        except AssertionError as exc:
            missing = executed - seen.keys
            raise AssertionError(
                f"{exc}: {len(missing)} of {len(executed)}, like {sorted(missing)[:5]}"
            ) from None
        assert kills
        assert outages
        assert len(executed) > 100
        assert clients.acknowledged <= executed, "an acknowledged write is not in the source"
        for worker in psutil.Process(gateway.started.process.pid).children():
            assert worker.memory_info().rss < RSS_BYTES_MAX
        assert {beat.process for beat in await heartbeats(local.store, "gateway")} == {
            "gw-0",
            "gw-1",
        }
        assert not await local.store.client.hgetall(local.store.keys.gap)
    finally:
        gateway.end()
        await local.close()
