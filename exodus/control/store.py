"""A connection to one migration's part of the control store. `exodus/control/schema.py` lists its
keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

import orjson
import redis.asyncio as redis
from redis.exceptions import AuthenticationError, RedisError

from exodus.control.phases import PhaseState
from exodus.control.schema import Keys
from exodus.errors import ControlStoreError, OperatorError
from exodus.net.client import answered, make_client
from exodus.plan.address import Address
from exodus.plan.bounds import CONNECT_TIMEOUT_S
from exodus.plan.plan import Plan

Json = dict[str, Any]


class ControlStore:
    """A connection to one migration's part of the control store."""

    def __init__(self, client: redis.Redis, migration: str, address: Address) -> None:
        self.client = client
        self.migration = migration
        self.address = address
        self.keys = Keys(migration)

    @classmethod
    async def connect(
        cls, address: Address, migration: str, *, timeout_s: float = CONNECT_TIMEOUT_S
    ) -> Self:
        """Connect and prove that the store answers.

        Raises:
            ControlStoreError: it does not answer.
            OperatorError: it refuses the credentials.
        """
        client = make_client(address, field="control_store", timeout_s=timeout_s)
        try:
            await answered(client.ping())
        except AuthenticationError as exc:
            await client.aclose()
            raise OperatorError(
                f"control_store: {address.url} refuses the credentials",
                why=str(exc),
                next_step="check control_store's user and password (password_env, password_file)",
            ) from exc
        except (RedisError, OSError) as exc:
            await client.aclose()
            raise ControlStoreError(
                f"the control store {address.url} does not answer",
                why=str(exc) or type(exc).__name__,
                next_step="start it, or correct control_store in the migration file; applications "
                "are not affected",
            ) from exc
        return cls(client, migration, address)

    async def close(self) -> None:
        """Give the connections back."""
        await self.client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- plan, reports, phases: small JSON documents ---
    async def save_plan(self, plan: Plan) -> None:
        """Register the migration."""
        await answered(self.client.set(self.keys.plan, plan.model_dump_json()))

    async def plan(self) -> Plan:
        """Return the registered plan.

        Raises:
            OperatorError: none is registered under this name.
        """
        raw = await answered(self.client.get(self.keys.plan))
        if raw is None:
            raise OperatorError(
                f"migration {self.migration!r} is not registered in {self.address.url}",
                why=f"there is no {self.keys.plan}",
                next_step="exodus apply migration.yaml",
            )
        return Plan.model_validate_json(raw)

    async def save_report(self, name: str, report: Mapping[str, Any]) -> None:
        """Keep the last result of a task where status and later phases read it."""
        await answered(self.client.set(self.keys.report(name), orjson.dumps(report, default=str)))

    async def drop_report(self, name: str) -> None:
        """Forget a result that no longer counts."""
        await answered(self.client.delete(self.keys.report(name)))

    async def report(self, name: str) -> Json | None:
        """Return the last result of that name, or None."""
        raw = await answered(self.client.get(self.keys.report(name)))
        return None if raw is None else cast("Json", orjson.loads(raw))

    async def save_phase(self, phase: str, state: PhaseState) -> None:
        """Say where a phase stands."""
        await answered(
            self.client.hset(self.keys.phase, phase, orjson.dumps(state.as_json()).decode())
        )

    async def phases(self) -> dict[str, PhaseState]:
        """Return the state of every phase."""
        raw = await answered(self.client.hgetall(self.keys.phase))
        return {name.decode(): PhaseState.model_validate_json(value) for name, value in raw.items()}

    # --- registrations ---
    async def register(
        self, kind: str, process: str, state: Mapping[str, Any], *, announce: bool = False
    ) -> None:
        """Write one process's heartbeat. `state` carries `at_ms` by the store's own clock (see
        `now_ms`); `announce` wakes whoever waits for it.
        """
        pipe = self.client.pipeline(transaction=False)
        pipe.hset(self.keys.part(kind), process, orjson.dumps(state).decode())
        if announce:
            pipe.publish(self.keys.part_changed, process)
        await pipe.execute()

    async def unregister(self, kind: str, process: str) -> None:
        """Take a process that ended cleanly off the list."""
        pipe = self.client.pipeline(transaction=True)
        pipe.hdel(self.keys.part(kind), process)
        pipe.hdel(self.keys.owner(kind), process)
        pipe.hdel(self.keys.acknowledged, process)
        await pipe.execute()

    async def registrations(self, kind: str) -> dict[str, Json]:
        """Id → last heartbeat, stale ones included: a process that went away without a word must be
        seen.
        """
        raw = await answered(self.client.hgetall(self.keys.part(kind)))
        return {name.decode(): orjson.loads(value) for name, value in raw.items()}

    async def registrations_now(self, kind: str) -> tuple[dict[str, Json], int]:
        """Return the registrations and the store's time, in one round trip."""
        pipe = self.client.pipeline(transaction=False)
        pipe.hgetall(self.keys.part(kind))
        pipe.time()
        raw, (seconds, micros) = await pipe.execute()
        return {name.decode(): orjson.loads(value) for name, value in raw.items()}, int(
            seconds
        ) * 1000 + int(micros) // 1000

    async def now_ms(self) -> int:
        """Return the store's clock in ms, the one clock that all hosts share."""
        seconds, micros = await answered(self.client.time())
        return int(seconds) * 1000 + int(micros) // 1000
