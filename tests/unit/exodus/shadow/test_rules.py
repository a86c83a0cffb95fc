"""Replies with the same meaning are equal, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from exodus.errors import OperatorError
from exodus.plan.compare_rules import CompareRule, ReplyRule
from exodus.shadow import rules as module
from exodus.shadow.rules import Rules, parse

_OLD, _NEW = b"443344.12345670001", b"4.433441234567e+5"


@pytest.mark.parametrize(
    ("args", "here", "there"),
    [
        ([b"ZSCORE", b"z", b"m"], _OLD, _NEW),
        ([b"ZSCORE", b"z", b"m"], _OLD, 443344.1234567),
        ([b"ZMSCORE", b"z", b"m", b"n"], [_OLD, None], [_NEW, None]),
        (
            [b"ZRANGE", b"z", b"0", b"-1", b"WITHSCORES"],
            [b"m", _OLD, b"n", b"1"],
            [b"m", _NEW, b"n", b"1.0"],
        ),
        ([b"ZRANGE", b"z", b"0", b"-1", b"withscores"], [[b"m", 443344.1234567]], [b"m", _NEW]),
        (
            [b"ZRANGEBYSCORE", b"z", b"-inf", b"+inf", b"WITHSCORES"],
            [b"m", b"inf"],
            [b"m", b"Infinity"],
        ),
        ([b"ZRANK", b"z", b"m", b"WITHSCORE"], [0, _OLD], [0, _NEW]),
        ([b"ZPOPMIN", b"z"], [b"m", _OLD], [b"m", _NEW]),
    ],
)
def test_scores_are_numbers(args: list[bytes], here: object, there: object) -> None:
    assert Rules().equivalent(args[0], here, there, args)


@pytest.mark.parametrize(
    ("args", "here", "there"),
    [
        ([b"ZRANGE", b"z", b"0", b"-1", b"WITHSCORES"], [b"m", b"1"], [b"m", b"1.5"]),
        ([b"ZRANGE", b"z", b"0", b"-1", b"WITHSCORES"], [b"1", b"1"], [b"1.0", b"1"]),
        ([b"ZRANGE", b"z", b"0", b"-1"], [_OLD], [_NEW]),
        ([b"GET", b"k"], _OLD, _NEW),
        ([b"ZSCORE", b"z", b"m"], _OLD, b"443344.2"),
        ([b"ZRANGE", b"z", b"0", b"-1", b"WITHSCORES"], [b"m", b"1"], [b"m", b"1", b"n", b"2"]),
    ],
)
def test_members_and_values_are_not(args: list[bytes], here: object, there: object) -> None:
    assert not Rules().equivalent(args[0], here, there, args)


def _own(**rule: object) -> Rules:
    return Rules([CompareRule.model_validate(rule)])


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({"commands": ["GET"], "rule": "exact", "relative": 0.1}, "tolerances of numbers"),
        ({"commands": ["GET"], "rule": "approximate"}, "needs relative"),
        ({"commands": ["GET"], "rule": "exact", "expiry_ms": 5}, "belongs to rule"),
        ({"commands": ["GET"], "rule": "python"}, "needs function"),
        ({"commands": ["GET"], "rule": "exact", "function": "f"}, "needs function"),
        ({"commands": [], "rule": "exact"}, "at least 1 item"),
        ({"commands": ["GET"], "rule": "fuzzy"}, "Input should be"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(rule: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        CompareRule.model_validate(rule)


def test_the_first_rule_that_fits_counts() -> None:
    rules = Rules(
        [
            CompareRule(commands=("get",), pattern="price:*", rule=ReplyRule.NUMERIC, absolute=0.5),
            CompareRule(commands=("GET",), rule=ReplyRule.NEVER),
        ]
    )
    assert rules.equivalent(b"GET", b"1.0", b"1.4", [b"GET", b"price:1"])
    assert not rules.equivalent(b"GET", b"1.0", b"1.6", [b"GET", b"price:1"])
    assert rules.never(b"GET", [b"GET", b"other"])
    assert not rules.never(b"GET", [b"GET", b"price:1"])


def test_a_function_that_nobody_brings_is_an_error_with_a_way_out() -> None:
    with pytest.raises(OperatorError, match="no package brings the function 'absent'"):
        _own(commands=["GET"], rule="python", function="absent")


def test_a_package_may_bring_a_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the entry points that Python itself reads."""
    (tmp_path / "their_rules.py").write_text(
        "def lower(args, here, there):\n    return here.lower() == there.lower()\n"
    )
    info = tmp_path / "their_rules-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-rules\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[exodus.reply_rules]\nlower = their_rules:lower\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    rules = _own(commands=["GET"], rule="python", function="lower")
    assert rules.equivalent(b"GET", b"Yes", b"YES", [b"GET", b"k"])
    assert not rules.equivalent(b"GET", b"Yes", b"no", [b"GET", b"k"])


def test_a_function_that_raises_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended each batch of the comparer, which blamed itself and judged nothing any more."""
    monkeypatch.setattr(module, "_function", lambda _: lambda *_: {}["missing"])
    rules = _own(commands=["GET"], rule="python", function="theirs")
    assert not rules.equivalent(b"GET", b"1", b"1", [b"GET", b"k"])
    assert rules.told(b"GET", [b"GET", b"k"]) == "python (theirs, which raised KeyError: 'missing')"
    assert rules.equivalent(b"STRLEN", b":1", b":1", [b"STRLEN", b"k"])


def test_members_without_scores_are_no_numbers() -> None:
    union = [b"ZUNION", b"2", b"a", b"b"]
    assert not Rules().equivalent(b"ZUNION", [b"m", b"10"], [b"m", b"1e1"], union)
    scored = [*union, b"WITHSCORES"]
    assert Rules().equivalent(b"ZUNION", [b"m", b"10"], [b"m", b"1e1"], scored)


@pytest.mark.parametrize(
    ("command", "here", "there", "same"),
    [
        (b"TTL", b":10", b":9", True),
        (b"TTL", b":10", b":8", False),
        (b"TTL", b":-1", b":0", False),
        (b"PTTL", b":10000", b":9600", True),
        (b"PTTL", b":10000", b":9000", False),
        (b"PEXPIRETIME", b":1800000000000", b":1800000001000", False),
        (b"EXPIRETIME", b":1800000000", b":1800000001", False),
        (b"PFCOUNT", b":1000", b":1009", True),
        (b"PFCOUNT", b":1000", b":1011", False),
        (b"ZSCORE", b"$17\r\n0.123456789012345", b"$17\r\n0.123456789012346", False),
        (b"GET", b"$-1", b"_", True),
        (b"GET", b"*-1", b"_", True),
        (b"SISMEMBER", b":1", b"#t", True),
        (b"SISMEMBER", b":0", b"#f", True),
        (b"SISMEMBER", b":1", b"#f", False),
        (b"GET", b"-WRONGTYPE one text", b"-WRONGTYPE another", True),
        (b"GET", b"-WRONGTYPE one text", b"-ERR another", False),
        (b"GET", b"-WRONGTYPE one text", b"$-1", False),
    ],
)
def test_single_replies_over_both_protocols(
    command: bytes, here: bytes, there: bytes, same: bool
) -> None:
    one, other = (parse(each + b"\r\n") for each in (here, there))
    assert Rules().equivalent(command, one, other, [command, b"k"]) is same
