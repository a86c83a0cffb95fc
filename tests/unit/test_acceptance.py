"""Test's checks as tasks: each has the level of its own field, and the flow runs each."""

from __future__ import annotations

import ast
import asyncio
import inspect
from pathlib import Path
from typing import cast

import pytest

from exodus.control.store import ControlStore
from exodus.plan.address import Address
from exodus.plan.gate_checks import CheckLevel, GateChecks
from exodus.plan.plan import Plan
from tasks import acceptance
from tasks.context import Opened

CHECKS = {
    "logins": acceptance.check_logins,
    "commands": acceptance.check_commands,
    "delivery": acceptance.check_delivery,
    "settings": acceptance.check_settings,
    "replicas": acceptance.check_replicas,
    "latency": acceptance.check_latency,
    "load": acceptance.check_load,
    "data": acceptance.check_data,
    "business": acceptance.check_business,
    "failures": acceptance.check_failures,
    "rehearsal": acceptance.rehearse_rounds,
}
_FLOW = Path(__file__).resolve().parents[2] / "flows/test.py"


def test_every_check_but_two_is_required_unless_the_migration_file_says_otherwise() -> None:
    levels = {name: value for name, value in GateChecks().model_dump().items() if name in CHECKS}
    fields = GateChecks.model_fields.items()
    assert levels.keys() == {name for name, field in fields if field.annotation is CheckLevel}
    advisory = {name for name, level in levels.items() if level is not CheckLevel.REQUIRED}
    assert advisory == {"replicas", "failures"}


@pytest.mark.parametrize("name", CHECKS)
def test_each_check_is_turned_off_by_its_own_field(name: str) -> None:
    places = {side: Address(host="127.0.0.1", port=1) for side in ("source", "target")}
    plan = Plan(name="shop", **places, test_checks=GateChecks(**{name: CheckLevel.OFF}))
    nowhere = cast("ControlStore", None)  # a check that is off asks nobody
    work = inspect.unwrap(CHECKS[name].fn)
    rows = asyncio.run(work(Opened(plan, nowhere, plan)))
    assert [(row["check"], row["level"]) for row in rows] == [(f"{name}: not run", "info")]


def test_the_flow_runs_each_check() -> None:
    called = {
        node.func.id
        for node in ast.walk(ast.parse(_FLOW.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    tasks = {name for name, each in vars(acceptance).items() if each in CHECKS.values()}
    assert len(tasks) == len(CHECKS)
    assert tasks <= called
