"""The schema of the control store, and a connection to it.

Every key begins with `exodus:{MIGRATION}:` (the braces keep a migration in one cluster slot):

| key            | type   | written by        | read by              | what, and for how long                                |
| -------------- | ------ | ----------------- | -------------------- | ----------------------------------------------------- |
| plan           | string | `exodus apply`    | everybody            | `Plan` as JSON, no secrets; until removed             |
| route          | string | flows             | gateways, syncers    | `Route` as JSON; compare-and-set by epoch             |
| route:changed  | channel| flows             | gateways, syncers    | the new route, or `say MS`; polling backs it up       |
| part:changed   | channel| gateways          | cutover              | a heartbeat that a switch waits for was written       |
| part:KIND      | hash   | each process      | flows, status        | id → heartbeat with state, JSON                       |
| owner:KIND     | hash   | each process      | processes, by script | id → the instance that may write its heartbeat        |
| acknowledged   | hash   | gateways          | gateways             | id → number of its last batch in the journal          |
| fsync:ID       | string | gateway           | nobody               | written before a WAITAOF; expires                     |
| journal:P      | stream | gateways, chunks  | syncers, chunks      | changed keys of partition P; trimmed behind the syncer|
| position       | hash   | syncers           | flows, chunks        | partition → last entry id synced                      |
| trimmed        | hash   | syncers           | chunks               | partition → last entry id trimmed away                |
| lease:P        | string | syncers           | syncers              | owner of partition P, expires by itself               |
| token          | string | syncers           | syncers              | counter of fencing tokens                             |
| verified       | string | verification      | syncers, cutover     | `Pass` as JSON: what the last clean pass speaks for   |
| verifying:NAME | string | verification      | verification         | how far a pass has come, JSON; removed at its end     |
| budget         | string | operator, flows   | bulk readers         | impact budget as JSON, in place of the plan's         |
| pace           | hash   | bulk readers      | status               | what each spends of it and why, JSON                  |
| fresh          | hash   | syncers           | status, cutover      | partition → keys dirty since that pass, JSON          |
| feed:SIDE      | hash   | syncers           | syncers, cutover     | how far the changes of a side were read               |
| feed:SIDE:lease| string | syncers           | syncers              | which syncer reads it, expires by itself              |
| feed:SIDE:asks | list   | syncers, cutover  | syncers              | questions whether all was heard; expires              |
| checkpoint:RUN | hash   | backfill          | backfill, status     | slice → progress, JSON                                |
| chunks:RUN     | stream | backfill          | status, evidence     | keys, bytes, digest, ms of each chunk; bounded length |
| dead           | hash   | sync              | status, decisions    | packed key → why it could not be carried, JSON        |
| accepted       | hash   | decisions         | verification, status | packed key → a dead letter that a person accepted     |
| gap            | hash   | gateways, syncers | cutover, status      | open gaps: what no journal covers, JSON               |
| scripts        | hash   | gateways          | cutover              | digest → text of a script that a client loaded or ran |
| lives          | hash   | syncers, flows    | syncers, cutover     | side → run id of the server that the journal speaks for|
| ledger         | stream | flows             | preconditions        | decisions and phase ends, chained, never trimmed      |
| steps:RUN      | hash   | flows             | flows                | step → what it returned; expires after the run's end  |
| turn:PHASE     | string | flows             | flows                | which process runs the phase, expires by itself       |
| bundle:NAME    | hash   | flows             | command line         | file → its bytes, of an evidence bundle; the newest   |
| bundles        | list   | flows             | command line         | names of those bundles, newest first                  |
| answers:RUN:…  | string | command line      | flows                | who gives an answer, by the operating system; expires |
| phase          | hash   | flows             | status               | phase → state, JSON                                   |
| shadow         | stream | gateways          | comparer             | sampled requests and replies; bounded, expires        |
| divergence     | hash   | comparer          | flows, repair        | packed key → divergence, JSON                         |
| seeded         | set    | comparer          | flows                | packed keys that Compare put on the target            |
| telemetry:ID   | string | gateway           | flows, status        | counters and histograms, JSON; expires                |
| report:NAME    | string | flows             | status, later phases | last result of a task, JSON                           |
| fence:SIDE     | string | cutover           | cutover, gateways    | whose fence it is, of what kind, what was before it   |
| fence:SIDE:word| string | flows             | cutover              | who confirmed a provider's fence, and what, JSON      |
| fence:SIDE:let | string | cutover           | cutover, gateways    | a switch back let Exodus in behind it; expires        |
| abort          | string | `exodus abort`    | cutover              | why a switch is to be given up; expires               |
| postponed      | string | `exodus hold`     | cutover              | who postpones the switch, and why, JSON               |

`exodus:archive`, a hash, is the one key that belongs to no migration: NAME/MS → where an archived one's evidence is.

On the two sides of the migration the engine owns keys with the same prefix (`guard_key`, `lane_guard_key`, `fence_guard_key`, `native_guard_key`),
which are never copied, compared or counted.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Self, cast

import orjson
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.maint_notifications import MaintNotificationsConfig

from exodus.config import CONNECT_TIMEOUT_S, Address, Plan
from exodus.errors import ControlStoreError, OperatorError

Json = dict[str, Any]
ARCHIVE = "exodus:archive"  # the only key that is no one migration's


async def answered(reply: Any) -> Any:
    """What redis-py's asyncio client returns; its annotations also allow for its blocking twin, and for text."""
    return await reply


def ssl_context(address: Address) -> ssl.SSLContext | None:
    """The TLS settings of one leg, or None for plain TCP.

    Raises:
        OperatorError: one of its files cannot be used.
    """
    if not address.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=str(address.ca_file) if address.ca_file else None)
    except OSError as exc:
        raise _unusable(address, f"ca_file {address.ca_file}", exc) from exc
    try:
        if address.cert_file:
            context.load_cert_chain(str(address.cert_file), str(address.key_file) if address.key_file else None)
    except OSError as exc:
        raise _unusable(address, f"cert_file {address.cert_file}, key_file {address.key_file}", exc) from exc
    return context


def _unusable(address: Address, fields: str, exc: OSError) -> OperatorError:
    return OperatorError(
        f"the TLS files of {address.url} cannot be used: {fields}",
        why=str(exc),
        next_step="correct the path in the migration file; it is read on the machine of each process, as its user, in PEM",
    )


class Keys:
    """Names of keys; nothing else in Exodus spells one."""

    def __init__(self, migration: str) -> None:
        self.prefix = f"exodus:{{{migration}}}:"
        self.plan = self.prefix + "plan"
        self.route = self.prefix + "route"
        self.route_changed = self.prefix + "route:changed"
        self.part_changed = self.prefix + "part:changed"
        self.position = self.prefix + "position"
        self.trimmed = self.prefix + "trimmed"
        self.token = self.prefix + "token"
        self.dead = self.prefix + "dead"
        self.accepted = self.prefix + "accepted"
        self.gap = self.prefix + "gap"
        self.lives = self.prefix + "lives"
        self.ledger = self.prefix + "ledger"
        self.phase = self.prefix + "phase"
        self.shadow = self.prefix + "shadow"
        self.answers = self.prefix + "answers:"
        self.divergence = self.prefix + "divergence"
        self.budget = self.prefix + "budget"
        self.pace = self.prefix + "pace"
        self.verified_pass = self.prefix + "verified"
        self.fresh = self.prefix + "fresh"
        self.seeded = self.prefix + "seeded"
        self.abort = self.prefix + "abort"
        self.postponed = self.prefix + "postponed"
        self.scripts = self.prefix + "scripts"
        self.acknowledged = self.prefix + "acknowledged"
        self.bundles = self.prefix + "bundles"

    def part(self, kind: str) -> str:
        """Registrations of the processes of one kind."""
        return f"{self.prefix}part:{kind}"

    def owner(self, kind: str) -> str:
        """Which instance each registration of a kind belongs to."""
        return f"{self.prefix}owner:{kind}"

    def fsync(self, process: str) -> str:
        """What one process writes before it waits for an fsync."""
        return f"{self.prefix}fsync:{process}"

    def journal(self, partition: int) -> str:
        """The stream of one journal partition."""
        return f"{self.prefix}journal:{partition}"

    def lease(self, partition: int) -> str:
        """The lease of one partition."""
        return f"{self.prefix}lease:{partition}"

    def feed(self, side: str) -> str:
        """How far the replication stream of a side was read."""
        return f"{self.prefix}feed:{side}"

    def feed_lease(self, side: str) -> str:
        """Who reads it."""
        return f"{self.prefix}feed:{side}:lease"

    def feed_asks(self, side: str) -> str:
        """Questions to its reader whether all was heard."""
        return f"{self.prefix}feed:{side}:asks"

    def checkpoint(self, run: str) -> str:
        """The checkpoints of one backfill."""
        return f"{self.prefix}checkpoint:{run}"

    def chunks(self, run: str) -> str:
        """The chunks of one backfill."""
        return f"{self.prefix}chunks:{run}"

    def telemetry(self, process: str) -> str:
        """The last telemetry of one gateway process."""
        return f"{self.prefix}telemetry:{process}"

    def verifying(self, name: str) -> str:
        """How far a verification has come."""
        return f"{self.prefix}verifying:{name}"

    def steps(self, run: str) -> str:
        """What the steps of one run returned."""
        return f"{self.prefix}steps:{run}"

    def turn(self, phase: str) -> str:
        """Which process runs a phase."""
        return f"{self.prefix}turn:{phase}"

    def bundle(self, name: str) -> str:
        """The files of one evidence bundle."""
        return f"{self.prefix}bundle:{name}"

    def report(self, name: str) -> str:
        """The last report of that name."""
        return f"{self.prefix}report:{name}"

    def fence(self, side: str) -> str:
        """What has to be put back when the fence on `side` is lifted."""
        return f"{self.prefix}fence:{side}"

    def fence_word(self, side: str) -> str:
        """Who confirmed that the provider's fence of `side` is up."""
        return f"{self.prefix}fence:{side}:word"

    def fence_let(self, side: str) -> str:
        """While it is there, nobody puts the fence of `side` up again."""
        return f"{self.prefix}fence:{side}:let"


def guard_key(migration: str) -> bytes:
    """The key on a follower whose value is the epoch in which Exodus may write there (race rule 6)."""
    return f"exodus:{{{migration}}}:epoch".encode()


def lane_guard_key(migration: str, partition: int) -> bytes:
    """The key on a follower whose value is the fencing token of the partition's owner (race rule 2)."""
    return f"exodus:{{{migration}}}:lane:{partition}".encode()


def fence_guard_key(migration: str) -> bytes:
    """The key on a side whose value is the id of the switch that may put its fence up or down."""
    return f"exodus:{{{migration}}}:fence".encode()


def native_guard_key(migration: str) -> bytes:
    """The key on both sides whose value is the writers' epoch in which the target may be made a replica of the source."""
    return f"exodus:{{{migration}}}:native".encode()


class ControlStore:
    """A connection to one migration's part of the control store."""

    def __init__(self, client: redis.Redis, migration: str, address: Address) -> None:
        self.client = client
        self.migration = migration
        self.address = address
        self.keys = Keys(migration)

    @classmethod
    async def connect(cls, address: Address, migration: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> Self:
        """Connect and prove that the store answers.

        Raises:
            ControlStoreError: it does not answer.
            OperatorError: it refuses the credentials.
        """
        client = make_client(address, field="control_store", timeout_s=timeout_s)
        try:
            await answered(client.ping())
        except AuthenticationError as exc:
            await client.aclose()
            raise OperatorError(
                f"control_store: {address.url} refuses the credentials",
                why=str(exc),
                next_step="check control_store's user and password (password_env, password_file)",
            ) from exc
        except (RedisError, OSError) as exc:
            await client.aclose()
            raise ControlStoreError(
                f"the control store {address.url} does not answer",
                why=str(exc) or type(exc).__name__,
                next_step="start it, or correct control_store in the migration file; applications are not affected",
            ) from exc
        return cls(client, migration, address)

    async def close(self) -> None:
        """Give the connections back."""
        await self.client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- plan, reports, phases: small JSON documents ---
    async def save_plan(self, plan: Plan) -> None:
        """Register the migration."""
        await answered(self.client.set(self.keys.plan, plan.model_dump_json()))

    async def plan(self) -> Plan:
        """The registered plan.

        Raises:
            OperatorError: none is registered under this name.
        """
        raw = await answered(self.client.get(self.keys.plan))
        if raw is None:
            raise OperatorError(
                f"migration {self.migration!r} is not registered in {self.address.url}",
                why=f"there is no {self.keys.plan}",
                next_step="exodus apply migration.yaml",
            )
        return Plan.model_validate_json(raw)

    async def save_report(self, name: str, report: Mapping[str, Any]) -> None:
        """Keep the last result of a task where status and later phases read it."""
        await answered(self.client.set(self.keys.report(name), orjson.dumps(report, default=str)))

    async def report(self, name: str) -> Json | None:
        """The last result of that name, or None."""
        raw = await answered(self.client.get(self.keys.report(name)))
        return None if raw is None else cast("Json", orjson.loads(raw))

    async def save_phase(self, phase: str, state: Mapping[str, Any]) -> None:
        """Say where a phase stands."""
        await answered(self.client.hset(self.keys.phase, phase, orjson.dumps(state, default=str).decode()))

    async def phases(self) -> dict[str, Json]:
        """Where every phase stands."""
        raw = await answered(self.client.hgetall(self.keys.phase))
        return {name.decode(): orjson.loads(value) for name, value in raw.items()}

    # --- registrations ---
    async def register(self, kind: str, process: str, state: Mapping[str, Any], *, announce: bool = False) -> None:
        """Write one process's heartbeat. `state` carries `at_ms` by the store's own clock (see `now_ms`); `announce` wakes whoever waits for it."""
        pipe = self.client.pipeline(transaction=False)
        pipe.hset(self.keys.part(kind), process, orjson.dumps(state).decode())
        if announce:
            pipe.publish(self.keys.part_changed, process)
        await pipe.execute()

    async def unregister(self, kind: str, process: str) -> None:
        """Take a process that ended cleanly off the list."""
        pipe = self.client.pipeline(transaction=True)
        pipe.hdel(self.keys.part(kind), process)
        pipe.hdel(self.keys.owner(kind), process)
        pipe.hdel(self.keys.acknowledged, process)
        await pipe.execute()

    async def registrations(self, kind: str) -> dict[str, Json]:
        """Id → last heartbeat, stale ones included: a process that went away without a word must be seen."""
        raw = await answered(self.client.hgetall(self.keys.part(kind)))
        return {name.decode(): orjson.loads(value) for name, value in raw.items()}

    async def registrations_now(self, kind: str) -> tuple[dict[str, Json], int]:
        """The same, and the time of it by the store's clock, in one round trip."""
        pipe = self.client.pipeline(transaction=False)
        pipe.hgetall(self.keys.part(kind))
        pipe.time()
        raw, (seconds, micros) = await pipe.execute()
        return {name.decode(): orjson.loads(value) for name, value in raw.items()}, int(seconds) * 1000 + int(micros) // 1000

    async def now_ms(self) -> int:
        """The store's clock, in ms: the one clock that processes on several hosts share."""
        seconds, micros = await answered(self.client.time())
        return int(seconds) * 1000 + int(micros) // 1000


def make_client(address: Address, *, field: str, db: int = 0, timeout_s: float = CONNECT_TIMEOUT_S, **more: Any) -> redis.Redis:
    """A redis-py client for control work (never the hot path), without retries: callers decide what a failure means. `more` is for redis-py."""
    if address.tls:
        more |= {
            "ssl": True,
            "ssl_ca_certs": str(address.ca_file) if address.ca_file else None,
            "ssl_certfile": str(address.cert_file) if address.cert_file else None,
            "ssl_keyfile": str(address.key_file) if address.key_file else None,
        }
    client = redis.Redis(
        host=address.host,
        port=address.port,
        db=db,
        username=address.username,
        password=address.secret(field),
        socket_connect_timeout=timeout_s,
        socket_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        driver_info=None,  # CLIENT SETINFO and CLIENT MAINT_NOTIFICATIONS are rights that no user of ours needs otherwise
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        **more,
    )
    if address.tls and address.server_name:
        client.connection_pool.connection_class = _NamedTls
        client.connection_pool.connection_kwargs["server_name"] = address.server_name
    return client


class _NamedTls(redis.SSLConnection):
    """Asks for the certificate of a name that is not the host's."""

    def __init__(self, *, server_name: str, **more: Any) -> None:
        super().__init__(**more)
        self._server_name = server_name

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), "server_hostname": self._server_name}
