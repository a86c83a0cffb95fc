"""What Compare found is accepted by name, all of it and nothing else."""

from __future__ import annotations

from exodus.shadow.findings import NOTHING_COMPARED, findings, why_not_accepted

_ROW = {"command": "GET", "compared": 3}
_DIVERGENCE = {
    "db": 0,
    "key": "k",
    "command": "GET",
    "kind": "replies differ",
    "cause": "replies differ under the rule 'exact'",
}
_STATE = {"db": 1, "key": "odd\nname", "kind": "value", "detail": "another value"}


def test_each_finding_has_a_name_of_one_line() -> None:
    found = findings([_ROW], {"differ": [_STATE]}, [_DIVERGENCE])
    assert [row["name"] for row in found] == ["0:k GET", "1:odd\\nname state"]
    assert found[1]["finding"] == "the state does not converge"


def test_a_comparison_of_nothing_is_a_finding() -> None:
    """An empty table gave three rows that said ERROR, and the phase could not be passed."""
    for rows in ([], [{"command": "TTL", "compared": 0}]):
        (found,) = findings(rows, {"differ": []}, [])
        assert found["name"] == NOTHING_COMPARED
    assert findings([_ROW], {"differ": []}, []) == []


def test_all_findings_are_accepted_by_name_or_none() -> None:
    found = findings([_ROW], {"differ": [_STATE]}, [_DIVERGENCE])
    assert why_not_accepted([], "") is None
    assert "2 finding(s) are neither resolved nor accepted" in str(why_not_accepted(found, ""))
    assert "0:k GET" not in str(why_not_accepted(found, "0:k GET"))
    assert "'0:other GET' is no finding" in str(why_not_accepted(found, "0:other GET"))
    assert why_not_accepted(found, " 0:k GET\n\n1:odd\\nname state ") is None
