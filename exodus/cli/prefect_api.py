"""Call Prefect's REST API for operators' commands. The UI uses the same calls.

With SQLite the server answers 503 while its database is locked; these calls are tried again. A
resume with a wrong input answers HTTP 200 with status REJECT
(docs/decisions/0009-prefect-suspend.md), so only `status` counts.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from typing import Any, cast

import httpx

from exodus.errors import OperatorError, OrchestratorError
from exodus.plan.bounds import (
    ASKED_ONCE_S,
    CLI_PREFECT_ATTEMPTS,
    PREFECT_API_AGAIN_S,
    PREFECT_API_RUNS_MAX,
)
from exodus.plan.vocabulary import Phase
from exodus.stack.home import Home
from exodus.stack.up import MIGRATION

Json = dict[str, Any]


class PrefectApi:
    """One Prefect server."""

    def __init__(self, url: str, login: str = "") -> None:
        self.url = url.rstrip("/")
        self.login = login
        user, _, password = login.partition(":")
        self._http = httpx.Client(
            base_url=self.url, auth=(user, password) if login else None, timeout=30
        )

    @classmethod
    def find(cls, home: Home) -> PrefectApi:
        """Return the server that PREFECT_API_URL or the local stack names, with its login.

        Raises:
            OperatorError: neither names a server.
        """
        named = os.environ if os.environ.get("PREFECT_API_URL") else home.prefect_environment()
        url = named.get("PREFECT_API_URL")
        if not url:
            raise OperatorError(
                "no Prefect server is known",
                why=f"PREFECT_API_URL is not set, and {home.root} has no stack",
                next_step="exodus up, or export PREFECT_API_URL=http://host:4200/api",
            )
        return cls(url, named.get("PREFECT_API_AUTH_STRING") or "")

    @classmethod
    def known(cls, home: Home) -> PrefectApi | None:
        """Return the server that `find` finds, or None."""
        try:
            return cls.find(home)
        except OperatorError:
            return None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @property
    def ui(self) -> str:
        """Return the address of the UI."""
        return self.url.removesuffix("/api")

    def run_url(self, run_id: str) -> str:
        """Return the address of a run's page, in the UI version that has a Resume button."""
        return f"{self.ui}/runs/flow-run/{run_id}"

    def _call(
        self, method: str, path: str, *, attempts: int = CLI_PREFECT_ATTEMPTS, **more: Any
    ) -> httpx.Response:
        failure = ""
        for _ in range(attempts):
            try:
                answer = self._http.request(method, path, **more)
            except httpx.HTTPError as exc:
                failure = str(exc) or type(exc).__name__
            else:
                if answer.status_code == 401:
                    raise OperatorError(
                        f"Prefect at {self.url} refuses the login",
                        why="the authentication string is missing or wrong",
                        next_step="export PREFECT_API_AUTH_STRING=USER:PASSWORD beside "
                        "PREFECT_API_URL",
                    )
                if answer.status_code != 503:
                    return answer
                failure = "HTTP 503: its database is locked"
            time.sleep(PREFECT_API_AGAIN_S)
        raise OrchestratorError(
            f"Prefect at {self.url} does not answer",
            why=failure,
            next_step="start it (exodus up); applications are not affected",
        )

    def start(self, phase: str, parameters: Json) -> Json:
        """Start a phase's deployment and return the flow run.

        Raises:
            OperatorError: the deployment does not exist, or a parameter is wrong.
        """
        answer = self._call("GET", f"/deployments/name/{phase}/exodus")
        if answer.status_code == 404:
            raise OperatorError(
                f"there is no deployment {phase}/exodus",
                why=f"{self.url} does not know it",
                next_step="exodus deploy",
            )
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        made = self._call("POST", f"/deployments/{answer.json()['id']}/create_flow_run", json=body)
        if made.status_code not in (200, 201):
            raise OperatorError(
                f"{phase} was not started", why=made.text[:300], next_step="correct the parameters"
            )
        return cast("Json", made.json())

    def run(self, run_id: str) -> Json:
        """Return a flow run."""
        answer = self._call("GET", f"/flow_runs/{run_id}")
        if answer.status_code != 200:
            raise OrchestratorError(
                f"flow run {run_id} is not known",
                why=f"HTTP {answer.status_code}",
                next_step="look in the Prefect UI",
            )
        return cast("Json", answer.json())

    def runs(self, run_ids: Iterable[str]) -> dict[str, Json]:
        """Return runs by their ids, without those that the server does not know. Try once.

        Raises:
            OrchestratorError: the server does not answer.
        """
        wanted = sorted(set(run_ids))
        if not wanted:
            return {}
        asked = {"flow_runs": {"id": {"any_": wanted}}, "limit": PREFECT_API_RUNS_MAX}
        try:
            answer = self._http.post("/flow_runs/filter", json=asked, timeout=ASKED_ONCE_S)
            return {run["id"]: run for run in answer.json()}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as exc:
            raise self._tells_nothing(exc) from exc

    def last_error(self, run_id: str) -> str:
        """Return the last line of the last error that a run logged, or an empty text."""
        asked = {
            "logs": {"flow_run_id": {"any_": [run_id]}, "level": {"ge_": logging.ERROR}},
            "sort": "TIMESTAMP_DESC",
            "limit": 1,
        }
        try:
            answer = self._http.post("/logs/filter", json=asked, timeout=ASKED_ONCE_S)
            lines = [line for row in answer.json() for line in row["message"].splitlines()]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as exc:
            return f"its log cannot be read: {exc}"
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _tells_nothing(self, exc: Exception) -> OrchestratorError:
        return OrchestratorError(
            f"Prefect at {self.url} does not list its runs",
            why=str(exc) or type(exc).__name__,
            next_step="start it (exodus up)",
        )

    def newest_runs(self, migration: str) -> dict[str, Json]:
        """Return the newest run of each phase of a migration, without planned ones. Try once.

        Raises:
            OrchestratorError: the server does not answer.
        """
        asked = {
            "flows": {"name": {"any_": list(Phase)}},
            "sort": "EXPECTED_START_TIME_DESC",
            "limit": PREFECT_API_RUNS_MAX,
        }
        try:
            answer = self._http.post("/flow_runs/filter", json=asked, timeout=ASKED_ONCE_S)
            flows = {
                flow["id"]: flow["name"]
                for flow in self._http.post(
                    "/flows/filter",
                    json={"flows": asked["flows"]},
                    timeout=ASKED_ONCE_S,
                ).json()
            }
            found: dict[str, Json] = {}
            for run in answer.json():
                planned = run.get("auto_scheduled") and run["state"]["type"] == "SCHEDULED"
                if run["parameters"].get("migration", MIGRATION) == migration and not planned:
                    found.setdefault(flows[run["flow_id"]], run)
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise self._tells_nothing(exc) from exc
        return found

    def check(self) -> None:
        """Check that the server answers and accepts the login. Try once.

        Raises:
            OrchestratorError: the server does not answer.
            OperatorError: the server refuses the login.
        """
        self._call("GET", "/admin/version", attempts=1)

    def migrations(self) -> list[Json]:
        """Return the Migration blocks with their secrets.

        Raises:
            OrchestratorError: the server does not answer.
        """
        answer = self._call(
            "GET", "/block_types/slug/migration/block_documents", params={"include_secrets": "true"}
        )
        return [] if answer.status_code == 404 else cast("list[Json]", answer.json())

    def remove_migration(self, name: str) -> None:
        """Remove the existing blocks of a migration: the Migration block, then its three servers.

        Raises:
            OrchestratorError: the server does not answer.
        """
        named = [
            ("migration", name),
            *(
                ("redis-endpoint", f"{name}-{server}")
                for server in ("source", "target", "control-store")
            ),
        ]
        for slug, document in named:
            found = self._call("GET", f"/block_types/slug/{slug}/block_documents/name/{document}")
            if found.status_code == 200:
                self._call("DELETE", f"/block_documents/{found.json()['id']}")

    def asks(self, run_id: str) -> bool:
        """Return whether a run is suspended and has its form.

        Prefect stores the form after the suspension.
        """
        state = self.run(run_id)["state"]
        keyset = (state.get("state_details") or {}).get("run_input_keyset")
        if state["type"] != "PAUSED" or not keyset:
            return False
        return self._call("GET", f"/flow_runs/{run_id}/input/{keyset['schema']}").status_code == 200

    def form(self, run_id: str) -> Json:
        """Return the form fields of a suspended run from its schema; empty without a form."""
        keyset = (self.run(run_id)["state"].get("state_details") or {}).get("run_input_keyset")
        if not keyset:
            return {}
        answer = self._call("GET", f"/flow_runs/{run_id}/input/{keyset['schema']}")
        return (
            cast("Json", answer.json().get("properties", {})) if answer.status_code == 200 else {}
        )

    def resume(self, run_id: str, answer: Json) -> None:
        """Answer the open decision of a suspended run.

        Raises:
            OperatorError: the answer does not fit the form, or no decision is open.
        """
        said = self._call("POST", f"/flow_runs/{run_id}/resume", json={"run_input": answer})
        try:
            body = said.json()
        except ValueError:
            body = {}
        if body.get("status") == "ACCEPT":
            return
        why = (body.get("details") or {}).get("reason") or said.text[:300]
        raise OperatorError(
            f"Prefect refused the answer ({body.get('status', said.status_code)})",
            why=str(why),
            next_step=f"see the form: {self.run_url(run_id)}",
        )
