"""The rule of sampled keys."""

from __future__ import annotations

import random
from zlib import crc32

from exodus.plan.sample import KeySample, name_test
from exodus.plan.share import in_share


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


def test_the_hash_is_zlib_s_crc32_in_the_compiled_form_too() -> None:
    """Gateways of both forms sample the same keys."""
    chance = random.Random(1)
    for _ in range(5_000):
        key = chance.randbytes(chance.randrange(40))
        salt = chance.choice([0, 2**31, 2**32 - 1, chance.randrange(2**32)])
        found = crc32(key, salt)
        assert in_share(key, found + 1, salt)
        assert not in_share(key, found, salt)
