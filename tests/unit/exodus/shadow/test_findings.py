"""A finding of Compare is accepted by name, as a whole and alone."""

from __future__ import annotations

from exodus.shadow.causes import Cause
from exodus.shadow.findings import NOTHING_COMPARED, findings, why_not_accepted

_ROW = {"command": "GET", "compared": 3}
_DIVERGENCE = {
    "db": 0,
    "key": "k",
    "command": "GET",
    "kind": "replies differ",
    "cause": Cause.STALE,
    "state": "confirmed",
}
_STATE = {
    "db": 1,
    "key": "odd\nname",
    "command": "state",
    "kind": "the state differs: value",
    "cause": Cause.UNKNOWN,
    "state": "pending",
}
_NAMES = {"0:k GET", "1:odd\\nname state"}


def test_each_finding_has_a_name_of_one_line() -> None:
    found = findings([_ROW], [_DIVERGENCE, _STATE])
    assert {row["name"] for row in found} == _NAMES
    assert found[0]["cause"] == "stale restore"


def test_what_is_healed_or_accepted_is_no_finding() -> None:
    for state in ("healed", "accepted"):
        assert findings([_ROW], [{**_DIVERGENCE, "state": state}]) == []


def test_a_comparison_of_nothing_is_a_finding() -> None:
    """Before, an empty table gave three rows with ERROR, and the phase could not be passed."""
    for rows in ([], [{"command": "TTL", "compared": 0}]):
        (found,) = findings(rows, [])
        assert found["name"] == NOTHING_COMPARED
    assert findings([_ROW], []) == []


def test_all_findings_are_accepted_by_name_or_none() -> None:
    found = findings([_ROW], [_DIVERGENCE, _STATE])

    def why(text: str, still_open: set[str] = _NAMES) -> str | None:
        return why_not_accepted(found, text, still_open=still_open)

    assert why_not_accepted([], "", still_open=set()) is None
    assert "2 finding(s) are neither resolved nor accepted" in str(why(""))
    assert "0:k GET" not in str(why("0:k GET"))
    assert "'0:other GET' is no finding" in str(why("0:other GET"))
    assert why(" 0:k GET\n\n1:odd\\nname state ") is None
    # One was healed while the form waited: it needs no name, and may have one.
    left = {"1:odd\\nname state"}
    assert why("1:odd\\nname state", left) is None
    assert why("0:k GET\n1:odd\\nname state", left) is None
    assert "1 finding(s)" in str(why("0:k GET", left))


def test_a_command_whose_writes_all_lead_elsewhere_is_a_finding() -> None:
    """Writes past the gateway cause that for some of them only."""
    rows = [{"command": "LPOP", "compared": 5}, {"command": "INCR", "compared": 9, "by_reply": 1}]
    (found,) = findings(rows, [], {"LPOP": 3, "INCR": 8, "SADD": 2})
    assert found["name"] == "LPOP effect"
    why = why_not_accepted([found], "", still_open={"LPOP effect"})
    assert "1 finding(s) are neither resolved nor accepted" in str(why)
    assert why_not_accepted([found], "LPOP effect", still_open={"LPOP effect"}) is None
