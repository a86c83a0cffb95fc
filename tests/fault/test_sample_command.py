"""`exodus sample` at the command line, while a comparer works in this process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from exodus.control.route import read_route
from exodus.plan.vocabulary import Side
from tests.support.comparing import comparing, row_of
from tests.support.local_migration import LocalMigration
from tests.support.process import migration_file
from tests.support.wait import until

pytestmark = pytest.mark.fault
EXODUS = str(Path(sys.executable).parent / "exodus")


async def _sample(local: LocalMigration, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder = migration_file(local).parent
    return await asyncio.to_thread(
        subprocess.run,
        [EXODUS, "sample", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_rate_and_patterns_are_changed_while_compare_runs(local: LocalMigration) -> None:
    source, target = (local.servers[side].client() for side in Side)
    source.mset({"cart:1": 1, "cart:2": 1, "user:1": 1})
    async with comparing(local):
        app = local.app()
        for key in ("cart:1", "cart:2", "user:1"):
            await app.get(key)
        await row_of(local, "GET", "equal", 3)
        before = await read_route(local.store)
        done = await _sample(
            local, "0.9999", "--include", "cart:*", "--exclude", "*:2", "--why", "look closer"
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "Compare samples 99.99 % of the keys" in done.stdout
        route = await read_route(local.store)
        assert (route.shadow_rate, route.why) == (0.9999, "look closer")
        assert (route.shadow_include, route.shadow_exclude) == (("cart:*",), ("*:2",))
        assert (route.epoch, route.shadow_salt) == (before.epoch + 1, before.shadow_salt)

        async def left() -> bool:
            return target.keys("[cu]*:*") == [b"cart:1"]

        await until(left, within_s=10, otherwise="other keys stayed in the sample")
        # Without patterns every name may be sampled again.
        done = await _sample(local, "1", "--why", "all of them")
        assert done.returncode == 0, done.stderr
        await app.get("user:1")

        async def back() -> bool:
            return bool(target.exists("user:1"))

        await until(back, within_s=10, otherwise="a name did not come back to the sample")


@pytest.mark.parametrize("rate", ["0", "1.5", "nan"])
async def test_a_rate_that_is_no_share_is_refused(local: LocalMigration, rate: str) -> None:
    async with comparing(local):
        before = await read_route(local.store)
        done = await _sample(local, rate, "--why", "a slip")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"sample: {rate} is no share" in done.stderr
        assert "above 0 and 1 at most; 0.01 is 1 %" in done.stderr
        assert "exodus sample 0.01 --why" in done.stderr
        assert await read_route(local.store) == before


@pytest.mark.parametrize("field", ["include", "exclude"])
async def test_an_empty_pattern_is_refused(local: LocalMigration, field: str) -> None:
    """An unset variable of a shell gave it: nothing was sampled, and nobody knew."""
    async with comparing(local):
        before = await read_route(local.store)
        done = await _sample(local, "0.5", f"--{field}", "", "--why", "a slip")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"--{field}: '' is no pattern" in done.stderr
        assert f"--{field} 'cart:*'" in done.stderr
        assert await read_route(local.store) == before


async def test_words_and_a_missing_reason_are_refused(local: LocalMigration) -> None:
    for arguments, said in (
        (("many", "--why", "a slip"), "Invalid value for 'rate'"),
        (("0.5",), "--why"),
    ):
        done = await _sample(local, *arguments)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


async def test_a_sample_is_not_changed_where_compare_does_not_run(local: LocalMigration) -> None:
    done = await _sample(local, "0.5", "--why", "too early")
    assert done.returncode != 0
    assert "no keys are sampled now" in done.stderr
    assert "exodus start compare" in done.stderr
