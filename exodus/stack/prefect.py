"""Prefect for a local stack: server, work pool, worker, and the deployments of `prefect.yaml`."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import httpx

from exodus.errors import StackError
from exodus.private_files import FILE_MODE, OTHERS
from exodus.stack import forkserver
from exodus.stack.home import Home
from exodus.stack.processes import Started, last_lines, start

POOL = "exodus"
_IMPORTED_BEFOREHAND = (
    # Libraries, and the parts of Exodus that gateways and syncers also have as of their start. No
    # flow and no task: each run reads those again, see forkserver.py.
    "prefect.flow_engine",
    "prefect.deployments.steps.pull",
    "prefect.deployments.flow_runs",
    "prefect.artifacts",
    "great_expectations.expectations",
    "anyio._backends._asyncio",
    "rich._emoji_codes",
    "uvloop",
    "exodus.observe.monitor",
    "exodus.closing.collect",
    "exodus.cutover.forced_rollback",
    "exodus.rehearsal.rehearse",
    "exodus.gateway.process",
    "exodus.backfill.slices",
    "exodus.backfill.forecast",
)
_REFRESH = "prefect.context:refresh_global_settings_context"
_BIN = Path(sys.executable).parent
_TEMPLATE_ENV = "EXODUS_CACHE"


def project_root() -> Path:
    """Return the folder of the packages: the checkout, or site-packages."""
    return Path(__file__).resolve().parents[2]


def deployments_file() -> Path:
    """Return prefect.yaml: at the root of a checkout, or in the installed package of the flows.

    Raises:
        StackError: neither place has it.
    """
    for path in (project_root() / "prefect.yaml", project_root() / "flows" / "prefect.yaml"):
        if path.exists():
            return path
    raise StackError(
        "the installation has no prefect.yaml",
        why=f"searched {project_root()} and its folder flows/",
        next_step="install Exodus again: pip install --force-reinstall exodus",
    )


def environment(home: Home, port: int) -> dict[str, str]:
    """Return the environment of every Prefect process and every flow of this stack.

    It has the authentication string. Without it any user of the machine could read blocks, forge
    approvals, and start runs as the operator.
    """
    prefect_home = home.data / "prefect"
    login = home.prefect_login()
    return {
        "PREFECT_HOME": str(prefect_home.absolute()),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_API_AUTH_STRING": login,
        # the UI has the API's origin; no other page needs access
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "",
        "PREFECT_LOCAL_STORAGE_PATH": str((prefect_home / "storage").absolute()),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_LEVEL": "INFO",
        # One commit for many task runs and events. SQLite answers 503 to a transaction that another
        # commit overtook, and Prefect's client then waits 2 s or more. Every phase's end met such a
        # commit: starting a phase took 2.3 to 6.8 s, with these settings 0.3 to 0.7 s.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "100",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_WORKER_PREFETCH_SECONDS": "10",
        "GX_ANALYTICS_ENABLED": "false",
        "EXODUS_HOME": str(home.root.absolute()),
        "EXODUS_EVIDENCE_DIR": os.environ.get("EXODUS_EVIDENCE_DIR")
        or str((home.root / "evidence").absolute()),
        # each flow is a process: compiling everything again would double its start
        "PYTHONDONTWRITEBYTECODE": "",
    }


def _template() -> Path:
    cache = Path(os.environ.get(_TEMPLATE_ENV) or Path.home() / ".cache" / "exodus")
    return cache / f"prefect-{version('prefect')}.db"


def start_prefect_server(home: Home, port: int) -> Started:
    """Start the server. A cached copy of a migrated database saves ten seconds."""
    env = environment(home, port)
    folder = Path(env["PREFECT_HOME"])
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / "prefect.db"
    if not database.exists() and _template().exists():
        shutil.copyfile(_template(), database)
    return start(
        "prefect-server",
        [str(_BIN / "prefect"), "server", "start"],
        log=home.log("prefect-server"),
        env=env,
        port=port,
    )


def healthy(port: int) -> bool:
    """Return whether the server answers."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def keep_template(home: Home) -> None:
    """Cache the new server's migrated database for the next stack."""
    template = _template()
    if template.exists():
        return
    template.parent.mkdir(parents=True, exist_ok=True)
    scratch = template.with_suffix(f".{os.getpid()}")
    source = sqlite3.connect(home.data / "prefect" / "prefect.db")
    target = sqlite3.connect(scratch)
    with source, target:
        source.backup(target)
    source.close()
    target.close()
    scratch.replace(template)


def start_forkserver(home: Home, port: int) -> Started:
    """Start the server from which flow runs are forked."""
    command = [
        sys.executable,
        "-P",
        forkserver.__file__,
        "serve",
        str(_socket(home)),
        *_IMPORTED_BEFOREHAND,
    ]
    return start(
        "forkserver",
        command,
        log=home.log("forkserver"),
        env=environment(home, port),
        cwd=project_root(),
    )


def _socket(home: Home) -> Path:
    return home.data.absolute() / "forkserver.sock"


def _job_template(home: Home) -> dict[str, object]:
    """Return the pool's job template.

    A job is one process, if possible a fork of one with all imports.

    With a command, Prefect 3.8.8 starts it as the flow's only process. Without one it starts a
    supervisor first, which also imports Prefect: three seconds of processor time at each start and
    each resume (prefect/workers/process.py, `_command_configured`).

    Every value is fixed and there are no variables, so the server refuses a run or a deployment
    with `job_variables`. A worker would ignore them too, because no placeholder uses them. There is
    no `env` for the same reason: Prefect merges a run's `env` into a template's `env`.
    """
    command = [
        sys.executable,
        "-I",
        "-S",
        forkserver.__file__,
        "run",
        str(_socket(home)),
        "prefect.engine",
        _REFRESH,
    ]
    return {
        "job_configuration": {"command": shlex.join(command), "stream_output": True},
        "variables": {"type": "object", "properties": {}, "additionalProperties": False},
    }


def _api(home: Home, port: int) -> httpx.Client:
    user, _, password = home.prefect_login().partition(":")
    return httpx.Client(base_url=f"http://127.0.0.1:{port}/api", auth=(user, password), timeout=30)


def make_pool(home: Home, port: int) -> None:
    """Create the work pool, or give an existing one the present job template."""
    template = _job_template(home)
    with _api(home, port) as api:
        answer = api.post(
            "/work_pools/", json={"name": POOL, "type": "process", "base_job_template": template}
        )
        if answer.status_code == 409:
            answer = api.patch(f"/work_pools/{POOL}", json={"base_job_template": template})
    if answer.status_code not in (201, 204):
        raise StackError(
            "the work pool was not created",
            why=f"HTTP {answer.status_code}: {answer.text[:300]}",
            next_step="read the log of prefect-server",
        )


def start_worker(home: Home, port: int) -> Started:
    """Start a worker for the pool."""
    command = [
        str(_BIN / "prefect"),
        "worker",
        "start",
        "--pool",
        POOL,
        "--type",
        "process",
        "--name",
        "exodus-worker",
    ]
    return start(
        "prefect-worker",
        command,
        log=home.log("prefect-worker"),
        env=environment(home, port),
        cwd=project_root(),
    )


def worker_online(home: Home, port: int) -> bool:
    """Return whether the pool has a worker that polls."""
    try:
        with _api(home, port) as api:
            answer = api.post(f"/work_pools/{POOL}/workers/filter", json={}, timeout=5)
        return answer.status_code == 200 and any(
            worker.get("status") == "ONLINE" for worker in answer.json()
        )
    except httpx.HTTPError:
        return False


def run_step(
    name: str, command: list[str], home: Home, port: int, *, within_s: float = 180
) -> None:
    """Run a command to its end, with its output in a log.

    Raises:
        StackError: the command failed. The error has the last lines of its log.
    """
    log = home.log(name)
    log.touch(FILE_MODE)
    with log.open("ab") as output:
        ended = subprocess.run(  # noqa: S603 - commands of Exodus
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment(home, port)},
            cwd=project_root(),
            timeout=within_s,
            check=False,
            umask=OTHERS,
        )
    if ended.returncode:
        raise StackError(
            f"{name} failed with status {ended.returncode}",
            why=f"the last lines of {log}:\n{last_lines(log)}",
            next_step="correct the cause in the log, then start again",
        )


def deploy(home: Home, port: int) -> None:
    """Create the deployments of `prefect.yaml`."""
    command = [str(_BIN / "prefect"), "--no-prompt", "deploy", "--all"]
    run_step("prefect-deploy", [*command, "--prefect-file", str(deployments_file())], home, port)


def register(home: Home, port: int) -> None:
    """Write the migration's blocks and plan."""
    run_step(
        "register",
        [
            sys.executable,
            "-m",
            "blocks.register",
            "--migration-file",
            str(home.migration_file.absolute()),
        ],
        home,
        port,
    )
