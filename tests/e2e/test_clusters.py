"""A cluster through a real Prefect, moved by hand: watched and tried on every node, copied under
writes and through a failover, verified, and ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from exodus.stack.home import Home
from exodus.stack.servers import ServerKind
from exodus.stack.up import StackOptions, down, up
from tests.support.clusters import ClusterBox
from tests.support.operator import Operator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
KEYS = 20_000


def place(box: ClusterBox) -> dict[str, object]:
    address = box.address()
    return {
        "cluster": list(address.cluster),
        "username": address.username,
        "password_file": str(address.password_file),
    }


def write(box: ClusterBox, stop: threading.Event) -> None:
    """Write as an application does: try again after an error."""
    number = 0
    with box.client() as client:
        while not stop.wait(0.005):
            number += 1
            try:
                client.set(f"app:{number % 200}", number)
            except redis.RedisError:
                stop.wait(0.1)


def test_a_cluster_is_migrated_and_moved_by_hand(
    make_cluster: Callable[..., ClusterBox], tmp_path: Path
) -> None:
    source = make_cluster(ServerKind.VALKEY_81, replicas=1)
    target = make_cluster(ServerKind.VALKEY_91, masters=2)
    with source.client() as client:
        pipe = client.pipeline()
        for number in range(KEYS):
            pipe.set(f"k:{number}", f"value {number}", ex=7_200 if number % 5 == 0 else None)
        pipe.execute()
    home = Home(tmp_path / "stack")
    options = {
        "source": place(source),
        "target": place(target),
        "cutover": "own",
        "observe_seconds": 1.0,
        "test_checks": {"failures": "off", "load_seconds": 0.3, "load_times_max": 50.0},
    }
    up(home, StackOptions(options=options), print)
    operator = Operator(home)
    stop = threading.Event()
    application = threading.Thread(target=write, args=(source, stop))
    try:
        application.start()
        refused = operator.exodus("start", "analyze")
        assert refused.returncode == 1, refused
        assert "pass no gateway" in refused.stderr
        for phase, accepted in (
            ("pre-test", ""),
            ("test", "rehearsal of the switch\nreplicas of the target"),
        ):
            operator.start(phase)
            operator.waiting(phase, within_s=120)
            operator.answer("approve", **({"accept_findings": accepted} if accepted else {}))
            operator.ended(phase, "approved")
        operator.start("migrate")
        source.failover(source.masters()[0])
        operator.waiting("migrate", within_s=180)
        status = operator.status()
        assert status["topology"]["source"]["master"].count("slots ") == 3
        stop.set()
        application.join()
        operator.answer("approve")
        operator.ended("migrate", "approved")
        verified = operator.exodus("verify", "--json")
        assert verified.returncode == 0, verified
        assert source.contents() == target.contents()
        assert len(target.contents()) == KEYS + 200
        operator.start("rollback")
        gate = operator.waiting("rollback", within_s=120)["gate"]
        if gate != "next":
            operator.answer("approve")
            operator.waiting("rollback", "next", within_s=120)
        operator.answer("abandon")
        operator.ended("rollback", "approved")
        ended = operator.status()
        assert (ended["state"], ended["ended"]["how"]) == ("done", "abandoned")
        for node in target.masters():
            with node.client() as client:
                assert list(client.scan_iter(match="exodus:*")) == []
    finally:
        stop.set()
        application.join()
        operator.api.close()
        down(home)
