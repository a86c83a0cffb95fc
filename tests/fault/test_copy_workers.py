"""Slices are copied by whatever the plan names, under a real Prefect server: threads, processes, Dask's workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from prefect import flow
from prefect.testing.utilities import prefect_test_harness
from pydantic import ValidationError

from blocks import Migration
from blocks.endpoint import RedisEndpoint
from exodus.config import Side, Workers
from exodus.control.checkpoint import load_progress
from exodus.control.route import read_route
from flows import migrate
from tests.support.plant import Plant
from tests.support.servers import Box

pytestmark = pytest.mark.fault
KEYS = 8_000


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@flow
def copying(migration: str, live: dict) -> dict:
    """The part of Migrate that copies."""
    return migrate._backfill(migration, live)


def _endpoint(box: Box) -> RedisEndpoint:
    address = box.address()
    secret = address.secret("test")
    return RedisEndpoint(url=address.url, **({} if secret is None else {"password": secret}))


@pytest.mark.parametrize("kind", ["threads", "processes", "dask"])
async def test_slices_are_copied_by_the_workers_that_the_plan_names(plant: Plant, prefect_server: None, kind: str) -> None:
    with plant.boxes[Side.SOURCE].client() as source:
        source.mset({f"k{number}": number for number in range(KEYS)})
    await plant.start_live_sync()
    block = Migration(
        migration=plant.plan.name, options={"workers": {"kind": kind, "count": 2}, "slices": 4, "rehearsal_hours_max": None},
        source=_endpoint(plant.boxes[Side.SOURCE]), target=_endpoint(plant.boxes[Side.TARGET]), control_store=_endpoint(plant.control),
    )  # fmt: skip
    await asyncio.to_thread(block.save, plant.plan.name, overwrite=True)
    live = {"run": "run", "writer_epoch": (await read_route(plant.store)).writer_epoch}
    counted = await asyncio.to_thread(copying, plant.plan.name, live)
    assert counted["slices"] == counted["slices_done"] == 4
    assert counted["keys_seen"] == counted["keys_accounted"] >= KEYS
    pids = {int(progress.worker.rpartition(":")[2]) for progress in (await load_progress(plant.store, "run")).values()}
    assert (pids == {os.getpid()}) is (kind == "threads")
    assert (await plant.verify()).keys_verified == KEYS


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "processes", "dask_scheduler": "tcp://h:1"}, "set kind: dask"),
        ({"kind": "dask", "dask_scheduler": "tcp://h:1", "count": 2}, "count"),
    ],
)
def test_what_does_not_fit_its_kind_is_refused(fields: dict, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Workers(**fields)
