"""Whether native replication is possible: the checks before a target becomes a replica."""

from __future__ import annotations

from exodus.control.store import ControlStore
from exodus.errors import DecisionRefused
from exodus.native.link import (
    NO_ONE,
    Command,
    connect_side,
    replication_link_on,
    replication_source,
)
from exodus.net.leg import Leg, ReplyError
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import payload_fits
from exodus.topology.pair_checks import check_empty

# ---------------------------------------------------------------------- may it be


async def check_possible(plan: Plan, store: ControlStore) -> None:
    """Return whether the target can become the source's replica. Changes nothing.

    Raises:
        DecisionRefused: it cannot, and why.
        SourceError, TargetError: a side does not answer.
    """
    why = await _why_not(plan, store)
    if why is not None:
        raise DecisionRefused(
            "the target cannot become a replica of the source",
            why=why,
            next_step="mend that, or set strategy: keys in the migration file, which copies key "
            "by key",
        )


async def _why_not(plan: Plan, store: ControlStore) -> str | None:
    source, target = Endpoint(Side.SOURCE, plan.source), Endpoint(Side.TARGET, plan.target)
    ours, theirs = await source.facts(), await target.facts()
    if ours.run_id == theirs.run_id:
        return "both are the same server"
    if not payload_fits(ours, theirs):
        # Never found out by trying: a copy that cannot be loaded leaves the target empty.
        versions = (
            f"{ours.engine} {ours.version_text} saves version {ours.payload_version}, "
            f"{theirs.engine} {theirs.version_text} loads"
        )
        return f"the target could not load the source's data: {versions} {theirs.payload_version}"
    empty = await check_empty(target, theirs, plan, store)
    if empty.severity == "fatal":
        return empty.what
    async with await connect_side(plan, Side.SOURCE) as leg:
        why = await _why_not_source(leg, ours.user) or await _why_fewer(plan, leg)
    return why or await _why_not_target(plan)


async def _why_not_source(leg: Leg, user: str) -> str | None:
    known, conf, dry, cluster = await leg.pipeline(
        [
            ("COMMAND", "INFO", "PSYNC"),
            ("REPLCONF", "capa", "eof"),
            ("ACL", "DRYRUN", user, "PSYNC", "?", "-1"),
            ("INFO", "cluster"),
        ]
    )
    if isinstance(known, ReplyError) or not known or known[0] is None:
        return "the source does not allow PSYNC"
    if isinstance(conf, ReplyError):
        return f"the source: {conf}"
    if not isinstance(dry, ReplyError) and dry != b"OK":
        return f"the source: {dry.decode('utf-8', 'replace')}"
    return (
        "the source is a node of a cluster"
        if b"cluster_enabled:1" in (cluster if isinstance(cluster, bytes) else b"")
        else None
    )


async def _why_fewer(plan: Plan, source: Leg) -> str | None:
    async with await connect_side(plan, Side.TARGET) as target:
        here, there = [
            (await leg.pipeline([("CONFIG", "GET", "databases")]))[0] for leg in (source, target)
        ]
    if (
        isinstance(here, list)
        and isinstance(there, list)
        and here
        and there
        and int(here[1]) > int(there[1])
    ):
        return f"the source has {int(here[1])} databases, the target {int(there[1])}"
    return None


async def _why_not_target(plan: Plan) -> str | None:
    async with await connect_side(plan, Side.TARGET) as leg:
        link = await replication_link_on(leg)
        if link.follows:
            return (
                None
                if link.follows == replication_source(plan)
                else f"the target is a replica of {link.follows}"
            )
        kept, sets = await leg.pipeline(
            [("CONFIG", "GET", "masterauth"), ("CONFIG", "GET", "masteruser")]
        )
        for name, reply in (("masterauth", kept), ("masteruser", sets)):
            if isinstance(reply, ReplyError):
                return f"the target: {reply}"
            if (
                reply
                and reply[1]
                and reply[1].decode("utf-8", "replace")
                not in (plan.source.secret("source"), plan.source.username)
            ):
                return f"the target has a {name} of its own, which would be replaced"
        # What they are already: changes nothing, and shows whether it may be done.
        asked: list[Command] = [
            NO_ONE,
            ("CONFIG", "SET", "masterauth", kept[1] if kept else ""),
            ("CONFIG", "GET", "tls-replication"),
        ]
        replies = await leg.pipeline(asked)
        refused = [reply for reply in replies if isinstance(reply, ReplyError)]
    if refused:
        return f"the target: {refused[0]}"
    # Only looked at: Redis 8.2 and Valkey 8.1 and 9.1 that were built without TLS crash where it is
    # set at run time (tried here).
    by_tls = bool(replies[-1]) and replies[-1][1] == b"yes"
    if by_tls != plan.source.tls:
        return (
            f"the source is reached {'by' if plan.source.tls else 'without'} TLS, and the "
            "target's own setting tls-replication is "
            f"{'yes' if by_tls else 'no'}; set it in the target's configuration file, with its "
            "certificates"
        )
    return None
