"""An operator of a local stack: what a person does with the phases, through the same calls."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from exodus.acceptance.load import NOT_JUDGED
from exodus.cli.decisions import answer_open_decision
from exodus.cli.demo import open_findings
from exodus.cli.phases import read_status
from exodus.cli.prefect_api import PrefectApi
from exodus.plan.migration_file import MigrationFile, load_migration
from exodus.stack.home import Home
from exodus.stack.prefect import project_root
from tasks.evidence import artifact_key
from tests.support.wait import wait_until


class Operator:
    """What a person does, through the same calls."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.file: MigrationFile = load_migration(home.migration_file)
        self.api = PrefectApi.find(home)
        self.started = ""

    def status(self) -> dict:
        return asyncio.run(read_status(self.file))

    def start(self, phase: str) -> str:
        watched = {"seconds": 2.0} if phase in ("pre-test", "analyze", "compare") else {}
        self.started = self.api.start(phase, {"migration": self.file.plan.name, **watched})["id"]
        return self.started

    def waiting(self, phase: str, gate: str | None = None, within_s: float = 90) -> dict:
        def there() -> bool:
            now = self.status()
            state = now["phases"].get(phase, {})
            assert (state.get("state"), state.get("flow_run_id")) != ("failed", self.started), (
                f"{phase} failed: {state.get('why')}"
            )
            return (
                now["waiting"] is not None
                and now["waiting"]["phase"] == phase
                and gate in (None, now["waiting"]["gate"])
            )

        wait_until(there, within_s=within_s, otherwise=f"{phase} never asked for its decision")
        found = self.status()["waiting"]
        wait_until(
            lambda: self.api.run(found["flow_run_id"])["state"]["name"] == "Suspended",
            within_s=30,
            otherwise="the run was never suspended",
        )
        return found

    def answer(self, verdict: str, **fields: object) -> None:
        """Answer the open question. That this machine was too busy to judge a load is accepted."""
        waiting = self.status()["waiting"]
        if (
            verdict == "approve"
            and waiting is not None
            and NOT_JUDGED in asyncio.run(open_findings(self.file, waiting["phase"]))
        ):
            named = str(fields.get("accept_findings", ""))
            fields["accept_findings"] = "\n".join(filter(None, (named, NOT_JUDGED)))
        answer_open_decision(
            self.file, self.api, verdict, by="the test", why="because it is tested", fields=fields
        )

    def form(self, asked: dict, number: int) -> tuple[str, dict]:
        """Return what the UI renders of the `number`-th question of a decision: the text above the
        form, and its fields.
        """
        found: list = []

        def there() -> bool:
            details = self.api.run(asked["flow_run_id"])["state"]["state_details"]
            if details.get("pause_key") != f"{asked['gate']}-{number}":
                return False
            # Prefect stores both after the suspension, the description last.
            answers = [
                self.api._call(
                    "GET",
                    f"/flow_runs/{asked['flow_run_id']}/input/{details['run_input_keyset'][part]}",
                )
                for part in ("description", "schema")
            ]
            found[:] = [answer.json() for answer in answers if answer.status_code == 200]
            return len(found) == len(answers)

        wait_until(there, within_s=60, otherwise=f"{asked['gate']} was not asked {number} times")
        words, schema = found
        return words, schema["properties"]

    def ended(self, phase: str, state: str) -> None:
        try:
            wait_until(
                lambda: self.status()["phases"][phase]["state"] == state,
                within_s=60,
                otherwise=f"{phase} never became {state}",
            )
        except AssertionError as exc:
            asked = self.exodus("answer").stdout  # what the form says, as for a person
            raise AssertionError(f"{exc}; open now: {asked[:2_000]}") from exc

    def run_state(self, run_id: str, *names: str) -> dict:
        wait_until(
            lambda: self.api.run(run_id)["state"]["name"] in names,
            within_s=60,
            otherwise=f"the run never became {names}",
        )
        return self.api.run(run_id)["state"]

    def artifact(self, *parts: str) -> dict:
        wanted = {"artifacts": {"key": {"any_": [artifact_key(self.file.plan.name, *parts)]}}}
        return self.api._call("POST", "/artifacts/latest/filter", json=wanted).json()[0]

    def exodus(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "exodus.cli.app", *arguments, "--home", str(self.home.root)],
            cwd=project_root(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
