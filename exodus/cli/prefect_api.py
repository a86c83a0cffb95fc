"""Prefect's REST API, as far as operators' commands need it. The UI uses the same calls.

Its sqlite database answers 503 when it is locked; those are tried again. A resume with an input that does not fit answers HTTP 200 with status REJECT
(docs/decisions/0009-prefect-suspend.md), so `status` is what counts.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from typing import Any, cast

import httpx

from exodus.errors import OperatorError, OrchestratorError
from exodus.plan.vocabulary import Phase
from exodus.stack.home import Home
from exodus.stack.up import MIGRATION

_ATTEMPTS = 20
_AGAIN_S = 0.5
_ASKED_ONCE_S = 2.0
_RUNS_MAX = 200  # of all migrations
Json = dict[str, Any]


class PrefectApi:
    """One server."""

    def __init__(self, url: str, login: str = "") -> None:
        self.url = url.rstrip("/")
        self.login = login
        user, _, password = login.partition(":")
        self._http = httpx.Client(base_url=self.url, auth=(user, password) if login else None, timeout=30)

    @classmethod
    def find(cls, home: Home) -> PrefectApi:
        """The server that PREFECT_API_URL or the local stack names, with the login from the same place.

        Raises:
            OperatorError: neither names one.
        """
        named = os.environ if os.environ.get("PREFECT_API_URL") else home.prefect_environment()
        url = named.get("PREFECT_API_URL")
        if not url:
            raise OperatorError(
                "no Prefect server is known",
                why=f"PREFECT_API_URL is not set, and {home.root} holds no stack",
                next_step="exodus up, or export PREFECT_API_URL=http://host:4200/api",
            )
        return cls(url, named.get("PREFECT_API_AUTH_STRING") or "")

    @classmethod
    def known(cls, home: Home) -> PrefectApi | None:
        """The same, or None."""
        try:
            return cls.find(home)
        except OperatorError:
            return None

    def close(self) -> None:
        """End the connections."""
        self._http.close()

    @property
    def ui(self) -> str:
        """Where people look."""
        return self.url.removesuffix("/api")

    def run_url(self, run_id: str) -> str:
        """A run's page, in the version of the UI that has a Resume button."""
        return f"{self.ui}/runs/flow-run/{run_id}"

    def _call(self, method: str, path: str, *, attempts: int = _ATTEMPTS, **more: Any) -> httpx.Response:
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
                        why="it asks for an authentication string, and has another one or got none",
                        next_step="export PREFECT_API_AUTH_STRING=USER:PASSWORD beside PREFECT_API_URL",
                    )
                if answer.status_code != 503:
                    return answer
                failure = "HTTP 503: its database is locked"
            time.sleep(_AGAIN_S)
        raise OrchestratorError(
            f"Prefect at {self.url} does not answer", why=failure, next_step="start it (exodus up); applications are not affected"
        )

    def start(self, phase: str, parameters: Json) -> Json:
        """Start a phase's deployment; the flow run.

        Raises:
            OperatorError: there is no such deployment, or a parameter does not fit.
        """
        answer = self._call("GET", f"/deployments/name/{phase}/exodus")
        if answer.status_code == 404:
            raise OperatorError(
                f"there is no deployment {phase}/exodus", why=f"asked {self.url}", next_step="prefect --no-prompt deploy --all, in the checkout"
            )
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        made = self._call("POST", f"/deployments/{answer.json()['id']}/create_flow_run", json=body)
        if made.status_code not in (200, 201):
            raise OperatorError(f"{phase} was not started", why=made.text[:300], next_step="correct the parameters")
        return cast("Json", made.json())

    def run(self, run_id: str) -> Json:
        """A flow run."""
        answer = self._call("GET", f"/flow_runs/{run_id}")
        if answer.status_code != 200:
            raise OrchestratorError(f"flow run {run_id} is not known", why=f"HTTP {answer.status_code}", next_step="look in the Prefect UI")
        return cast("Json", answer.json())

    def runs(self, run_ids: Iterable[str]) -> dict[str, Json]:
        """Runs by their ids, asked once; those that the server does not know are left out.

        Raises:
            OrchestratorError: the server does not answer.
        """
        wanted = sorted(set(run_ids))
        if not wanted:
            return {}
        asked = {"flow_runs": {"id": {"any_": wanted}}, "limit": _RUNS_MAX}
        try:
            answer = self._http.post("/flow_runs/filter", json=asked, timeout=_ASKED_ONCE_S)
            return {run["id"]: run for run in answer.json()}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as exc:
            raise self._tells_nothing(exc) from exc

    def last_error(self, run_id: str) -> str:
        """Return the last line of the last error that a run logged; empty where none is known."""
        asked = {
            "logs": {"flow_run_id": {"any_": [run_id]}, "level": {"ge_": logging.ERROR}},
            "sort": "TIMESTAMP_DESC",
            "limit": 1,
        }
        try:
            answer = self._http.post("/logs/filter", json=asked, timeout=_ASKED_ONCE_S)
            lines = [line for row in answer.json() for line in row["message"].splitlines()]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as exc:
            return f"its log cannot be read: {exc}"
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _tells_nothing(self, exc: Exception) -> OrchestratorError:
        return OrchestratorError(
            f"Prefect at {self.url} does not tell its runs",
            why=str(exc) or type(exc).__name__,
            next_step="start it (exodus up)",
        )

    def newest_runs(self, migration: str) -> dict[str, Json]:
        """The newest run of each phase of a migration, asked once; without those that a schedule plans.

        Raises:
            OrchestratorError: the server does not answer.
        """
        asked = {
            "flows": {"name": {"any_": list(Phase)}},
            "sort": "EXPECTED_START_TIME_DESC",
            "limit": _RUNS_MAX,
        }
        try:
            answer = self._http.post("/flow_runs/filter", json=asked, timeout=_ASKED_ONCE_S)
            flows = {
                flow["id"]: flow["name"] for flow in self._http.post("/flows/filter", json={"flows": asked["flows"]}, timeout=_ASKED_ONCE_S).json()
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
        """See that the server answers and takes the login, asked once.

        Raises:
            OrchestratorError: it does not answer.
            OperatorError: it refuses the login.
        """
        self._call("GET", "/admin/version", attempts=1)

    def migrations(self) -> list[Json]:
        """Return the blocks of type Migration, with the secrets that they hold.

        Raises:
            OrchestratorError: the server does not answer.
        """
        answer = self._call("GET", "/block_types/slug/migration/block_documents", params={"include_secrets": "true"})
        return [] if answer.status_code == 404 else cast("list[Json]", answer.json())

    def remove_migration(self, name: str) -> None:
        """Remove the blocks of a migration: itself, then its three servers. What is not there is left out.

        Raises:
            OrchestratorError: the server does not answer.
        """
        named = [("migration", name), *(("redis-endpoint", f"{name}-{server}") for server in ("source", "target", "control-store"))]
        for slug, document in named:
            found = self._call("GET", f"/block_types/slug/{slug}/block_documents/name/{document}")
            if found.status_code == 200:
                self._call("DELETE", f"/block_documents/{found.json()['id']}")

    def asks(self, run_id: str) -> bool:
        """Whether a run is suspended and its form is there. Prefect suspends a run first and keeps the form of its question after that."""
        state = self.run(run_id)["state"]
        keyset = (state.get("state_details") or {}).get("run_input_keyset")
        if state["type"] != "PAUSED" or not keyset:
            return False
        return self._call("GET", f"/flow_runs/{run_id}/input/{keyset['schema']}").status_code == 200

    def form(self, run_id: str) -> Json:
        """Return the fields of the form of a suspended run, as its schema has them; empty where it asks nothing."""
        keyset = (self.run(run_id)["state"].get("state_details") or {}).get("run_input_keyset")
        if not keyset:
            return {}
        answer = self._call("GET", f"/flow_runs/{run_id}/input/{keyset['schema']}")
        return cast("Json", answer.json().get("properties", {})) if answer.status_code == 200 else {}

    def resume(self, run_id: str, answer: Json) -> None:
        """Answer the open decision of a suspended run.

        Raises:
            OperatorError: the answer does not fit the form, or nothing is asked.
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
            f"the answer was not taken ({body.get('status', said.status_code)})", why=str(why), next_step=f"see the form: {self.run_url(run_id)}"
        )
