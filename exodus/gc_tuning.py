"""Tuning Python's cyclic garbage collector, where somebody waits for the process or many objects
come and go.

A full collection stops the process until it has walked all live objects. During a switch that took
65 to 95 ms, one switch in thirty, while every application's writes were held. Comparing lists and
hashes spent a third of its time in collections that found nothing, since the values are in no
cycle.
"""

from __future__ import annotations

import atexit
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from exodus.plan.bounds import GC_TUNING_BULK_OBJECTS, GC_TUNING_THRESHOLDS


def settle() -> None:
    """Freeze what exists now in a serving process, so that collections skip it. Passes over more
    than the youngest objects come seldom.

    An ended session is a cycle of some 50 objects and its buffers. A pass over 20,000 young objects
    freed 100 to 300 of them, and stopped the process for 6 to 15 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_TUNING_THRESHOLDS)
    atexit.register(_end)


def _end() -> None:
    """Let the last passes look at everything again; libraries that count their objects report what
    they did not see go.
    """
    gc.unfreeze()
    gc.collect()


@contextmanager
def rest() -> Iterator[None]:
    """No pass inside: for seconds, since cycles are not freed meanwhile."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


_bulk_lock = threading.Lock()
# One entry a user; the first has the thresholds of before
_bulk_before: list[tuple[int, int, int]] = []


@contextmanager
def seldom() -> Iterator[None]:
    """Fewer passes inside, for bulk reads. May be used by several threads and tasks at once."""
    with _bulk_lock:
        _bulk_before.append(_bulk_before[0] if _bulk_before else gc.get_threshold())
        gc.set_threshold(GC_TUNING_BULK_OBJECTS, 20, 50)
    try:
        yield
    finally:
        with _bulk_lock:
            before = _bulk_before.pop()
            if not _bulk_before:
                gc.set_threshold(*before)
