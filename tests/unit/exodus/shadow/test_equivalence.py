"""The bounds match the textbooks', and a series shows whether it converges."""

from __future__ import annotations

import pytest

from exodus.shadow.equivalence import Moment, bound_text, convergence, share_max


@pytest.mark.parametrize(
    ("differ", "keys", "share"),
    [
        (0, 30_000, 0.0000998526),  # the rule of three: 3/n
        (0, 1, 0.95),
        (1, 100, 0.0465598),  # one-sided 95 % Clopper-Pearson, from tables
        (3, 1_000, 0.0077346),
        (10, 20, 0.6980),
        (5, 5, 1.0),
        (0, 0, 1.0),
    ],
)
def test_the_bound_is_clopper_pearson(differ: int, keys: int, share: float) -> None:
    assert share_max(differ, keys) == pytest.approx(share, rel=2e-3)


def test_the_bound_in_words() -> None:
    assert bound_text(0, 30_000) == "0 of 30,000 keys differ: at most 0.01 % of all, at 95 %"
    assert "nothing is known" in bound_text(0, 0)
    assert bound_text(10, 20, healed=4).startswith("10 of 20 keys differ (4 healed since): at most")


def test_convergence_of_a_burst() -> None:
    found = convergence(
        [Moment(0, 0, 0), Moment(1, 100, 4), Moment(2, 80, 2), Moment(3, 40, 0), Moment(4, 0, 0)],
        list(range(1, 101)),
    )
    assert (found["dirty_max"], found["dirty_last"], found["half_life_s"]) == (100, 0, 2)
    assert (found["lag_ms_p50"], found["lag_ms_p99"]) == (51, 100)


def test_a_set_that_only_grows_has_a_slope_and_no_half_life() -> None:
    found = convergence([Moment(at, 10 * at, 0) for at in range(5)], [])
    assert (found["dirty_slope_per_s"], found["half_life_s"]) == (10, None)
    assert convergence([], [])["dirty_max"] == 0
