"""The garbage collector pauses where it is told to, and continues as before."""

from __future__ import annotations

import gc

import pytest

from exodus import gc_tuning


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
