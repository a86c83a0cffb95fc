"""Renew: bring one kind of evidence up to date, by a schedule or by hand.

It asks for no decision and changes no phase. Evidence ages: the workload changes, a rehearsal
counts for `rehearsal_hours_max`, keys are written after they were compared. A sample of Compare
counts for `evidence_hours_max`, and more samples make its bound tighter. The deployment has an
inactive schedule for each kind; activate those that a long migration needs.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from flows.phase import MIGRATION, SECONDS, MigrationName, Seconds
from tasks.renewal import KINDS, RENEW, Kind, renew_one, renewal_turn, why_not_now

_KIND: Any = Field(
    default=KINDS[0],
    description="workload: learn the traffic · sample: compare requests of sampled keys, as "
    "Compare does · comparison: compare all keys of both sides · "
    "rehearsal: rehearse the switch · drift: compare both sides after a cutover",
    json_schema_extra={"title": "Evidence"},
)


@flow(name=RENEW, flow_run_name="{migration}: renew {kind}", persist_result=False)
def renew(
    migration: MigrationName = MIGRATION,
    kind: Annotated[Kind, Field()] = _KIND,
    seconds: Seconds = SECONDS,
) -> State[str]:
    """Renew the evidence of one kind, if the migration allows it now; else return the reason."""
    with renewal_turn(migration, kind):
        why = why_not_now(migration, kind)
        if why is not None:
            return Completed(name="Skipped", message=f"{kind} was not renewed: {why}")
        return Completed(message=renew_one(migration, kind, seconds))
