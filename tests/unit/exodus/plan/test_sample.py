"""The rule of sampled keys."""

from __future__ import annotations

import itertools
import random
from zlib import crc32

from exodus.plan.sample import KeySample, name_test
from exodus.plan.share import in_share


def test_no_patterns_cost_no_test() -> None:
    assert name_test((), ()) is None


def test_patterns_narrow_the_share() -> None:
    sampled = KeySample(1.0, 7, ("cart:*", "user:?"), ("*:2",)).test()
    names = [b"cart:1", b"cart:2", b"user:1", b"user:12", b"other"]
    assert [name for name in names if sampled(0, name)] == [b"cart:1", b"user:1"]


def test_the_share_is_of_hashes_and_follows_the_salt() -> None:
    keys = [b"k%d" % number for number in range(10_000)]
    one, other = (KeySample(0.1, salt).test() for salt in (1, 2))
    chosen = [{key for key in keys if test(0, key)} for test in (one, other)]
    assert all(800 < len(found) < 1_200 for found in chosen)
    assert len(chosen[0] & chosen[1]) < 300
    assert not any(KeySample(0.0, 1).test()(0, key) for key in keys)


def test_a_name_in_another_database_is_another_key() -> None:
    keys = [b"k%d" % number for number in range(10_000)]
    sampled = KeySample(0.1, 7).test()
    chosen = [{key for key in keys if sampled(db, key)} for db in range(16)]
    assert all(800 < len(found) < 1_200 for found in chosen)
    shared = [len(one & other) for one, other in itertools.combinations(chosen, 2)]
    assert max(shared) < 900
    assert 50 < sum(shared) / len(shared) < 200  # by chance 100; two checksums differ by a constant


def test_the_hash_is_zlib_s_crc32_in_the_compiled_form_too() -> None:
    """Gateways of both forms sample the same keys."""
    chance = random.Random(1)
    for _ in range(5_000):
        key = chance.randbytes(chance.randrange(40))
        salt = chance.choice([0, 2**31, 2**32 - 1, chance.randrange(2**32)])
        found = crc32(key, salt)
        assert in_share(key, found + 1, salt)
        assert not in_share(key, found, salt)
