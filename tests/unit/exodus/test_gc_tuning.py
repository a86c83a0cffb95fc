"""The garbage collector pauses where it is told to, and continues as before."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from exodus import gc_tuning

_LEAVES_CYCLES = """
import gc
from exodus import gc_tuning
gc_tuning.settle()
found = []
gc.callbacks.append(lambda phase, told: phase == "stop" and found.append(told["collected"]))
for _ in range(40_000):
    cycle = []
    cycle.append(cycle)
gc.callbacks.clear()
print(*found)
"""


def _fails() -> None:
    with gc_tuning.rest():
        assert not gc.isenabled()
        raise ValueError


def test_it_goes_on_after_a_failure() -> None:
    with pytest.raises(ValueError):
        _fails()
    assert gc.isenabled()


def test_one_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with gc_tuning.rest():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_passes_are_seldom_until_the_last_who_asked_has_ended() -> None:
    before = gc.get_threshold()
    with gc_tuning.seldom():
        with gc_tuning.seldom():
            inside = gc.get_threshold()
        assert gc.get_threshold() == inside
        assert inside[0] > before[0]
    assert gc.get_threshold() == before


def test_a_pass_of_a_serving_process_frees_few_sessions() -> None:
    """Before, one pass freed what 20,000 allocations had left, and stopped the process for that
    long.
    """
    found = subprocess.run([sys.executable, "-c", _LEAVES_CYCLES], capture_output=True, check=True)
    collected = [int(word) for word in found.stdout.split()]
    assert sum(collected) > 20_000, "the passes found nothing: the test tests nothing"
    assert max(collected) < 5_000
