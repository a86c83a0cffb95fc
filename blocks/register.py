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
from exodus.config import Address, MigrationFile, Options, load_migration
from exodus.control.store import ControlStore
from exodus.endpoint import check_control_store, raise_if_fatal
from exodus.errors import ExodusError, OperatorError
from exodus.shown import lines


def _block(address: Address, field: str, *, with_secrets: bool) -> RedisEndpoint:
    if not with_secrets and address.password is not None:
        raise OperatorError(
            f"{field}: the password stands in the migration file",
            why="blocks hold the name of a file or a variable; whoever may log in to Prefect can read a block's secrets",
            next_step=f"write {field}.password_file or {field}.password_env; or say exodus apply --with-secrets",
        )
    files = {name: getattr(address, name) for name in ("ca_file", "cert_file", "key_file")}
    secret = address.secret(field)  # also without it in the block: a name that leads nowhere is told now
    return RedisEndpoint(
        url=address.url,
        password=SecretStr(secret) if secret and with_secrets else None,
        password_file=None if with_secrets or address.password_file is None else str(address.password_file.absolute()),
        password_env=None if with_secrets else address.password_env,
        server_name=address.server_name,
        **{name: None if path is None else str(path.absolute()) for name, path in files.items()},
    )


def save_blocks(file: MigrationFile, *, with_secrets: bool = False) -> None:
    """Write the four blocks; existing ones of the same name are replaced.

    Raises:
        OperatorError: a password stands in the migration file itself, and nobody asked for it in the block.
    """
    plan = file.plan
    RedisEndpoint.register_type_and_schema()
    Migration.register_type_and_schema()
    servers = {
        field: _block(address, field, with_secrets=with_secrets)
        for field, address in (
            ("source", plan.source),
            ("target", plan.target),
            ("control_store", file.control_store),
        )
    }
    for field, block in servers.items():
        block.save(f"{plan.name}-{field.replace('_', '-')}", overwrite=True)
    loaded = {field: RedisEndpoint.load(f"{plan.name}-{field.replace('_', '-')}") for field in servers}
    options = Options.model_validate(plan.model_dump(include=set(Options.model_fields)))
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
    parser.add_argument("--with-secrets", action="store_true", help="passwords into the blocks, in place of their files' names")
    try:
        given = parser.parse_args()
        file = load_migration(given.migration_file)
        asyncio.run(save_plan(file))
        save_blocks(file, with_secrets=given.with_secrets)
    except ExodusError as exc:
        print(lines(f"error: {exc}"), file=sys.stderr)
        return exc.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
