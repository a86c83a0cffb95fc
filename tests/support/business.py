"""What tests of business checks share: the plan, its rows, and those that are red."""

from __future__ import annotations

from collections.abc import Sequence

from exodus.acceptance.business import check_business
from exodus.acceptance.rows import Checked
from exodus.plan.gate_checks import GateChecks
from exodus.plan.plan import Plan
from tests.support.local_migration import LocalMigration

PATTERNS = ("account:*", "session:*", "user:*", "events:*")


def not_ok(rows: Sequence[Checked]) -> dict[str, str]:
    return {row.check: row.detail for row in rows if row.judged and not row.ok}


def plan_with(local: LocalMigration, **checks: object) -> Plan:
    checks = {"business_patterns": PATTERNS, "data_keys": 10, **checks}
    return local.plan.model_copy(update={"test_checks": GateChecks(**checks)})


async def checked(local: LocalMigration, plan: Plan) -> list[Checked]:
    return await check_business(plan, plan, local.store)
