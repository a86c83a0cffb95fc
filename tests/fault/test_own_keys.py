"""Exodus knows its own keys by their exact names. An application's key that only begins like one is
copied like any other.
"""

from __future__ import annotations

import pytest

from exodus.control.schema import fence_guard_key, guard_key, lane_guard_key, native_guard_key
from exodus.cutover import switch
from exodus.plan.own_keys import is_own
from exodus.plan.vocabulary import Side
from tests.support.local_migration import LocalMigration

pytestmark = pytest.mark.fault

_THEIRS = [
    b"exodus:{cart}:42",
    b"exodus:{",
    b"exodus:{a}:epoch:1",
    b"exodus:{a}:lane:x",
    b"exodus:{a}:beacon:ab",
    b"exodus:{stage}:mine",
    b"exodus:{probe}s",
    b"exodus:{B}:epoch",
]


def test_names() -> None:
    own = [
        guard_key("m-1"),
        lane_guard_key("m-1", 15),
        fence_guard_key("m-1"),
        native_guard_key("m-1"),
    ]
    assert all(map(is_own, own))
    assert not any(map(is_own, _THEIRS))


async def test_an_application_s_keys_that_begin_like_ours_are_carried_compared_and_switched(
    local: LocalMigration,
) -> None:
    source, target = (local.servers[side].client() for side in (Side.SOURCE, Side.TARGET))
    early, late = _THEIRS[:4], _THEIRS[4:]
    source.mset(dict.fromkeys(early, b"1"))
    await local.gateway()
    await local.syncer()
    await local.start_live_sync()
    await local.backfill()
    for key in late:
        await local.app().set(key, b"1")
    await local.drained()
    assert target.mget(_THEIRS) == [b"1"] * len(_THEIRS)
    target.set(early[0], b"other")
    assert [found.key for found in (await local.verify()).divergences] == [early[0]]
    target.set(early[0], b"1")
    assert (await switch.apply(local.store, local.plan, Side.TARGET)).switched
    await local.app().delete(early[0])
    await local.drained()
    assert source.get(early[0]) is None
