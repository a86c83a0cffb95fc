"""Texts of scripts that a gateway keeps."""

from __future__ import annotations

import tracemalloc

from exodus.gateway.scripts import Scripts
from exodus.plan.bounds import SCRIPTS_ASKED_DIGESTS_MAX, SCRIPTS_BYTES_MAX


def test_many_short_scripts_take_bounded_memory() -> None:
    """Each costs more than its text. Before, a client with EVAL could fill 143 MiB."""
    scripts, count = Scripts(), 0
    tracemalloc.start()
    while not scripts.left_out and count < SCRIPTS_BYTES_MAX:
        scripts.see(b"return %d" % count)
        count += 1
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert scripts.left_out == 1
    for number in range(SCRIPTS_ASKED_DIGESTS_MAX + 5):
        scripts.ask(b"%040d" % number)
    assert (len(scripts.asked), scripts.left_out) == (SCRIPTS_ASKED_DIGESTS_MAX, 6)
    assert kept <= 2 * SCRIPTS_BYTES_MAX
    assert len(scripts.take()) == count - 1 > 10_000
