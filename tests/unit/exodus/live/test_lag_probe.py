"""The percentiles of the lag probe."""

from __future__ import annotations

import pytest

from exodus.live.lag_probe import percentile


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [
        ([], 0.5, 0.0),
        ([7.0], 0.99, 7.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        (list(map(float, range(100))), 0.99, 99.0),
        ([1.0] * 99 + [5.0], 0.5, 1.0),
    ],
)
def test_the_percentile_is_one_of_the_values(
    values: list[float], share: float, wanted: float
) -> None:
    assert percentile(values, share) == wanted
