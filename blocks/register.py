"""`python -m blocks.register --migration-file FILE`: write blocks and plan from a migration file.

`exodus apply` runs it as another process, because the engine does not import Prefect.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx
from prefect.blocks.core import Block
from prefect.exceptions import PrefectException
from pydantic import SecretStr

from blocks.endpoint import RedisEndpoint
from blocks.migration import Migration
from exodus.control.store import ControlStore
from exodus.errors import ExodusError, OperatorError, OrchestratorError
from exodus.plan.address import Address, Place, Service
from exodus.plan.bounds import BLOCKS_REGISTER_AGAIN_S, BLOCKS_REGISTER_TRIES
from exodus.plan.migration_file import MigrationFile, load_migration
from exodus.plan.plan import Options
from exodus.safe_text import lines
from exodus.topology.pair_checks import check_control_store, raise_if_fatal

# What Prefect's client raises if its server fails. A RuntimeError means that no connection was
# possible.
_PREFECT_FAILS = (httpx.HTTPError, PrefectException, RuntimeError)


def _block(place: Place, field: str, *, with_secrets: bool) -> RedisEndpoint:
    if not with_secrets and place.password is not None:
        raise OperatorError(
            f"{field}: the migration file contains the password",
            why="blocks hold the name of a file or a variable; everybody who may log in to "
            "Prefect can read a block's secrets",
            next_step=f"set {field}.password_file or {field}.password_env; or use exodus "
            "apply --with-secrets",
        )
    secret = place.secret(field)  # also checks a file or variable that the block only names
    return RedisEndpoint(
        password=SecretStr(secret) if secret and with_secrets else None,
        password_file=None if with_secrets else _absolute(place.password_file),
        password_env=None if with_secrets else place.password_env,
        server_name=place.server_name,
        **{name: _absolute(getattr(place, name)) for name in ("ca_file", "cert_file", "key_file")},
        **_where(place),
    )


def _where(place: Place) -> dict[str, Any]:
    """Return the fields of a block that say where a place is."""
    if isinstance(place, Address):
        return {"url": place.url}
    if isinstance(place, Service):
        return _service(place)
    plain = ("username", "tls", "address_map")
    return {"cluster": list(place.cluster), **{name: getattr(place, name) for name in plain}}


def _service(service: Service) -> dict[str, Any]:
    """Return the fields of a block that name Sentinels and their login."""
    for sentinel in service.sentinel_addresses[:1]:
        sentinel.secret("sentinel")
    plain = (
        "service",
        "username",
        "tls",
        "address_map",
        "sentinel_username",
        "sentinel_password_env",
        "sentinel_tls",
        "sentinel_server_name",
    )
    files = ("password_file", "ca_file", "cert_file", "key_file")
    return {
        "sentinels": list(service.sentinels),
        **{name: getattr(service, name) for name in plain},
        **{f"sentinel_{name}": _absolute(getattr(service, f"sentinel_{name}")) for name in files},
    }


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def save_blocks(file: MigrationFile, *, with_secrets: bool = False) -> None:
    """Write the four blocks or none of them; replace existing blocks of the same name.

    Raises:
        OperatorError: the migration file contains a password, and `with_secrets` is off.
        OrchestratorError: Prefect failed. The blocks are as before.
    """
    plan = file.plan
    servers = {
        f"{plan.name}-{field.replace('_', '-')}": _block(address, field, with_secrets=with_secrets)
        for field, address in (
            ("source", plan.source),
            ("target", plan.target),
            ("control_store", file.control_store),
        )
    }
    options = Options.model_validate(plan.model_dump(include=set(Options.model_fields)))
    undo: list[Callable[[], object]] = []
    try:
        RedisEndpoint.register_type_and_schema()
        Migration.register_type_and_schema()
        for name, block in servers.items():
            _save(block, name, undo)
        source, target, control_store = (_endpoint(name) for name in servers)
        migration = Migration(
            migration=plan.name,
            options=options,
            source=source,
            target=target,
            control_store=control_store,
        )
        _save(migration, plan.name, undo)
    except _PREFECT_FAILS as exc:
        raise OrchestratorError(
            "the blocks were not written"
            if _undone(undo)
            else "only some of the blocks were written",
            why=f"Prefect: {str(exc).splitlines()[0] if str(exc) else type(exc).__name__}",
            next_step="check its server and its login (PREFECT_API_URL, "
            "PREFECT_API_AUTH_STRING), then apply the file again",
        ) from exc


def _endpoint(name: str) -> RedisEndpoint:
    return cast("RedisEndpoint", RedisEndpoint.load(name))


def _save(block: RedisEndpoint | Migration, name: str, undo: list[Callable[[], object]]) -> None:
    """Write one block, and note how to restore the block before it."""
    try:
        before = type(block).load(name)
    except ValueError:  # there is none
        block.save(name)
        undo.append(lambda: type(block).delete(name))
    else:
        block.save(name, overwrite=True)
        undo.append(lambda: cast("Block", before).save(name, overwrite=True))


def _undone(undo: list[Callable[[], object]]) -> bool:
    """Restore the blocks, with several tries because a locked database is so for moments.

    Return success.
    """
    for step in reversed(undo):
        for attempt in range(BLOCKS_REGISTER_TRIES):
            try:
                step()
            except _PREFECT_FAILS as exc:
                if attempt + 1 == BLOCKS_REGISTER_TRIES:
                    print(lines(f"a block was not restored: {exc}"), file=sys.stderr)
                    return False
                # The caller's thread waits: a half-restored block is worse than seconds.
                time.sleep(BLOCKS_REGISTER_AGAIN_S)
            else:
                break
    return True


async def save_plan(file: MigrationFile) -> None:
    """Write the plan to the control store, where the data plane reads it."""
    async with await ControlStore.connect(file.control_store, file.plan.name) as store:
        raise_if_fatal(await check_control_store(store, {}))
        await store.save_plan(file.plan)


def main() -> int:
    """Register one migration file, and show errors like every command of Exodus."""
    parser = argparse.ArgumentParser(prog="python -m blocks.register")
    parser.add_argument("--migration-file", type=Path, required=True)
    parser.add_argument("--blocks-only", action="store_true", help="do not write the control store")
    parser.add_argument(
        "--with-secrets",
        action="store_true",
        help="store passwords in the blocks, not the names of their files",
    )
    try:
        given = parser.parse_args()
        file = load_migration(given.migration_file)
        save_blocks(file, with_secrets=given.with_secrets)
        if not given.blocks_only:
            asyncio.run(save_plan(file))
    except ExodusError as exc:
        print(lines(f"error: {exc}"), file=sys.stderr)
        return exc.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
