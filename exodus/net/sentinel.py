"""What the Sentinels of a service say, and which server is believed to be the master.

All Sentinels are asked at once. Each failover has a *config epoch*, given by the majority that
agreed to it, so the highest epoch is the newest word. `decide` has the rules and no I/O:

* the highest config epoch wins; among equals, the server that most Sentinels name
* an epoch lower than one that was seen before is stale, unless a majority names the same server
  and nobody names another: the service was given to the Sentinels anew

Exodus does not use `redis.asyncio.sentinel`: it believes the first Sentinel that answers, and knows
neither epochs nor an address map (docs/decisions/0019-sentinel.md).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import redis.asyncio as redis
from redis.exceptions import RedisError

from exodus.net.client import make_client
from exodus.plan.address import Address, Service, place_of
from exodus.plan.bounds import FEED_ANNOUNCED_PORT, SENTINEL_ANSWER_S


@dataclass(frozen=True)
class SentinelAnswer:
    """What one Sentinel says. Addresses are host:port, as announced."""

    sentinel: str
    master: str
    config_epoch: int
    replicas: tuple[str, ...] = ()
    down: tuple[str, ...] = ()  # replicas that do not answer this Sentinel


@dataclass(frozen=True)
class Verdict:
    """The server that is believed to be the master, and how many Sentinels say so."""

    master: str
    config_epoch: int
    replicas: tuple[str, ...]  # those that answer a Sentinel
    down: tuple[str, ...]
    answered: int
    asked: int

    @property
    def sure(self) -> bool:
        """Return whether a majority of the Sentinels answered."""
        return self.answered * 2 > self.asked


def decide(answers: Sequence[SentinelAnswer], asked: int, seen_epoch: int) -> Verdict | None:
    """Return what to believe; None: nobody answered, or all that answered are stale."""
    if not answers:
        return None
    newest = max(answer.config_epoch for answer in answers)
    named = Counter(answer.master for answer in answers if answer.config_epoch == newest)
    # Sorted, so that processes with the same answers believe the same server.
    master = max(sorted(named), key=named.__getitem__)
    if newest < seen_epoch:
        agreed = all(answer.master == master for answer in answers)
        if not agreed or len(answers) * 2 <= asked:
            return None
    believed = [each for each in answers if (each.config_epoch, each.master) == (newest, master)]
    up = {name for answer in believed for name in answer.replicas} - {master}
    down = {name for answer in believed for name in answer.down} - up - {master}
    return Verdict(master, newest, tuple(sorted(up)), tuple(sorted(down)), len(answers), asked)


class Sentinels:
    """Connections to the Sentinels of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._clients: dict[Address, redis.Redis] = {}
        self.why: dict[str, str] = {}  # Sentinel → why it gave no answer the last time

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connections."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.aclose()

    def client(self, address: Address) -> redis.Redis:
        """Return the client of one Sentinel.

        Raises:
            OperatorError: its password cannot be read.
        """
        if address not in self._clients:
            self._clients[address] = make_client(
                address, field="sentinel", timeout_s=SENTINEL_ANSWER_S, protocol=2
            )
        return self._clients[address]

    async def ask(self) -> list[SentinelAnswer]:
        """Return the answers of the Sentinels that answer within `SENTINEL_ANSWER_S`.

        Raises:
            OperatorError: a password cannot be read.
        """
        addresses = self._service.sentinel_addresses
        found = await asyncio.gather(*[self._ask(address) for address in addresses])
        self.why = {
            address.place: said
            for address, said in zip(addresses, found, strict=True)
            if isinstance(said, str)
        }
        return [answer for answer in found if isinstance(answer, SentinelAnswer)]

    async def _ask(self, address: Address) -> SentinelAnswer | str:
        client, name = self.client(address), self._service.service
        try:
            async with asyncio.timeout(SENTINEL_ANSWER_S):
                pipe = client.pipeline(transaction=False)
                pipe.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", name)
                pipe.execute_command("SENTINEL MASTER", name)
                pipe.execute_command("SENTINEL SLAVES", name)
                where, master, replicas = await pipe.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as exc:
            return str(exc) or type(exc).__name__
        if where is None:
            return f"knows no master {name!r}"
        for reply in (where, master, replicas):
            if isinstance(reply, RedisError):
                return str(reply)
        return SentinelAnswer(
            address.place,
            place_of(_text(where[0]), int(where[1])),
            int(master["config-epoch"]),
            tuple(_announced(row) for row in replicas if _is_server(row) and not _is_down(row)),
            tuple(_announced(row) for row in replicas if _is_server(row) and _is_down(row)),
        )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _announced(row: Mapping[str, Any]) -> str:
    return place_of(str(row["ip"]), int(row["port"]))


def _is_down(row: Mapping[str, Any]) -> bool:
    """Return whether a Sentinel says that a replica does not answer (not only that its connection
    ended, which is so for a moment after `Fence.kill_strays`).
    """
    return "s_down" in str(row["flags"]).split(",")


def _is_server(row: Mapping[str, Any]) -> bool:
    """Return whether a replica is a server: a change feed of Exodus poses as one."""
    return int(row["port"]) not in (0, FEED_ANNOUNCED_PORT)
