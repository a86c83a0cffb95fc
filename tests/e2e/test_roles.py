"""All phases through a real Prefect, with exactly the users that `exodus users` prints: no server
refuses Exodus anything.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from exodus.plan.vocabulary import Side
from exodus.stack.home import Home
from exodus.stack.servers import ServerKind
from exodus.stack.up import StackOptions, down, up
from exodus.topology.rights import UsedFeatures
from tests.support.operator import Operator
from tests.support.roles import denied, make_users
from tests.support.shop import shopping

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
_CANARY = {"steps": [100], "seconds": 1.0, "wait_ms_max": 1000.0, "bad_max": 99}


def test_every_phase_runs_with_the_users_of_its_roles(make_server, tmp_path: Path) -> None:
    servers = {
        Side.SOURCE: make_server(ServerKind.REDIS_62),
        Side.TARGET: make_server(ServerKind.VALKEY_91),
    }
    own, users = make_users(servers, dict.fromkeys(Side, UsedFeatures()), tmp_path)
    urls = {
        side: f"redis://{address.username}@127.0.0.1:{address.port}"
        for side, address in own.items()
    }
    files = {side: address.password_file for side, address in own.items()}
    options = {
        "observe_seconds": 2.0,
        # A disposable server has none of these users, and other tests disturb its times
        "test_checks": {
            "failures": "off",
            "load_times_max": 1_000.0,
            "latency_ms_added_max": 1_000.0,
        },
        "canary": _CANARY,
        "users": users.model_dump(mode="json", exclude_none=True),
    }
    home = Home(tmp_path / "stack")
    source, target = Side.SOURCE, Side.TARGET
    up(
        home,
        StackOptions(urls[source], urls[target], files[source], files[target], options=options),
        print,
    )
    operator = Operator(home)
    try:
        with shopping(tmp_path, operator.file.plan.gateway, keys=5_000, writes=200):
            for phase in ("pre-test", "analyze", "compare", "test", "migrate"):
                operator.start(phase)
                operator.waiting(phase, within_s=120)
                operator.answer("approve")
                operator.ended(phase, "approved")
            operator.start("commit")
            for gate in ("canary-100", "cutover"):
                operator.waiting("commit", gate, within_s=120)
                operator.answer("approve")
            operator.waiting("commit", "finalise", within_s=120)
            assert operator.status()["authority"] == "target"
            operator.answer("approve")
            operator.ended("commit", "approved")
            assert denied(servers) == []
    finally:
        operator.api.close()
        down(home)
