"""Slices of a cluster's nodes: together they have every key, and each key about once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from exodus.copy.scan import Slice, plan_slices, scan_once
from exodus.plan.vocabulary import Side
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from tests.support.clusters import ClusterBox

pytestmark = pytest.mark.fault
KEYS, COUNT = 20_000, 100
KINDS = [ServerKind.REDIS_62, ServerKind.REDIS_82, ServerKind.VALKEY_91]


@pytest.mark.parametrize("kind", KINDS)
async def test_slices_have_every_key_and_hardly_overlap(
    kind: ServerKind, make_cluster: Callable[..., ClusterBox]
) -> None:
    """Also keys of slots that came to a node after the slices were planned."""
    box = make_cluster(kind, masters=2)
    with box.client() as client:
        pipe = client.pipeline(transaction=False)
        for number in range(KEYS):
            pipe.set(f"k{number}", number)
        pipe.execute()
    endpoint = Endpoint(Side.SOURCE, box.address())
    pieces = await plan_slices(endpoint, 8)
    assert len(pieces) == 8  # the nodes share them: otherwise each would have eight
    assert {piece.count for piece in pieces} == {4}
    assert [Slice.parse(piece.slice_id) for piece in pieces] == pieces
    first, second = box.masters()
    box.reshard(range(100, 140), second)
    box.reshard(range(16_000, 16_040), first)
    found: list[bytes] = []
    for piece in pieces:
        async with await endpoint.connect(name="test", node=piece.node) as leg:
            cursor, ended = piece.start, False
            while not ended:
                cursor, keys = await scan_once(leg, cursor, COUNT)
                ended = piece.ended(cursor)
                found += keys
    assert set(found) == {f"k{number}".encode() for number in range(KEYS)}
    assert len(found) < KEYS + len(pieces) * 3 * COUNT
