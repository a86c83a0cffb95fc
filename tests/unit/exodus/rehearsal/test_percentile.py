from __future__ import annotations

import pytest

from exodus.rehearsal.rehearse import percentile


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [
        ([], 0.99, 0.0),
        ([5.0], 0.5, 5.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([float(value) for value in range(1, 101)], 0.99, 99.0),
        ([float(value) for value in range(1, 21)], 0.99, 20.0),
        ([1.0, 2.0], 0.5, 1.0),
    ],
)
def test_the_smallest_value_that_a_share_does_not_exceed(
    values: list[float], share: float, wanted: float
) -> None:
    assert percentile(values, share) == wanted
