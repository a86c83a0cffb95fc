"""One migration: its two servers, its control store, and the plan's options."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from blocks.endpoint import RedisEndpoint
from exodus.plan.plan import Options, Plan


class Migration(Block):
    """A migration. Every flow takes its name."""

    _block_type_name: ClassVar[str | None] = "Migration"
    _block_type_slug: ClassVar[str | None] = "migration"
    _description: ClassVar[str | None] = (
        "A live migration from one Redis or Valkey server to another."
    )

    migration: str = Field(title="Name", description="Lower-case letters, digits and dashes")
    source: RedisEndpoint = Field(
        title="Source", description="The server that applications use today"
    )
    target: RedisEndpoint = Field(title="Target", description="The server that takes over")
    control_store: RedisEndpoint = Field(
        title="Control store",
        description="A small durable Redis or Valkey of its own, with an append-only file",
    )
    options: Options = Field(
        default=Options(), title="Options", description="Every other field of migration.yaml"
    )

    def plan(self) -> Plan:
        """Return the plan with the secrets of its servers, which no dump contains."""
        return Plan(
            name=self.migration,
            source=self.source.place("source"),
            target=self.target.place("target"),
            **self.options.model_dump(),
        )
