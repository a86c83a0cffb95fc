"""The rule of sampled keys."""

from __future__ import annotations

from exodus.plan.sample import KeySample, name_test


def test_no_patterns_cost_no_test() -> None:
    assert name_test((), ()) is None


def test_patterns_narrow_the_share() -> None:
    sampled = KeySample(1.0, 7, ("cart:*", "user:?"), ("*:2",)).test()
    names = [b"cart:1", b"cart:2", b"user:1", b"user:12", b"other"]
    assert [name for name in names if sampled(name)] == [b"cart:1", b"user:1"]


def test_the_share_is_of_hashes_and_follows_the_salt() -> None:
    keys = [b"k%d" % number for number in range(10_000)]
    one, other = (KeySample(0.1, salt).test() for salt in (1, 2))
    chosen = [{key for key in keys if test(key)} for test in (one, other)]
    assert all(800 < len(found) < 1_200 for found in chosen)
    assert len(chosen[0] & chosen[1]) < 300
    assert not any(KeySample(0.0, 1).test()(key) for key in keys)
