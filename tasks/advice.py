"""Analyze's recommendation: whether and how to migrate, from what was measured."""

from __future__ import annotations

from exodus.net.info import info_of
from exodus.net.leg import ReplyError
from exodus.net.masters import located
from exodus.plan.bounds import (
    TASKS_ADVICE_LONG_S,
    TASKS_COMPATIBILITY_NAMED,
    TASKS_SIZING_HEADROOM,
)
from exodus.plan.vocabulary import CopyStrategy, Feed, Side
from exodus.topology.providers import recognise, risks
from tasks.checks import Level, check, open_findings
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task
from tasks.sizing import wanted_room

# Checks that are red where a write may pass no gateway.
_UNSEEN = frozenset({"every client uses a gateway", "eviction on the source"})
_NO_ROOM = "the target has room for the copy and a reserve"


@kept_task("Find the providers' rules")
@opens_migration
async def find_provider_risks(it: Opened, commands: list[Json]) -> list[Json]:
    """Return what each side's provider refuses, what the workload uses first."""
    rows = []
    for side in Side:
        refused, info_os = await _asked(it, side)
        provider = recognise((await located(it.plan.address(side))).host, refused, info_os)
        if provider is None:
            continue
        rows += [
            {
                "side": str(side),
                "provider": risk.provider,
                "risk": risk.risk,
                "concerns": ", ".join(risk.concerns),
                "advice": risk.advice,
                "source": risk.source,
                "read": risk.read,
            }
            for risk in risks(provider, [row["command"] for row in commands])
        ]
    return sorted(rows, key=lambda row: not row["concerns"])


async def _asked(it: Opened, side: Side) -> tuple[list[str], str]:
    """Return what tells providers apart: COMMAND if a server does not have it, and `os` of INFO.

    Behind a name of one's own, or an address, the host tells nothing.
    """
    async with await it.endpoint(side).connect(name="exodus-provider") as leg:
        reply, info = await leg.pipeline([("COMMAND", "INFO", "GET"), ("INFO", "server")])
    refused = ["COMMAND"] if isinstance(reply, ReplyError) else []
    return refused, info_of(info).get("os", "") if isinstance(info, bytes) else ""


def judge_provider(rows: list[Json]) -> list[Json]:
    """Return the check that no rule of the target's provider concerns the workload."""
    theirs = [row for row in rows if row["side"] == str(Side.TARGET)]
    if not theirs:
        return []
    hit = [row for row in theirs if row["concerns"]]
    return [
        check(
            "no rule of the target's provider concerns the workload",
            not hit,
            "; ".join(
                f"{row['risk']} ({row['concerns']}): {row['advice']}"
                for row in hit[:TASKS_COMPATIBILITY_NAMED]
            )
            or f"{theirs[0]['provider']}: {len(theirs)} rules",
            level=Level.SHOULD,
            why="the provider's documentation says that it refuses or changes what was observed",
            next_step="read the page in the artifact provider-risks, and try it in Test",
        )
    ]


def recommend(
    plan: Json,
    facts: Json,
    size: Json,
    checks: list[Json],
    predicted: list[Json],
    capacity: list[Json],
) -> list[Json]:
    """Return the advice as rows of `topic`, `finding`, `advice`; the verdict comes first."""
    open_ones = [row for row in checks if not row["ok"] and row["level"] == "must"]
    findings = open_findings(checks)
    reds = {row["check"] for row in checks if not row["ok"]}
    rows = [_verdict(open_ones, findings), _strategy(plan, size), _feed(plan, reds)]
    seconds = predicted[1]
    rows += [
        {
            "topic": "duration",
            "finding": "the sample says nothing of it"
            if seconds["low"] is None
            else f"the backfill takes {seconds['low']:,} to {seconds['high']:,} s",
            "advice": seconds["because"],
        },
        {
            "topic": "size",
            "finding": size["arithmetic"],
            "advice": f"maxmemory of the target: {wanted_room(size):,} bytes or more",
        },
        _topology(plan, size, reds),
        _impact(plan, size),
        _reverse(facts),
        {
            "topic": "order",
            "finding": "compare, test, migrate, commit",
            "advice": "compare and test until their findings are resolved: both change nothing "
            "that applications see",
        },
        _changes(size, capacity),
    ]
    return rows


def _changes(size: Json, capacity: list[Json]) -> Json:
    """Return how far the workload may grow before this advice is another."""
    room, wanted = size["target_maxmemory"], wanted_room(size)
    held = [
        row["speed"]
        for row in capacity
        if not (row["slower"] or row["errors"] or row["evicted_keys"])
    ]
    may = [
        f"the data grows to {room / wanted:.1f} times its size"
        if room > wanted
        else "the data grows at all: maxmemory of the target has no more room"
        if room
        else "the data grows beyond the machine: maxmemory of the target is not set",
        f"requests come at more than {max(held):g} times the observed rate"
        if held
        else "the target turns out to be slow: the load was not tried there",
        f"the source has more than {round(size['target_maxclients'] / TASKS_SIZING_HEADROOM):,} "
        "connections",
        "applications send a command, a script or an option that was not observed",
        "a client comes that uses no gateway",
    ]
    return {
        "topic": "what would change this advice",
        "finding": "; ".join(may),
        "advice": "run Analyze again, or let `renew` look at the workload by schedule: both show "
        "what changed since the last look",
    }


def _verdict(red: list[Json], findings: list[Json]) -> Json:
    if red:
        reasons = "; ".join(f"{row['check']}: {row['detail']}" for row in red)
        return {
            "topic": "recommendation",
            "finding": "do not migrate yet",
            "advice": f"because {reasons}",
        }
    if findings:
        names = "; ".join(row["check"] for row in findings)
        return {
            "topic": "recommendation",
            "finding": "migrate once these are resolved or accepted",
            "advice": names,
        }
    return {
        "topic": "recommendation",
        "finding": "migrate",
        "advice": "every check holds",
    }


def _strategy(plan: Json, size: Json) -> Json:
    named = CopyStrategy(plan["strategy"])
    if size["refused"] and named is not CopyStrategy.KEYS:
        advice = "set strategy: keys: the target refuses payloads of the source, which only copies "
        advice += "by type get over"
    elif size["keys_per_s"] and size["keys"] / size["keys_per_s"] > TASKS_ADVICE_LONG_S:
        advice = "native (the target as a replica) is faster for so many keys, if the target's "
        advice += "version is no older and nothing is filtered"
    else:
        advice = f"keep strategy: {named}"
    why = f"{size['restored']:,} of {size['sampled']:,} sampled payloads loaded on the target"
    return {"topic": "strategy", "finding": why, "advice": advice}


def _feed(plan: Json, reds: set[str]) -> Json:
    named = Feed(plan["feed"])
    unseen = sorted(reds & _UNSEEN)
    if named is Feed.GATEWAY and unseen:
        advice = "set feed: auto: the gateways' journal has no such writes"
    elif named is Feed.GATEWAY:
        advice = "keep feed: gateway, as long as every writer passes a gateway"
    else:
        advice = f"keep feed: {named}: Migrate proves it on each side before it copies"
    finding = f"not seen by gateways: {'; '.join(unseen)}" if unseen else "every client was seen"
    return {"topic": "change feed", "finding": finding, "advice": advice}


def _topology(plan: Json, size: Json, reds: set[str]) -> Json:
    finding = f"{_kind(plan['source'])} to {_kind(plan['target'])}"
    if size["shards"]:
        three = size["shards"][0]
        finding += (
            f"; of {three['shards']} shards the fullest would have {three['fullest_share']:.0%} of "
            f"the memory, the busiest {three['busiest_requests_per_s']:,} requests/s"
        )
    return {
        "topic": "topology",
        "finding": finding,
        "advice": "a larger server, or more shards (artifact shards)"
        if _NO_ROOM in reds
        else "keep it: the target has room",
    }


def _kind(place: Json) -> str:
    if place.get("cluster"):
        return "a cluster"
    return "a service behind Sentinel" if place.get("service") else "one server"


def _impact(plan: Json, size: Json) -> Json:
    rate, limits = size["keys_per_s"], plan["budget"]
    set_ones = [
        f"{name}: {limits[name]}"
        for name in ("probe_ms_added_max", "cpu_share_max")
        if limits.get(name) is not None
    ]
    return {
        "topic": "impact",
        "finding": "the sample says nothing of it"
        if not rate
        else f"the backfill reads up to {rate * plan['slices']:,.0f} keys a second of the source",
        "advice": f"the budget limits it: {', '.join(set_ones)}"
        if set_ones
        else "nothing limits it: set budget.cpu_share_max or budget.probe_ms_added_max",
    }


def _reverse(facts: Json) -> Json:
    ours, theirs = facts["source"]["payload_version"], facts["target"]["payload_version"]
    fits = ours is not None and theirs is not None and theirs <= ours
    return {
        "topic": "reverse sync",
        "finding": f"DUMP version {theirs} to {ours}",
        "advice": "payloads load on the source"
        if fits
        else "by type, which is slower; types that only the target has cannot flow back",
    }
