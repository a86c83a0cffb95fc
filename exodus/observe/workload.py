"""The workload model: what a workload is, in a file that can be kept, compared, and played.

`exodus capture --model FILE` writes it, `exodus load --model FILE` plays it. It holds no key and no
value. `version` changes when a field's meaning does; a file of another version is refused.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from exodus.errors import OperatorError
from exodus.observe.distribution import Distribution
from exodus.observe.keyspace import Keyspace
from exodus.observe.profile import Profile, ProfileRow
from exodus.plan.bounds import (
    WORKLOAD_BYTES_MAX,
    WORKLOAD_EXPONENT_MAX,
    WORKLOAD_OPERATIONS_MAX,
    WORKLOAD_REQUEST_BYTES_MAX,
    WORKLOAD_REQUESTS_PER_S_MAX,
    WORKLOAD_SECONDS_MIN,
    WORKLOAD_VALUE_MAX,
)
from exodus.private_files import write_private
from exodus.telemetry.counters import OTHER

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1
_PUBSUB = ("PUBLISH", "SPUBLISH", "SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE")
_COLUMNS = [
    *("shape", "pattern", "command", "write", "calls", "keys", "reads", "writes"),
    *("request_bytes", "reply_bytes", "blocking"),
]
_SCRIPTS = ("EVAL", "EVALSHA", "FCALL", "EVAL_RO", "EVALSHA_RO", "FCALL_RO")


_Value = Annotated[int, Field(ge=1, le=WORKLOAD_VALUE_MAX)]
_Count = Annotated[int, Field(ge=0, le=WORKLOAD_VALUE_MAX)]
_Share = Annotated[float, Field(ge=0, le=1)]


class _WorkloadModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Spread(_WorkloadModel):
    """A distribution: values, each the highest of its step of 1/128, with their counts."""

    values: list[tuple[_Value, _Count]] = Field(default=[], description="[value, count], in order")

    @classmethod
    def of(cls, distribution: Distribution) -> Self:
        """Take a distribution over."""
        return cls(values=distribution.pairs())

    def distribution(self) -> Distribution:
        """Return it to be asked or drawn from."""
        return Distribution(self.values)

    @property
    def total(self) -> int:
        """How many values there are."""
        return sum(count for _, count in self.values)


class Operation(_WorkloadModel):
    """The requests of one shape on one key pattern."""

    command: str = Field(description="the server's name of the command, in capitals")
    subcommand: str = Field(description="its subcommand, or empty")
    options: list[str] = Field(description="option words, in the order of the alphabet")
    arity: str = Field(
        pattern=r"^[1-9]\d{0,9}(-[1-9]\d{0,9})?$",
        description="class of the number of arguments, the name included",
    )
    pattern: str = Field(description="pattern of the first key; empty without keys")
    write: bool = Field(description="whether it can change a key")
    blocking: bool = Field(description="whether it may wait for another client")
    calls: int = Field(ge=0, description="requests")
    in_transactions: int = Field(ge=0, description="of them, in transactions that were executed")
    answered: int = Field(ge=0, description="of them, with an answer that was seen")
    nils: int = Field(ge=0, description="answers that were nil")
    keys: int = Field(ge=0, description="keys of all requests together")
    errors: dict[str, int] = Field(description="error answers by their first word")
    request_bytes: Spread = Field(description="sizes of requests")
    reply_bytes: Spread = Field(description="sizes of answers")
    latency_us: Spread = Field(description="times to the answer; none of blocking ones")
    expiry_ms: Spread = Field(description="times to live that they gave")

    @property
    def name(self) -> str:
        """The command as counters name it: `XGROUP|CREATE` with its subcommand."""
        return "|".join(filter(None, (self.command, self.subcommand))).upper()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if max(self.in_transactions, self.answered) > self.calls:
            raise ValueError("more requests in transactions, or answered, than calls")
        if self.request_bytes.distribution().value_max > WORKLOAD_REQUEST_BYTES_MAX:
            raise ValueError(f"a request has at most {WORKLOAD_REQUEST_BYTES_MAX:,} bytes")
        return self


class Pattern(_WorkloadModel):
    """The keys that look alike."""

    pattern: str = Field(description="the key with its variable parts as *")
    reads: int = Field(ge=0, description="requests that cannot change a key")
    writes: int = Field(ge=0, description="requests that can")
    request_bytes: int = Field(ge=0, description="of all requests")
    reply_bytes: int = Field(ge=0, description="of all answers that were seen")
    keys_distinct: int = Field(ge=0, description="about how many keys were named")
    top_shares: list[_Share] = Field(description="shares of the hottest keys, in order")
    zipf_exponent: float = Field(
        ge=0,
        le=WORKLOAD_EXPONENT_MAX,
        description="of the Zipf distribution that fits best",
    )


class Rates(_WorkloadModel):
    """Requests a second."""

    mean: float = Field(ge=0, description="over the whole time")
    peak_second: float = Field(ge=0, description="of the busiest second")
    peak_minute: float = Field(ge=0, description="of the busiest minute")
    peak_hour: float = Field(ge=0, description="of the busiest hour")


class Workload(_WorkloadModel):
    """A workload as it was observed."""

    version: Literal[1] = 1
    taken_at: AwareDatetime = Field(description="when the model was made")
    source: str = Field(description="how the traffic was watched: packets or monitor")
    seconds: float = Field(ge=WORKLOAD_SECONDS_MIN, description="in which all counts would come")
    requests: int = Field(gt=0, description="of that time")
    rates: Rates
    operations: list[Operation] = Field(max_length=WORKLOAD_OPERATIONS_MAX)
    operations_left_out: int = Field(ge=0, description="requests of rarer operations")
    patterns: list[Pattern]
    depths: Spread = Field(description="requests under way of a connection, at each request")
    transactions: Spread = Field(description="requests of each executed transaction")
    scripts: int = Field(ge=0, description="requests that ran a script or a function")
    blocking: int = Field(ge=0, description="requests that may have waited for another client")
    pubsub: int = Field(ge=0, description="requests that published or subscribed")
    connections: int = Field(ge=1)
    clients: int = Field(ge=1, description="names, or addresses without one")
    databases: dict[int, int] = Field(description="requests by database")
    parsed_share: float | None = Field(default=None, description="of the watched bytes")
    lost_bytes: int = Field(default=0, ge=0, description="that the capture missed")
    keyspace: Keyspace | None = None

    @model_validator(mode="after")
    def _playable(self) -> Self:
        per_s = sum(each.calls for each in self.operations) / self.seconds
        if per_s > WORKLOAD_REQUESTS_PER_S_MAX:
            raise ValueError(
                f"{per_s:,.0f} requests a second; at most {WORKLOAD_REQUESTS_PER_S_MAX:,}"
            )
        return self

    def calls(self) -> dict[str, int]:
        """Return the requests of each command, by its name."""
        found: dict[str, int] = {}
        for each in self.operations:
            found[each.name] = found.get(each.name, 0) + each.calls
        return found

    def save(self, file: Path) -> None:
        """Write it, with mode 0600.

        Raises:
            OperatorError: the file cannot be written.
        """
        try:
            write_private(file, self.model_dump_json(indent=1) + "\n")
        except OSError as exc:
            raise OperatorError(
                f"--model: {file} cannot be written",
                why=exc.strerror or str(exc),
                next_step="name a file in a folder that exists and that you may write",
            ) from exc

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read it.

        Raises:
            OperatorError: the file cannot be read, or is no model of this version.
        """
        try:
            size = file.stat().st_size
            if size > WORKLOAD_BYTES_MAX:
                raise OperatorError(
                    f"--model: {file} has {size:,} bytes",
                    why=f"a model has at most {WORKLOAD_BYTES_MAX:,}",
                    next_step="name a file that exodus capture --model wrote",
                )
            return cls.model_validate_json(file.read_bytes())
        except OSError as exc:
            raise OperatorError(
                f"--model: {file} cannot be read",
                why=exc.strerror or str(exc),
                next_step="exodus capture --from traffic.pcap --model FILE writes one",
            ) from exc
        except ValidationError as exc:
            first = exc.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise OperatorError(
                f"--model: {file} is no workload model: {place}",
                why=f"{first['msg']}; this Exodus reads version {VERSION}",
                next_step="exodus capture --from traffic.pcap --model FILE writes one",
            ) from exc


def frame_of(profile: Profile) -> pd.DataFrame:
    """Return a profile's rows as a frame, one row an operation, the most frequent first.

    Exodus's own requests are no workload.
    """
    rows: list[dict[str, Any]] = [
        {
            "shape": shape,
            "pattern": pattern,
            "command": row.command,
            "write": row.write,
            "calls": row.calls - row.own,
            "keys": row.keys,
            "reads": 0 if row.write else row.calls - row.own,
            "writes": row.calls - row.own if row.write else 0,
            "request_bytes": round(row.request_sizes.mean * row.request_sizes.total),
            "reply_bytes": round(row.reply_sizes.mean * row.reply_sizes.total),
            "blocking": row.calls - row.own if row.blocking else 0,
        }
        for (shape, pattern), row in profile.rows.items()
        if row.calls > row.own
    ]
    import pandas as pd  # here: it costs each gateway and each command 30 MB, and time to start

    frame = pd.DataFrame.from_records(rows, columns=_COLUMNS)
    return frame.sort_values(["calls", "shape", "pattern"], ascending=[False, True, True])


def workload_of(
    profile: Profile,
    *,
    source: str,
    parsed_share: float | None = None,
    lost_bytes: int = 0,
    keyspace: Keyspace | None = None,
) -> Workload:
    """Build the model of a profile.

    Raises:
        OperatorError: there is nothing to model.
    """
    frame = frame_of(profile)
    requests = int(frame["calls"].sum())
    if not requests or profile.watched_s < WORKLOAD_SECONDS_MIN:
        raise OperatorError(
            "--model: no workload to model",
            why=f"{requests} requests in {profile.watched_s:.1f} s were seen",
            next_step="watch for longer, while applications work",
        )
    # What is left of too many shapes is of several commands: nobody could play it.
    kept = frame[frame["shape"] != OTHER].head(WORKLOAD_OPERATIONS_MAX)
    keys = zip(kept["shape"], kept["pattern"], strict=True)
    by_command = frame.groupby("command")["calls"].sum()
    return Workload(
        taken_at=datetime.now(UTC),
        source=source,
        seconds=round(profile.watched_s, 6),
        requests=requests,
        rates=Rates(
            mean=round(requests / profile.watched_s, 3),
            peak_second=round(profile.peak(1), 3),
            peak_minute=round(profile.peak(60), 3),
            peak_hour=round(profile.peak(3_600), 3),
        ),
        operations=[_operation(key, profile.rows[key]) for key in keys],
        operations_left_out=int(frame["calls"].sum() - kept["calls"].sum()),
        patterns=_patterns(frame, profile),
        depths=Spread.of(profile.depths),
        transactions=Spread.of(profile.batches),
        scripts=int(by_command.reindex(_SCRIPTS).sum()),
        blocking=int(frame["blocking"].sum()),
        pubsub=int(by_command.reindex(_PUBSUB).sum()),
        connections=len(profile.connections),
        clients=len(profile.clients),
        databases=dict(profile.databases),
        parsed_share=parsed_share,
        lost_bytes=lost_bytes,
        keyspace=keyspace,
    )


def _patterns(frame: pd.DataFrame, profile: Profile) -> list[Pattern]:
    columns = ["reads", "writes", "request_bytes", "reply_bytes"]
    sums = frame[frame["keys"] > 0].groupby("pattern")[columns].sum()
    found = []
    for name, row in sums.iterrows():
        counts = profile.keys.get(str(name)) or profile.keys.get(OTHER)
        assert counts is not None
        skew = counts.skew()
        found.append(
            Pattern(
                pattern=str(name),
                **{column: int(row[column]) for column in columns},
                keys_distinct=skew.distinct,
                top_shares=skew.top_shares,
                zipf_exponent=skew.exponent,
            )
        )
    return sorted(found, key=lambda each: -(each.reads + each.writes))


def _operation(key: tuple[str, str], row: ProfileRow) -> Operation:
    shape, pattern = key
    words, _, arity = shape.partition(" /")
    container, _, subcommand = row.command.partition("|")
    options = words.split()[1 + bool(subcommand) :]
    return Operation(
        command=container,
        subcommand=subcommand,
        options=options,
        arity=arity,
        pattern=pattern,
        write=row.write,
        blocking=row.blocking,
        calls=row.calls - row.own,
        in_transactions=min(row.queued, row.calls - row.own),
        answered=min(row.answered, row.calls - row.own),
        nils=row.nils,
        keys=row.keys,
        errors=row.errors,
        request_bytes=Spread.of(row.request_sizes),
        reply_bytes=Spread.of(row.reply_sizes),
        latency_us=Spread.of(row.latency_us),
        expiry_ms=Spread.of(row.expiries_ms),
    )
