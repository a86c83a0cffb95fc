"""`python -m flows.deploy`: create work pool, queues, block types and deployments in Prefect.

`exodus deploy` runs it as another process, because the engine does not import Prefect. It may run
again: existing pools and queues stay, and deployments become those of this version.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, PrefectException

from blocks import Migration, RedisEndpoint
from exodus.errors import ExodusError, OrchestratorError
from exodus.safe_text import lines
from exodus.stack.prefect import POOL, deployments_file

RENEWAL_QUEUE = "renewal"
# Every value is fixed and there are no variables, so nobody can give a run another command. Without
# a command Prefect's worker starts its own Python.
_TEMPLATE: dict[str, Any] = {
    "job_configuration": {"stream_output": True},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}


def make_pool(client: SyncPrefectClient) -> list[str]:
    """Create the work pool and its queues if they are missing; return a line for each."""
    said: list[str] = []
    try:
        client.create_work_pool(
            WorkPoolCreate(name=POOL, type="process", base_job_template=_TEMPLATE)
        )
        said.append(f"work pool {POOL} (type process)")
    except ObjectAlreadyExists:
        said.append(f"work pool {POOL}: exists, unchanged")
    try:
        client.create_work_queue(
            name=RENEWAL_QUEUE,
            work_pool_name=POOL,
            description="Schedules that renew evidence, one at a time",
            concurrency_limit=1,
        )
        said.append(f"work queue {RENEWAL_QUEUE}")
    except ObjectAlreadyExists:
        said.append(f"work queue {RENEWAL_QUEUE}: exists, unchanged")
    return said


def _of_migration(migration: str, folder: Path) -> Path:
    """Write the deployments of one migration: with its name, one run of each at a time."""
    document = yaml.safe_load(deployments_file().read_text())
    for deployment in document["deployments"]:
        deployment["name"] = migration
        deployment["parameters"] = {**deployment["parameters"], "migration": migration}
        for schedule in deployment.get("schedules", []):
            schedule["parameters"] = {**schedule.get("parameters", {}), "migration": migration}
        deployment["concurrency_limit"] = {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    path = folder / "prefect.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def deploy(migration: str | None) -> list[str]:
    """Create everything that an operator needs in Prefect; return a line for each.

    Raises:
        OrchestratorError: Prefect does not answer or refuses.
    """
    try:
        with get_client(sync_client=True) as client:
            said = make_pool(client)
        for block in (RedisEndpoint, Migration):
            block.register_type_and_schema()
    except (PrefectException, httpx.HTTPError) as exc:
        raise OrchestratorError(
            "the work pool and the block types were not created",
            why=f"{type(exc).__name__}: {exc}",
            next_step="check PREFECT_API_URL and PREFECT_API_AUTH_STRING",
        ) from exc
    with tempfile.TemporaryDirectory() as folder:
        file = deployments_file() if migration is None else _of_migration(migration, Path(folder))
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        done = subprocess.run(  # noqa: S603 - Prefect's own command
            [*command, "--prefect-file", str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise OrchestratorError(
            "the deployments were not created",
            why="\n".join((done.stdout + done.stderr).splitlines()[-20:]),
            next_step="correct the cause that Prefect names, then: exodus deploy",
        )
    names = [
        each["entrypoint"] for each in yaml.safe_load(deployments_file().read_text())["deployments"]
    ]
    return [
        *said,
        "block types RedisEndpoint and Migration",
        f"{len(names)} deployments named <flow>/{migration or POOL}",
    ]


def main() -> int:
    """Create everything, and show errors like every command of Exodus."""
    parser = argparse.ArgumentParser(prog="python -m flows.deploy")
    parser.add_argument("--migration", help="create deployments of this migration only")
    try:
        for line in deploy(parser.parse_args().migration):
            print(line)
    except ExodusError as exc:
        print(lines(f"error: {exc}"), file=sys.stderr)
        return exc.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
