"""`python -m blocks.register --migration-file FILE`: blocks and the control store's plan from a migration file.

`exodus apply` runs it as a process of its own, since the engine does not know Prefect.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from pydantic import SecretStr

from blocks.endpoint import RedisEndpoint
from blocks.migration import Migration
from exodus.config import Address, MigrationFile, load_migration
from exodus.control.store import ControlStore
from exodus.endpoint import check_control_store, raise_if_fatal
from exodus.errors import ExodusError


def _block(address: Address, field: str) -> RedisEndpoint:
    secret = address.secret(field)
    return RedisEndpoint(
        url=address.url,
        password=SecretStr(secret) if secret else None,
        ca_file=str(address.ca_file) if address.ca_file else None,
        cert_file=str(address.cert_file) if address.cert_file else None,
        key_file=str(address.key_file) if address.key_file else None,
    )


def save_blocks(file: MigrationFile) -> None:
    """Write the four blocks; existing ones of the same name are replaced."""
    plan = file.plan
    RedisEndpoint.register_type_and_schema()
    Migration.register_type_and_schema()
    servers = {
        "source": _block(plan.source, "source"),
        "target": _block(plan.target, "target"),
        "control_store": _block(file.control_store, "control_store"),
    }
    for field, block in servers.items():
        block.save(f"{plan.name}-{field.replace('_', '-')}", overwrite=True)
    loaded = {field: RedisEndpoint.load(f"{plan.name}-{field.replace('_', '-')}") for field in servers}
    options = plan.model_dump(mode="json", exclude={"name", "source", "target"}, exclude_defaults=True)
    Migration(migration=plan.name, options=options, **loaded).save(plan.name, overwrite=True)


async def save_plan(file: MigrationFile) -> None:
    """Register the plan where the data plane reads it."""
    async with await ControlStore.connect(file.control_store, file.plan.name) as store:
        raise_if_fatal(await check_control_store(store, {}))
        await store.save_plan(file.plan)


def main() -> int:
    """Register one migration file; errors as every command of Exodus tells them."""
    parser = argparse.ArgumentParser(prog="python -m blocks.register")
    parser.add_argument("--migration-file", type=Path, required=True)
    try:
        file = load_migration(parser.parse_args().migration_file)
        asyncio.run(save_plan(file))
        save_blocks(file)
    except ExodusError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
