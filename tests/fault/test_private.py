"""What Exodus leaves on disk and in the control store is readable for this user only, and
expires.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exodus.errors import OperatorError
from exodus.gateway import shadow_stream
from exodus.net.client import answered
from exodus.plan.vocabulary import JournalMode, Side
from exodus.private_files import close_to_others, private_folder, write_private
from exodus.stack import processes
from exodus.stack.home import Home
from tests.support.local_migration import LocalMigration
from tests.support.wait import until

pytestmark = pytest.mark.fault


def _open(folder: Path) -> dict[str, str]:
    """Return the paths under a folder, itself included, that others may read, write or enter."""
    found = {path: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    return {str(path): oct(mode) for path, mode in found.items() if mode & 0o077}


def test_a_stack_s_folder_and_what_is_in_it_is_private_whatever_was_there_before(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "stack")
    home.root.mkdir(mode=0o755)
    home.logs.mkdir(mode=0o755)
    for name in ("migration.yaml", "pids.json", "source.password"):
        (home.root / name).write_text("x")
        (home.root / name).chmod(0o644)
    (home.root / "notes.txt").write_text("a file of somebody else's purpose")
    (home.root / "notes.txt").chmod(0o644)
    home.make()
    home.secret("target")
    home.prefect_login()
    home.record([])
    assert list(_open(home.root)) == [str(home.root / "notes.txt")]


def test_what_a_process_of_the_stack_writes_is_private(tmp_path: Path) -> None:
    """Its log and its files: Prefect's database has what people answer."""
    before = os.umask(0)
    try:
        started = processes.start(
            "writer",
            [sys.executable, "-c", "import os; os.mkdir('made'); open('made/file', 'w'); print(1)"],
            log=tmp_path / "logs" / "writer.log",
            cwd=tmp_path,
        )
        assert started.process.wait(30) == 0
    finally:
        os.umask(before)
    assert _open(tmp_path / "made") == {}
    assert (tmp_path / "logs" / "writer.log").stat().st_mode & 0o777 == 0o600


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, 4242, 4242)
        with pytest.raises(OperatorError, match="belongs to user 4242"):
            private_folder(folder)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OperatorError, match="not a folder"):
        private_folder(tmp_path / "file")


def test_a_file_is_private_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(0o666)
    before = os.umask(0)
    try:
        write_private(path, "new")
    finally:
        os.umask(before)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


async def test_a_gateway_s_state_is_private(local: LocalMigration) -> None:
    folder = local.folder / "gw-1"
    folder.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        await local.gateway()
        await local.start_live_sync()
        await local.app().set("k", "v")

        async def remembered() -> bool:
            return (folder / "last.json").exists()

        await until(remembered, within_s=10, otherwise="the route was never kept")
    finally:
        os.umask(before)
    assert _open(folder) == {}


def test_a_file_of_another_user_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "capture.pcap"
    path.touch(0o644)
    path.chmod(0o644)

    def refused(_: Path, mode: int) -> None:
        raise PermissionError(mode)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "chmod", refused)
        assert not close_to_others(path)
    assert close_to_others(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert close_to_others(path)
    assert close_to_others(tmp_path / "none")


async def test_sampled_requests_do_not_stay_in_the_control_store(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_stream, "SHADOW_KEPT_MS", 400)
    gateway = await local.gateway()
    await local.change(journal=JournalMode.SAMPLE, shadow_rate=1.0, shadow_salt=7)
    app, name = local.app(), local.store.keys.shadow
    await app.set("first", "of the application")

    async def there() -> bool:
        return bool(await answered(local.store.client.xlen(name)))

    async def expires() -> bool:  # set by a command of its own, right after the first pairs
        left_ms = int(await answered(local.store.client.pttl(name)))
        assert left_ms <= 400
        return left_ms > 0

    await until(there, within_s=10, otherwise="nothing was sampled")
    await until(expires, within_s=10, otherwise="the stream does not expire")

    async def trimmed() -> bool:  # while others come
        await app.set("another", "value")
        entries = await answered(local.store.client.xrange(name))
        return bool(entries) and all(b"first" not in fields[b"p"] for _, fields in entries)

    await until(trimmed, within_s=10, otherwise="what was old stayed")

    async def gone() -> bool:  # when none come any more
        return not await answered(local.store.client.exists(name))

    await until(gone, within_s=10, otherwise="the stream never expired")
    monkeypatch.setattr(shadow_stream, "SHADOW_BYTES_PER_S_MAX", 10_000)
    for _ in range(30):
        await app.set("large", "x" * 3_000)

    async def dropped() -> bool:
        return gateway.shadow_stream.dropped > 5

    await until(dropped, within_s=10, otherwise="nothing was dropped beyond the limit")


async def test_markup_in_a_client_s_name_is_shown_as_it_is(
    local: LocalMigration, tmp_path: Path
) -> None:
    await local.gateway()
    name = "[/red][link=http://x]y"
    app = local.app(client_name=name)
    await app.ping()
    file = local.file(tmp_path)

    async def shown() -> bool:
        command = [sys.executable, "-m", "exodus.cli.app", "redirect", "--file", str(file)]
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert done.returncode == 0, done.stderr
        return name in done.stdout

    await until(shown, within_s=30, otherwise="the client was never listed")


async def test_the_doctor_names_what_is_open_or_cannot_be_used(
    local: LocalMigration, tmp_path: Path
) -> None:
    file, home = local.file(tmp_path), tmp_path / "no-stack"
    await asyncio.to_thread(file.chmod, 0o600)

    async def findings() -> tuple[int, list[dict[str, str]]]:
        command = [
            sys.executable,
            "-m",
            "exodus.cli.app",
            "doctor",
            "--json",
            "--file",
            str(file),
            "--home",
            str(home),
        ]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, json.loads(done.stdout)

    status, found = await findings()
    assert (status, {each["severity"] for each in found}) == (0, {"ok"}), found
    secret = local.servers[Side.SOURCE].address().password_file
    assert secret is not None
    text = file.read_text()
    try:
        secret.chmod(0o644)
        file.write_text(
            text.replace("target:\n", "target:\n  tls: true\n  ca_file: /nowhere/ca.pem\n", 1)
        )
        status, found = await findings()
    finally:
        secret.chmod(0o600)
    said = [(each["severity"], each["what"]) for each in found if each["severity"] != "ok"]
    assert status == 1
    assert ("warning", f"{secret} is open to other users") in said
    assert ("fatal", "target: the TLS files cannot be used") in said
