"""The workload model: a file that cannot be is refused, and only what can be played is modelled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from exodus.errors import OperatorError
from exodus.observe import shapes
from exodus.observe.composer import Composer
from exodus.observe.known_commands import known_table
from exodus.observe.profile import Profile
from exodus.observe.shapes import Shapes
from exodus.observe.workload import Workload, workload_of


def profile_of(*requests: list[bytes]) -> Profile:
    profile, known = Profile(), Shapes(known_table())
    for number, words in enumerate(requests):
        at = 1_000 + number / 100
        profile.add(known.event(at, 1, "app", 0, known.table.of(words), words, 50))
    return profile


def model() -> dict[str, Any]:
    found = profile_of(*[[b"HSET", b"user:%d" % n, b"f", b"v"] for n in range(100)])
    return json.loads(workload_of(found, source="packets").model_dump_json())


def _operation(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda found: found["operations"][0].update(fields)


def _pattern(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda found: found["patterns"][0].update(fields)


@pytest.mark.parametrize(
    "breaks",
    [
        lambda found: found.update(seconds=1e-300),
        lambda found: found.update(seconds=float("inf")),
        lambda found: found["rates"].update(mean=float("nan")),
        lambda found: found["depths"].update(values=[[-3, 5]]),
        _pattern(zipf_exponent=1e5),
        _pattern(top_shares=[5.0]),
        _operation(arity="many"),
        _operation(arity=""),
        _operation(calls=10**15),
        _operation(in_transactions=101),
        _operation(request_bytes={"values": [[10**12, 5]]}),
        _operation(request_bytes={"values": [[5, -5]]}),
        _operation(expiry_ms={"values": [[10**30, 5]]}),
    ],
)
def test_a_model_that_cannot_be_is_refused(
    tmp_path: Path, breaks: Callable[[dict[str, Any]], None]
) -> None:
    """Some of these let the player run for ever, fill the memory, or end with a traceback."""
    file, found = tmp_path / "model.json", model()
    file.write_text(json.dumps(found))
    Workload.load(file)
    breaks(found)
    file.write_text(json.dumps(found))
    with pytest.raises(OperatorError, match="is no workload model"):
        Workload.load(file)


def test_requests_of_too_many_shapes_are_counted_and_not_played(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They were modelled as the command of the first of them, without a number of arguments."""
    monkeypatch.setattr(shapes, "SHAPES_MAX", 1)
    gets = [[b"GET", b"user:%d" % n] for n in range(50)]
    others = [[b"HSET", b"user:1", b"f", b"v"], [b"DEL", b"user:1"]] * 10
    found = workload_of(profile_of(*gets, *others), source="packets")
    assert [each.command for each in found.operations] == ["GET"]
    assert found.operations_left_out == 20
    Composer(found, prefix=b"exodus:load:a:", speed=1.0, draw=Random(1)).unit()
