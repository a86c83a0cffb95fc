"""Whether source and target fit together: the checks of both sides before a migration. They change
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import SecretStr
from redis.exceptions import RedisError

from exodus.control.durable import check_store
from exodus.control.store import ControlStore
from exodus.errors import OperatorError
from exodus.net.client import answered
from exodus.net.leg import Leg
from exodus.plan.address import Cluster
from exodus.plan.bounds import PAIR_CHECKS_OWN_KEYS_MAX
from exodus.plan.own_keys import RESERVED_PREFIX, is_own
from exodus.plan.plan import Plan
from exodus.plan.settings import Login
from exodus.plan.vocabulary import Cutover, Feed, Side
from exodus.topology.applications import takes_nobody
from exodus.topology.endpoint import Endpoint
from exodus.topology.node import LIMITS, NodeFacts, payload_fits
from exodus.topology.permits import try_rights

OWNED = "owned"  # report: this migration has begun to copy, so the target's keys are its own


@dataclass(frozen=True)
class Finding:
    """One result of the pre-flight checks; a fatal one ends it before anything is changed."""

    check: str
    severity: Literal["ok", "warning", "fatal"]
    what: str
    why: str = ""
    next_step: str = ""


async def check_pair(
    source: Endpoint, target: Endpoint, plan: Plan, store: ControlStore | None = None
) -> list[Finding]:
    """Run the pre-flight checks. They change nothing.

    Raises:
        SourceError, TargetError, OperatorError: a side does not answer or refuses the login.
    """
    findings: list[Finding] = []
    ours = await source.facts()
    theirs = await target.facts()
    findings.append(
        Finding(
            "servers",
            "ok",
            f"source {ours.engine} {ours.version_text}, target {theirs.engine} "
            f"{theirs.version_text}",
        )
    )
    if ours.servers & theirs.servers:
        findings.append(
            Finding(
                "different servers",
                "fatal",
                f"target {plan.target.url} is the source",
                f"both answer with run id {min(ours.servers & theirs.servers)[:12]}…",
                "correct target",
            )
        )
        return findings
    if store is not None:
        findings += await check_control_store(
            store, {Side.SOURCE: ours.run_id, Side.TARGET: theirs.run_id}
        )
    findings.append(await check_empty(target, theirs, plan, store))
    findings.append(_check_memory(ours, theirs))
    findings.append(await _check_payloads(source, ours, theirs))
    findings += [_check_databases(ours, theirs, plan), *_check_limits(ours, theirs)]
    findings.append(_check_user("source", ours))
    findings.append(_check_user("target", theirs))
    for side, facts in ((Side.SOURCE, ours), (Side.TARGET, theirs)):
        findings += await _check_rights(plan, side, facts)
    findings += [await _check_login(login, plan) for login in plan.logins]
    if plan.cutover is Cutover.GATEWAY:
        findings += await _check_applications(plan)
    lfu = "lfu" in ours.maxmemory_policy
    if plan.keep_usage and lfu != ("lfu" in theirs.maxmemory_policy):
        findings.append(
            Finding(
                "usage",
                "fatal",
                "keep_usage: the source's maxmemory-policy is "
                f"{ours.maxmemory_policy}, the target's {theirs.maxmemory_policy}",
                "a server keeps the frequency of keys under an LFU policy only, and their idle "
                "time under all others only",
                "set policies of one kind on both sides, or leave keep_usage away",
            )
        )
    if theirs.maxmemory_policy not in ("noeviction", ""):
        findings.append(
            Finding(
                "eviction",
                "warning",
                f"the target evicts keys: maxmemory-policy {theirs.maxmemory_policy}",
                "what it evicts counts as missing",
                "set noeviction until the migration is finalised",
            )
        )
    if (
        ours.maxmemory
        and ours.maxmemory_policy not in ("noeviction", "")
        and plan.feed is Feed.GATEWAY
    ):
        findings.append(
            Finding(
                "eviction on the source",
                "warning",
                f"the source evicts keys: maxmemory-policy {ours.maxmemory_policy}",
                "no gateway hears of it, so what it evicts stays on the target until a "
                "verification finds it",
                "set feed: replication (or tracking, notifications), which tell evictions",
            )
        )
    return findings


async def check_control_store(store: ControlStore, sides: Mapping[str, str]) -> list[Finding]:
    """Check that the control store keeps its data. `sides` are the run ids of source and target,
    where known.
    """
    found = await check_store(store, sides)
    return [
        Finding("control store", each.severity, each.what, each.why, each.next_step)
        for each in found
    ]


async def check_empty(
    target: Endpoint, facts: NodeFacts, plan: Plan, store: ControlStore | None
) -> Finding:
    """Check that the target holds no keys but this migration's; fatal where the plan does not allow
    them.
    """
    foreign = sum(facts.databases.values())
    if store is not None and await store.report(OWNED) is not None:
        return Finding(
            "empty target", "ok", f"{foreign} keys on the target, copied by this migration"
        )
    if foreign and store is not None:
        try:
            foreign -= int(await answered(store.client.scard(store.keys.seeded)))
        except RedisError:
            foreign = sum(facts.databases.values())
    foreign -= await _own_keys(target, facts)
    if foreign > 0 and not plan.allow_nonempty:
        return Finding(
            "empty target",
            "fatal",
            f"the target holds {foreign} keys in {len(facts.databases)} database(s)",
            "keys there would be replaced, or be left over as keys that should not exist",
            "empty it (FLUSHALL), or set allow_nonempty: true (--allow-nonempty) to let Exodus "
            "replace them",
        )
    return Finding(
        "empty target",
        "ok" if foreign <= 0 else "warning",
        f"{max(foreign, 0)} keys of others on the target",
    )


async def empty_database(endpoint: Endpoint) -> int:
    """Return the highest database without keys; 0 where each has some."""
    facts = await endpoint.facts()
    return next(
        (db for db in reversed(range(facts.database_count)) if db not in facts.databases), 0
    )


async def foreign_keys(endpoint: Endpoint, facts: NodeFacts) -> int:
    """Count the keys of a side that are not Exodus's own."""
    return sum(facts.databases.values()) - await _own_keys(endpoint, facts)


async def _own_keys(endpoint: Endpoint, facts: NodeFacts) -> int:
    """Count Exodus's own keys on a side; 0 where the side has too many keys to look."""
    found = 0
    if sum(facts.databases.values()) < PAIR_CHECKS_OWN_KEYS_MAX:
        for node in await endpoint.each_node():
            for db in facts.databases:
                async with await node.connect(db) as leg:
                    cursor: bytes | None = None
                    while cursor != b"0":
                        cursor, keys = await leg.call(
                            "SCAN",
                            cursor or b"0",
                            "MATCH",
                            RESERVED_PREFIX.replace(b"{", b"\\{") + b"*",
                            "COUNT",
                            1000,
                        )
                        found += sum(map(is_own, keys))
    return found


def _check_memory(ours: NodeFacts, theirs: NodeFacts) -> Finding:
    if theirs.maxmemory and theirs.maxmemory < ours.used_memory:
        return Finding(
            "memory",
            "fatal",
            f"the target's maxmemory is {theirs.maxmemory:,} bytes, the source "
            f"uses {ours.used_memory:,}",
            "the copy would not fit",
            f"set maxmemory of the target to {int(ours.used_memory * 1.25):,} or more",
        )
    return Finding(
        "memory",
        "ok",
        f"source uses {ours.used_memory:,} bytes, target allows "
        f"{theirs.maxmemory or 'all it can get'}",
    )


def _check_databases(ours: NodeFacts, theirs: NodeFacts, plan: Plan) -> Finding:
    """Compare the databases of both sides; a key of a database that the other side lacks cannot be
    carried.
    """
    lacking = sorted(
        db
        for used in ours.databases
        for db in _databases_for(plan, used)
        if db >= theirs.database_count
    )
    # A cluster of Redis, or of Valkey before 9, has database 0 only.
    clustered = isinstance(plan.target, Cluster)
    setting = "cluster-databases" if clustered else "databases"
    only = " (Valkey 9 and later)" if clustered else ""
    counts = f"the source has {ours.database_count} databases, the target {theirs.database_count}"
    if lacking:
        return Finding(
            "databases",
            "fatal",
            f"{counts}: keys of the source belong in database "
            f"{', '.join(map(str, dict.fromkeys(lacking)))}",
            f"keys for {len(set(lacking))} database(s) that the target lacks could not be copied",
            f"set `{setting} {lacking[-1] + 1}` or more in the target's configuration and "
            f"restart it{only};"
            " or leave these databases out by filters.exclude, or move them by renames",
        )
    if ours.database_count > theirs.database_count:
        return Finding(
            "databases",
            "warning",
            counts,
            f"keys that applications write to database {theirs.database_count} or above become "
            "dead letters,"
            " and after the cutover SELECT fails there",
            f"set `{setting} {ours.database_count}` in the target's configuration{only}",
        )
    if ours.database_count < theirs.database_count and plan.cutover is Cutover.GATEWAY:
        return Finding(
            "databases",
            "warning",
            counts,
            f"after the cutover a key that applications write to database {ours.database_count} "
            "or above"
            " cannot flow back; it becomes a dead letter, and a rollback would lose it",
            f"set `databases {ours.database_count}` in the target's configuration, or as many in "
            "the source's",
        )
    return Finding("databases", "ok", counts)


def _databases_for(plan: Plan, db: int) -> set[int]:
    """Return the databases of the target to which keys of a used database of the source may go."""
    exclude, include = plan.filters.exclude, plan.filters.include
    if any(rule.model_fields_set == {"databases"} and db in rule.databases for rule in exclude):
        return set()
    if include and not any(not rule.databases or db in rule.databases for rule in include):
        return set()
    rules = [rule for rule in plan.renames if rule.database in (None, db)]
    whole = any(not rule.prefix for rule in rules)
    return {db if rule.to_database is None else rule.to_database for rule in rules} | (
        set() if whole else {db}
    )


def _check_limits(ours: NodeFacts, theirs: NodeFacts) -> list[Finding]:
    """Compare what one command may be on both sides."""
    found = []
    for name in LIMITS:
        here, there = ours.limits.get(name), theirs.limits.get(name)
        if here is None or there is None or here == there:
            continue
        smaller, larger = ("target", "source") if there < here else ("source", "target")
        meaning = (
            "a key with a larger element becomes a dead letter, and applications lose their "
            "connection for it after the cutover"
            if there < here
            else "after the cutover a larger element cannot flow back to the source; its key "
            "becomes a dead letter"
        )
        found.append(
            Finding(
                name,
                "warning",
                f"{name} is {here:,} bytes on the source, {there:,} on the target",
                meaning,
                f"CONFIG SET {name} {max(here, there)} on the {smaller}, as on the {larger}",
            )
        )
    return found


async def _check_payloads(source: Endpoint, ours: NodeFacts, theirs: NodeFacts) -> Finding:
    if payload_fits(ours, theirs):
        return Finding(
            "payloads",
            "ok",
            f"DUMP version {ours.payload_version} fits the target's {theirs.payload_version}",
        )
    lacking = await _keys_that_cannot_be_copied(source, ours, theirs)
    if lacking:
        return Finding(
            "payloads",
            "fatal",
            f"the target cannot hold what the source has: {lacking}",
            f"source {ours.engine} {ours.version_text} is newer than target {theirs.engine} "
            f"{theirs.version_text}, whose types do not include it",
            "choose a target of the source's version or later",
        )
    return Finding(
        "payloads",
        "warning",
        f"DUMP version {ours.payload_version} does not fit the target's {theirs.payload_version}",
        "keys are copied type by type, which is exact but slower",
        "nothing; or choose a target of the source's family and version",
    )


async def _keys_that_cannot_be_copied(source: Endpoint, ours: NodeFacts, theirs: NodeFacts) -> str:
    """Types in a sample of the source that the target has no commands for: module types, hash field
    TTLs.
    """
    sampled = 0
    for node in await source.each_node():
        for db in ours.databases:
            async with await node.connect(db) as leg:
                _, keys = await leg.call("SCAN", 0, "COUNT", 1000)
                types = await leg.pipeline([("TYPE", key) for key in keys])
                sampled += len(keys)
                foreign = {
                    kind
                    for kind in types
                    if kind
                    not in (b"string", b"list", b"set", b"zset", b"hash", b"stream", b"none")
                }
                if foreign:
                    return ", ".join(sorted(kind.decode() for kind in foreign))
                if ours.capabilities.get("hash field ttl") and not theirs.capabilities.get(
                    "hash field ttl"
                ):
                    for key, kind in zip(keys, types, strict=True):
                        if kind == b"hash":
                            fields = await leg.call("HKEYS", key)
                            ttls = await leg.call(
                                "HPEXPIRETIME", key, "FIELDS", len(fields), *fields
                            )
                            if any(isinstance(ttl, int) and ttl >= 0 for ttl in ttls):
                                return "hash field TTLs"
    return ""


def _check_user(side: str, facts: NodeFacts) -> Finding:
    if facts.user == "default":
        return Finding(
            f"user on the {side}",
            "warning",
            f"Exodus connects to the {side} as 'default'",
            "a fence could not tell it from the applications, so a cutover would be refused",
            "create a user of its own for Exodus (docs/operating/users.md)",
        )
    return Finding(f"user on the {side}", "ok", f"Exodus connects to the {side} as {facts.user!r}")


async def _check_rights(plan: Plan, side: Side, facts: NodeFacts) -> list[Finding]:
    """Try every command that Exodus's users will need on a side."""
    check = f"rights on the {side}"
    found = [
        Finding(
            check,
            "warning" if each.right.without else "fatal",
            f"{each.side}: user {each.user!r} (role {each.role}) may not run "
            f"{each.command.replace('|', ' ').upper()}",
            f"{each.said[:200]}; it is needed for: "
            f"{each.right.why}"
            + (f"; without it: {each.right.without}" if each.right.without else ""),
            each.remedy,
        )
        for each in await try_rights(plan, side, facts.engine, facts.version)
    ]
    return found or [
        Finding(check, "ok", f"every command that Exodus uses is allowed on the {side}")
    ]


async def _check_applications(plan: Plan) -> list[Finding]:
    """See whether clients without a user of their own could log in on the target as they do on the
    source.

    Nobody's password is sent to the other side for that.
    """
    if any(login.user == "default" for login in plan.logins):
        return []
    why = ""
    if await takes_nobody(plan, Side.SOURCE) and not await takes_nobody(plan, Side.TARGET):
        why = "the source lets clients in without a login, and the target asks for one"
    elif {plan.source.username, plan.target.username} <= {None, "default"}:
        ours, theirs = plan.source.secret("source"), plan.target.secret("target")
        if ours is not None and theirs is not None and ours != theirs:
            why = "the user default has another password on the target"
    if not why:
        return []
    return [
        Finding(
            "applications' login",
            "warning",
            why,
            "sessions that use it are closed at the cutover",
            "write into logins: {user: default, password_file: …, target_password_file: …} "
            "(docs/operating/migration-file.md), or give the target the source's login",
        )
    ]


async def _check_login(login: Login, plan: Plan) -> Finding:
    """Both sides must take it now: at the switch a session that is refused is closed."""
    for side, user, secret in (
        (Side.SOURCE, login.user, login.secret()),
        (Side.TARGET, login.target_user or login.user, login.target_secret()),
    ):
        given = SecretStr(secret) if secret is not None else None
        as_application = {
            "username": user,
            "password": given,
            "password_env": None,
            "password_file": None,
        }
        # Each node of a cluster has users of its own. This asks for the nodes as Exodus.
        servers = await Endpoint(side, plan.address(side)).each_server()
        refusing = ""
        try:
            for server in servers:
                refusing = f" (on {server.where})" if len(servers) > 1 else ""
                there = server.place.model_copy(update=as_application)
                async with await Leg.connect(there, side, name="exodus-login"):
                    pass
        except OperatorError as exc:
            return Finding(
                "logins",
                "fatal",
                f"logins: the {side} refuses {user!r}{refusing}",
                exc.why,
                "correct the login, or its user on that side",
            )
    return Finding(
        "logins", "ok", f"{login.user!r} is {login.target_user or login.user!r} on the target"
    )


def raise_if_fatal(findings: list[Finding]) -> None:
    """Turn the first fatal finding into an error.

    Raises:
        OperatorError: there is one.
    """
    for finding in findings:
        if finding.severity == "fatal":
            raise OperatorError(finding.what, why=finding.why, next_step=finding.next_step)
