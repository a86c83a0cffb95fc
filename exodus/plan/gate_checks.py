"""The checks of the phase Test, and what follows when one of them fails."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator


class CheckLevel(StrEnum):
    """What follows from a check that fails."""

    REQUIRED = "required"  # Test cannot be approved
    ADVISORY = "advisory"  # an approval accepts it by name
    OFF = "off"  # it is not run


class GateChecks(BaseModel):
    """The checks of Test (docs/phases/test.md): a level for each, and how it is run.

    required: Test cannot be approved while it fails; advisory: an approval accepts the failure by
    name; off: it is not run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    logins: CheckLevel = Field(
        default=CheckLevel.REQUIRED,
        description="logins, rights and TLS of the target, for every user of the source",
    )
    commands: CheckLevel = Field(
        default=CheckLevel.REQUIRED,
        description="every observed kind of request, tried on scratch keys of the target",
    )
    delivery: CheckLevel = Field(
        default=CheckLevel.REQUIRED,
        description="transactions, scripts, functions, publish/subscribe, keyspace events, and "
        "blocking requests on the target",
    )
    settings: CheckLevel = Field(
        default=CheckLevel.REQUIRED,
        description="settings, memory, persistence and modules of the target",
    )
    replicas: CheckLevel = Field(
        default=CheckLevel.ADVISORY, description="replicas of the target, as many as the source's"
    )
    latency: CheckLevel = Field(
        default=CheckLevel.REQUIRED, description="round trips from each gateway to the target"
    )
    latency_ms_added_max: float = Field(
        default=5.0,
        gt=0,
        description="milliseconds by which a round trip to the target may be longer than one to "
        "the source, at the median",
    )
    data: CheckLevel = Field(
        default=CheckLevel.REQUIRED,
        description="trial copy of a sample of keys into an empty database of the target, compared "
        "in full, with its memory",
    )
    data_keys: int = Field(
        default=1_000, ge=1, le=100_000, description="keys of the trial copy, of every part"
    )
    load: CheckLevel = Field(
        default=CheckLevel.REQUIRED,
        description="the observed workload, played on scratch keys of the target at 1 and 2 times "
        "its rate, and on to the knee",
    )
    load_seconds: float = Field(
        default=1.5, gt=0, le=600, description="seconds for which each speed is played"
    )
    load_speed_max: float = Field(
        default=32.0,
        ge=2,
        le=1_000,
        description="times the observed rate that are tried at most, in search of the knee",
    )
    load_times_max: float = Field(
        default=2.0,
        ge=1,
        description="times the latency that applications have now, which the target may take",
    )
    business: CheckLevel = Field(
        default=CheckLevel.REQUIRED, description="business checks, where any are named"
    )
    business_folder: Path | None = Field(
        default=None,
        description="folder of Python files on the worker's machine, each with a function "
        "check(source, target) that returns a pandas.DataFrame",
    )
    business_patterns: tuple[str, ...] = Field(
        default=(),
        description="patterns of names that the trial copy has whole, for business checks",
    )
    business_webhook: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="URL of a service that judges both sides: POST of JSON, answered with ok and "
        "rows",
    )
    business_seconds_max: float = Field(
        default=120.0, gt=0, le=3_600, description="seconds that business checks may take in all"
    )
    failures: CheckLevel = Field(
        default=CheckLevel.ADVISORY,
        description="a slow, a full and a restarted target, tried on a disposable server with the "
        "target's engine and settings",
    )
    rehearsal: CheckLevel = Field(
        default=CheckLevel.REQUIRED,
        description="rehearsal of the switch, there and back, on reserved keys",
    )
    rehearsal_rounds: int = Field(
        default=3, ge=1, le=100, description="rounds of the rehearsal, there and back each"
    )
    rehearsal_kill: bool = Field(
        default=True,
        description="in one round of the rehearsal a gateway of its own is killed (SIGKILL)",
    )

    @field_validator("business_folder")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError(
                "business_folder must be an absolute path: a worker runs in a folder of its own"
            )
        return value
