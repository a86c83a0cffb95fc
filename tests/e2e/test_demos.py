"""The demos of clusters and of services behind Sentinel, run as a reader runs them: FULL=1 alone,
since each is a whole migration of two to three minutes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from exodus.stack.home import Home
from exodus.stack.prefect import project_root
from exodus.stack.up import TopologyKind, down
from tests.support.full import FULL

_SECONDS_MAX = 600
_KEYS, _WRITES = 5_000, 300

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(_SECONDS_MAX + 120)]

if FULL:

    @pytest.mark.parametrize("topology", [*TopologyKind][1:])
    def test_a_demo_ends_well(topology: TopologyKind, tmp_path: Path) -> None:
        """Its summary says so, and by how much; the exit status says the same."""
        command = [sys.executable, "-m", "exodus.cli.app", "demo", "--topology", topology]
        command += ["--keys", str(_KEYS), "--writes", str(_WRITES), "--out", str(tmp_path / "demo")]
        log = tmp_path / "log"
        try:
            with log.open("w") as output:
                ended = subprocess.run(
                    command,
                    cwd=project_root(),
                    stdout=output,
                    stderr=output,
                    timeout=_SECONDS_MAX,
                    check=False,
                )
        finally:
            down(Home(tmp_path / "demo" / "stack"))
        assert ended.returncode == 0, log.read_text()[-6_000:]
        summary = orjson.loads((tmp_path / "demo" / "summary.json").read_bytes())
        assert summary["ok"], summary
        assert summary["acknowledged_writes"] > _WRITES
        assert summary["keys_source"] == summary["keys_target"] > _KEYS
        for what in (
            "divergences",
            "lost_writes",
            "duplicated",
            "resurrected_keys",
            "app_errors",
            "ttl_drift_ms_max",
        ):
            assert summary[what] == 0, (what, summary)
        fails_over = topology.is_service("source")
        assert summary.get("failovers", 0) == fails_over, summary
