"""The dry run foresees what the backfill then does, key for key, and leaves the target as it
was.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import randbytes

import pytest

from exodus.backfill.forecast import LEFT_OUT, NOT_CARRIED, forecast
from exodus.control.checkpoint import load_progress
from exodus.plan.vocabulary import Side
from tests.fault.test_strategies import fill_large
from tests.fault.test_verify import fill
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault


@pytest.mark.parametrize(
    ("from_", "to"), [("redis62", "valkey91"), ("redis82", "valkey91"), ("redis82", "redis62")]
)
async def test_what_is_foreseen_is_what_is_done(
    from_: str,
    to: str,
    control_server: DatabaseServer,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    source, target = request.getfixturevalue(from_), request.getfixturevalue(to)
    fill(source.client())
    large = fill_large(source.client())
    source.client().set("cache:1", 1)
    if from_ == "redis82":
        source.client().execute_command("HPEXPIRE", "small", 3_600_000, "FIELDS", 1, "a")
    local = LocalMigration(
        source,
        target,
        control_server,
        tmp_path,
        filters={"exclude": [{"pattern": "cache:*"}]},
        slices=1,
    )
    await local.open()
    rows = await forecast(await local.engine())
    assert target.client().dbsize() == 0
    assert sum(row["keys_sampled"] for row in rows) == source.client().dbsize() + 1
    assert all(row["keys_sampled"] == row["keys_estimated"] for row in rows)
    assert all(row["reason"] for row in rows)
    await local.start_live_sync()
    await local.backfill()
    done: Counter[str] = Counter()
    failed = excluded = 0
    for progress in (await load_progress(local.store, "run")).values():
        for how, count in progress.strategies.items():
            done[how.partition(":")[0]] += count
        failed += progress.keys_failed
        excluded += progress.keys_excluded
    foreseen: Counter[str] = Counter()
    for row in rows:
        foreseen[row["strategy"]] += row["keys_sampled"]
    assert foreseen.pop(LEFT_OUT) == excluded == 1
    assert foreseen.pop(NOT_CARRIED, 0) == failed
    assert foreseen == done
    assert foreseen["in pieces"] == len(large)
    if to == "redis62":
        assert any("hash field expiry" in row["reason"] for row in rows)
    await local.close()


async def test_a_sample_is_scaled_to_all_keys(local: LocalMigration) -> None:
    pipe = local.servers[Side.SOURCE].client().pipeline(transaction=False)
    for number in range(20_000):
        pipe.set(f"k{number}", b"x" if number % 4 else randbytes(5_000))
    pipe.execute()
    rows = await forecast(await local.engine(), 1_000)
    sampled = sum(row["keys_sampled"] for row in rows)
    assert 900 <= sampled <= 1_100
    assert abs(sum(row["keys_estimated"] for row in rows) - 20_000) <= len(rows)
    assert {row["size"] for row in rows} == {"up to 1 kB", "up to 64 kB"}
