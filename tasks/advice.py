"""Analyze's recommendation: whether and how to migrate, from what was measured."""

from __future__ import annotations

from exodus.net.leg import ReplyError
from exodus.net.masters import located
from exodus.plan.bounds import TASKS_ADVICE_LONG_S, TASKS_COMPATIBILITY_NAMED
from exodus.plan.vocabulary import CopyStrategy, Side
from exodus.topology.providers import recognise, risks
from tasks.checks import Level, check, open_findings
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task


@kept_task("Find the providers' rules")
@opens_migration
async def find_provider_risks(it: Opened, commands: list[Json]) -> list[Json]:
    """Return what each side's provider refuses, what the workload uses first."""
    rows = []
    for side in Side:
        refused = await _refused(it, side)
        provider = recognise((await located(it.plan.address(side))).host, refused)
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


async def _refused(it: Opened, side: Side) -> list[str]:
    """Return COMMAND if a server does not have it, which tells some providers apart."""
    async with await it.endpoint(side).connect(name="exodus-provider") as leg:
        (reply,) = await leg.pipeline([("COMMAND", "INFO", "GET")])
    return ["COMMAND"] if isinstance(reply, ReplyError) else []


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
    plan: Json, facts: Json, size: Json, checks: list[Json], predicted: list[Json]
) -> list[Json]:
    """Return the advice as rows of `topic`, `finding`, `advice`; the verdict comes first."""
    open_ones = [row for row in checks if not row["ok"] and row["level"] == "must"]
    findings = open_findings(checks)
    rows = [_verdict(open_ones, findings), _strategy(plan, size)]
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
            "advice": f"maxmemory of the target: "
            f"{size['wanted_bytes'] + size['target_own_bytes']:,} bytes or more",
        },
        _reverse(facts),
        {
            "topic": "order",
            "finding": "compare, test, migrate, commit",
            "advice": "compare and test until their findings are resolved: both change nothing "
            "that applications see",
        },
    ]
    return rows


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
        "advice": "every check holds; a red check of a later run changes this advice",
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
