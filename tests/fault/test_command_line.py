"""How the command line answers wrong input and obstacles: with one clear error."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from exodus.control.store import ControlStore
from exodus.plan.plan import Plan
from exodus.plan.settings import Listen
from exodus.stack.home import Home, free_port
from exodus.stack.servers import ServerKind
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault
EXODUS = str(Path(sys.executable).parent / "exodus")


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [EXODUS, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def file(
    redis62: DatabaseServer,
    valkey91: DatabaseServer,
    control_server: DatabaseServer,
    tmp_path: Path,
) -> Path:
    """The migration file of a registered plan."""
    servers = {"source": redis62, "target": valkey91, "control_store": control_server}
    servers = {
        name: {
            "url": f"redis://{box.address().username}@127.0.0.1:{box.port}",
            "password_file": str(box.address().password_file),
        }
        for name, box in servers.items()
    }
    port = free_port()
    path = tmp_path / "migration.yaml"
    path.write_text(yaml.safe_dump({"name": "orders", **servers, "gateway": {"port": port}}))

    async def register() -> None:
        async with await ControlStore.connect(control_server.address(), "orders") as store:
            await store.save_plan(
                Plan(
                    name="orders",
                    source=redis62.address(),
                    target=valkey91.address(),
                    gateway=Listen(port=port),
                )
            )

    asyncio.run(register())
    return path


def test_the_version(tmp_path: Path) -> None:
    done = _run(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"exodus {version('exodus')}\n")


def test_a_server_runs_in_a_folder_of_any_name(tmp_path: Path) -> None:
    """U1: a space in the path of `exodus up` ended its servers at once."""
    folder = tmp_path / 'a "folder" \\ of mine'
    box = DatabaseServer(ServerKind.VALKEY_91, folder)
    try:
        with box.client(decode_responses=True) as client:
            assert client.config_get("dir")["dir"] == str(Home(folder).data)
    finally:
        box.close()


def test_down_where_nothing_was_started(tmp_path: Path) -> None:
    done = _run(tmp_path, "down")
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing was running\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_one_error(file: Path, redis62: DatabaseServer, tmp_path: Path) -> None:
    """Before, libraries printed 598 lines about objects that the traceback had kept."""
    done = _run(
        tmp_path,
        "gateway",
        "--file",
        str(file),
        "--listen",
        f"127.0.0.1:{redis62.port}",
        "--state-dir",
        str(tmp_path / "state"),
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"error: cannot listen on 127.0.0.1:{redis62.port}")
    assert [line.strip().partition(" ")[0] for line in lines[1:]] == ["why:", "next:"]


@pytest.mark.parametrize("process", ["gateway", "syncer", "comparer"])
def test_a_log_level_that_is_none_is_one_error(file: Path, tmp_path: Path, process: str) -> None:
    done = _run(tmp_path, process, "--file", str(file), "--log-level", "verbose")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --log-level: 'verbose' is not a level")
    assert "DEBUG, INFO, WARNING" in done.stderr


@pytest.mark.parametrize(
    ("field", "value", "said", "near"),
    [
        ("slicess", 8, "slicess: there is no such field (its value is 8)", "slices"),
        (
            "obserwe_seconds",
            3.5,
            "obserwe_seconds: there is no such field (its value is 3.5)",
            "observe_seconds",
        ),
        ("gateway", {"prot": 1}, "gateway.prot: there is no such field (its value is 1)", "port"),
        ("pasword", "hunter2", "pasword: there is no such field", "password"),
    ],
)
def test_a_misspelt_field_is_one_error_with_the_nearest_name(
    file: Path, tmp_path: Path, field: str, value: object, said: str, near: str
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), field: value}))
    done = _run(tmp_path, "status", "--file", str(wrong))
    assert done.returncode == 2
    what, _, remedy = done.stderr.splitlines()
    assert what == f"error: {said} [wrong-input]"
    assert f"is it {near}?" in remedy
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (b"name: another\n", "a field stands twice at line "),
        (b"renames: {a: b, a: c}\n", "a field stands twice at line "),
        (b"# caf\xe9\n", "it cannot be read"),  # not in UTF-8
    ],
)
def test_a_file_that_is_not_yaml_is_one_error(
    file: Path, tmp_path: Path, more: bytes, why: str
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_bytes(file.read_bytes() + more)
    done = _run(tmp_path, "status", "--file", str(wrong))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {wrong} is not YAML [wrong-input]\n  why:  {why}")
    assert len(done.stderr.splitlines()) == 3


def test_abort_without_a_switch_is_refused(file: Path, tmp_path: Path) -> None:
    done = _run(tmp_path, "abort", "--why", "nothing to abort", "--file", str(file))
    assert done.returncode == 1
    assert done.stderr.startswith("error: no switch is under way [refused]")


def test_the_evidence_of_a_phase_is_shown_listed_and_written(
    file: Path, control_server: DatabaseServer, tmp_path: Path
) -> None:
    found = {
        "phase": "analyze",
        "summary": {"requests": 5},
        "frames": {"checks": [{"check": "room", "ok": True, "level": "must", "detail": "enough"}]},
        "lists": {"shapes": [{"shape": "GET", "calls": number} for number in range(50)]},
        "plots": {"plot-mix": "<svg/>"},
        "gates": [],
        "passed": True,
    }

    async def keep() -> None:
        async with await ControlStore.connect(control_server.address(), "orders") as store:
            await store.save_report("evidence.analyze", found)

    asyncio.run(keep())
    assert "analyze" in _run(file.parent, "report").stdout
    shown = _run(file.parent, "report", "analyze").stdout
    assert "enough" in shown
    assert "and 10 more" in shown
    page = tmp_path / "analyze.html"
    assert _run(file.parent, "report", "analyze", "--html", str(page)).returncode == 0
    assert "data:image/svg+xml" in page.read_text()
    assert page.stat().st_mode & 0o077 == 0
    missing = _run(file.parent, "report", "test")
    assert missing.returncode == 2
    assert "there is some of: analyze" in missing.stderr
    nowhere = _run(file.parent, "report", "analyze", "--html", "/nowhere/x.html")
    assert "--html: /nowhere/x.html cannot be written" in nowhere.stderr
