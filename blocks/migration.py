"""One migration: its two servers, its control store, and the plan's options."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from blocks.endpoint import RedisEndpoint
from exodus.plan.plan import Options, Plan


class Migration(Block):
    """What every flow takes by name."""

    _block_type_name: ClassVar[str | None] = "Migration"
    _block_type_slug: ClassVar[str | None] = "migration"
    _description: ClassVar[str | None] = "A live migration from one Redis-family server to another."

    migration: str = Field(title="Name", description="lower-case letters, digits and dashes")
    source: RedisEndpoint = Field(title="Source", description="the server that applications use today")
    target: RedisEndpoint = Field(title="Target", description="the server that takes over")
    control_store: RedisEndpoint = Field(title="Control store", description="a small durable Redis of its own, with AOF")
    options: Options = Field(default=Options(), title="Options", description="every other field of migration.yaml")

    def plan(self) -> Plan:
        """The plan, with the secrets of its servers (which no dump of it contains)."""
        return Plan(
            name=self.migration,
            source=self.source.address("source"),
            target=self.target.address("target"),
            **self.options.model_dump(),
        )
