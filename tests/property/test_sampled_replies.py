"""Sampling changes nothing for a client: it gets the same bytes, and the comparer each sampled
pair.
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from exodus.gateway.session import Session
from exodus.gateway.session.leg import Dialect
from exodus.plan.bounds import SHADOW_PAYLOAD_BYTES_MAX
from exodus.plan.share import in_share
from exodus.plan.vocabulary import JournalMode
from exodus.resp.encode import encode
from tests.support.full import FULL
from tests.support.script import Recorder
from tests.unit.exodus.gateway.test_session import orders

pytestmark = pytest.mark.property
_BELOW = 2**31  # about half of the keys
_KEYS = [b"k%d" % number for number in range(8)]
_SHORT, _LONG = b"$3\r\nabc\r\n", b"$70000\r\n" + b"x" * 70_000 + b"\r\n"
_PUSH = b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n"
_OK, _ERROR = b"+OK\r\n", b"-WRONGTYPE no\r\n"
assert len(_LONG) > SHADOW_PAYLOAD_BYTES_MAX
# What the client sends, `%` for the key; all that the server answers; the pair that is compared
_EXCHANGES: dict[str, tuple[bytes, bytes, tuple[bytes, bytes] | None]] = {
    "read": (encode("GET", "%"), _SHORT, (encode("GET", "%"), _SHORT)),
    "write": (encode("SET", "%", "v"), _OK, (encode("SET", "%", "v"), _OK)),
    "refused": (encode("GET", "%"), _ERROR, None),
    "too long": (encode("GET", "%"), _LONG, None),
    "behind a push": (encode("GET", "%"), _PUSH + _SHORT, (encode("GET", "%"), _SHORT)),
    "without a key": (encode("PING"), b"+PONG\r\n", None),
    "of the session": (encode("SELECT", "3"), _OK, None),
    "transaction": (
        encode("MULTI") + encode("SET", "%", "v") + encode("EXEC"),
        _OK + b"+QUEUED\r\n*1\r\n" + _OK,
        (encode("MULTI") + encode("SET", "%", "v"), b"*1\r\n" + _OK),
    ),
}


def _of(key: bytes, words: bytes) -> bytes:
    return words.replace(b"$1\r\n%", b"$%d\r\n%b" % (len(key), key))


def _played(
    below: int, dialect: Dialect, steps: list[tuple[str, int, int]], part: int
) -> tuple[Session, Recorder]:
    """Play exchanges. The server keeps back the last bytes of what it answered until the next
    request has come, and sends in parts.
    """
    out = Recorder()
    followed = orders(journal=JournalMode.ALL)
    followed.pick(shadow_below=below)
    session = Session(out, followed)
    session.log_in(None, 0.0, dialect)
    waiting = b""
    for name, key, kept in [*steps, ("without a key", 0, 0)]:
        asked, answered, _ = _EXCHANGES[name]
        session.from_client(_of(_KEYS[key], asked), 0.0)
        waiting += answered
        end = max(0, len(waiting) - kept)
        for at in range(0, end, part):
            session.from_server(waiting[at : min(end, at + part)], 1.0)
        waiting = waiting[end:]
    return session, out


@settings(deadline=None, max_examples=2_000 if FULL else 150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*_EXCHANGES, "read", "write"]),
            st.integers(0, len(_KEYS) - 1),
            st.sampled_from([0, 0, 1, 4, 9, 30, 69_000]),
        ),
        max_size=12,
    ),
    st.sampled_from([Dialect.PLAIN, Dialect.CLUSTER]),
    st.sampled_from([1, 3, 10, 100, 2_000]),
)
def test_a_client_gets_the_same_and_the_comparer_each_pair(
    steps: list[tuple[str, int, int]], dialect: Dialect, part: int
) -> None:
    if any(name == "too long" for name, _, _ in steps):
        part = max(part, 1_000)
    told = []
    for below in (0, _BELOW):
        session, out = _played(below, dialect, steps, part)
        told.append(
            (
                b"".join(call[1] for call in out.calls if call[0] == "to_client"),
                sorted(str(call) for call in out.calls if call[0] == "journal"),
            )
        )
        replies = session.parts.replies
        assert (replies.copies, replies.edits) == (0, int(dialect == Dialect.CLUSTER))
        assert session.idle
    got = told[0][0] == told[1][0]  # not compared in an assertion, which would print it
    assert got
    assert told[0][1] == told[1][1]
    wanted = []
    for name, key, _ in steps:
        pair = _EXCHANGES[name][2]
        if pair is not None and in_share(_KEYS[key], _BELOW, 0):
            wanted.append((_of(_KEYS[key], pair[0]), pair[1]))
    assert [(call[2], call[3]) for call in out.calls if call[0] == "shadow"] == wanted
