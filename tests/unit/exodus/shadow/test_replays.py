"""A write is run again with the effect that it had."""

from __future__ import annotations

import pytest

from exodus.shadow.exchange import Exchange
from exodus.shadow.replays import NoReplay, replay


def _exchange(*texts: str) -> Exchange:
    requests = tuple([word.encode() for word in text.split()] for text in texts)
    return Exchange(0, 0, requests, b"", write=True, transaction=len(texts) > 1)


@pytest.mark.parametrize(
    ("text", "reply", "again", "wanted"),
    [
        ("INCR k", 5, "INCR k", 5),
        ("SPOP k", b"a", "SREM k a", 1),
        ("spop k 2", [b"a", b"b"], "SREM k a b", 2),
        ("SPOP k 2", {b"a"}, "SREM k a", 1),
        ("SPOP k", None, "SPOP k", None),
        ("SPOP k 2", [], "SPOP k 2", []),
        ("XADD k * f v", b"7-1", "XADD k 7-1 f v", b"7-1"),
        ("XADD k MAXLEN ~ 100 * f v", b"7-1", "XADD k MAXLEN ~ 100 7-1 f v", b"7-1"),
        (
            "XADD k NOMKSTREAM MINID = 3-1 LIMIT 5 7-* f v",
            b"7-2",
            "XADD k NOMKSTREAM MINID = 3-1 LIMIT 5 7-2 f v",
            b"7-2",
        ),
        ("XADD k NOMKSTREAM * f v", None, "XADD k NOMKSTREAM * f v", None),
        ("EXPIRE k 100", 1, "EXPIRE k 100", 1),
        ("EXPIRE k 100 NX", 1, "EXPIRE k 100 NX", 1),
    ],
)
def test_what_was_drawn_is_named(text: str, reply: object, again: str, wanted: object) -> None:
    found, expected = replay(_exchange(text), reply)
    assert found.args == [word.encode() for word in again.split()]
    assert expected == wanted


@pytest.mark.parametrize(
    "text", ["PEXPIRE k 100 GT", "EXPIREAT k 100 lt", "TTL k", "HPTTL k", "HEXPIRE k 9 FIELDS 1 f"]
)
def test_what_depends_on_the_time_is_not_run_again(text: str) -> None:
    with pytest.raises(NoReplay, match="time"):
        replay(_exchange(text), 1)


def test_a_transaction_is_replayed_command_by_command() -> None:
    found, wanted = replay(_exchange("SPOP k", "GET k"), [b"a", b"v"])
    assert found.wire() == [[b"MULTI"], [b"SREM", b"k", b"a"], [b"GET", b"k"], [b"EXEC"]]
    assert wanted == [1, b"v"]
    with pytest.raises(NoReplay):
        replay(_exchange("SPOP k", "GET k"), None)
