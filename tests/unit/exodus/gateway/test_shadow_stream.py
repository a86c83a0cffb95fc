"""Sampled pairs on their way to the control store."""

from __future__ import annotations

import tracemalloc

from exodus.control.store import ControlStore
from exodus.gateway.shadow_stream import ShadowStream
from exodus.net.client import make_client
from exodus.plan.address import Address
from exodus.plan.bounds import SHADOW_PAYLOAD_BYTES_MAX, SHADOW_QUEUE_BYTES_MAX, SHADOW_QUEUE_MAX


def test_pairs_that_wait_have_a_bound_in_bytes_and_one_in_number() -> None:
    """A control store that answers nothing lets them wait. They were bounded in number only."""
    address = Address(host="127.0.0.1", port=1)
    store = ControlStore(make_client(address, field="control_store"), "stream", address)
    stream = ShadowStream(store)
    tracemalloc.start()
    for _ in range(1_000):
        stream.offer(0, b"GET k", b"x" * SHADOW_PAYLOAD_BYTES_MAX, False, b"app")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2 * SHADOW_QUEUE_BYTES_MAX
    assert stream.dropped > 1_000 - 2 * SHADOW_QUEUE_BYTES_MAX // SHADOW_PAYLOAD_BYTES_MAX
    many = ShadowStream(store)
    for _ in range(SHADOW_QUEUE_MAX + 5):
        many.offer(0, b"GET k", b"+x\r\n", False, b"app")
    assert many.dropped == 5
