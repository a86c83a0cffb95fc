"""Try the observed traffic on the target, and on other servers that may become it."""

from __future__ import annotations

from exodus.acceptance.observed import observed_workload
from exodus.errors import ExodusError
from exodus.net.clusters import NoMaster
from exodus.observe.ramp import ramp
from exodus.observe.workload import Workload
from exodus.plan.address import Place
from exodus.plan.vocabulary import Side, UserRole
from exodus.topology.endpoint import Endpoint
from tasks.context import Json, Opened, opens_migration
from tasks.kept import kept_task


def trying(it: Opened, side: Side) -> Place:
    """Return a side with the user as which requests are tried: `compare_user`, else the comparer's.

    An application's user exists on the target only.
    """
    user = it.plan.compare_user
    if user is not None and side is Side.TARGET:
        return user.at(it.plan.target)
    return it.plan.acting(UserRole.COMPARER).address(side)


async def _tried(place: Place, workload: Workload | None) -> Json:
    if workload is None:
        return {"why": "no workload was observed"}
    try:
        server = Endpoint(Side.TARGET, place)
        return {**(await ramp(server, workload)).report(), "why": ""}
    except ExodusError as exc:
        return {"why": f"{exc.what}: {exc.why}"}
    except NoMaster as exc:
        return {"why": str(exc)}


@kept_task("Try the observed mix on the target")
@opens_migration
async def try_mix(it: Opened) -> Json:
    """Play the workload model on scratch keys of the target, in steps."""
    return await _tried(trying(it, Side.TARGET), await observed_workload(it.store))


@kept_task("Rank candidates for the target")
@opens_migration
async def rank_candidates(it: Opened, target: Json) -> list[Json]:
    """Try the same mix on each candidate of the plan; the target's trial is given.

    Returns a row a server, the best first: by errors, then by what it does not have, then by its
    99th percentile at the same rate.
    """
    if not it.plan.candidates:
        return []
    workload = await observed_workload(it.store)
    tried = {it.plan.target.url: target}
    for address in it.plan.candidates:
        tried[address.url] = await _tried(address, workload)
    rows = [
        {**_ranked(url, found), "is_target": url == it.plan.target.url}
        for url, found in tried.items()
    ]
    return sorted(rows, key=_order)


def _ranked(url: str, found: Json) -> Json:
    errors = found.get("errors", {})
    return {
        "server": url,
        "why_not": found["why"],
        "errors": sum(sum(codes.values()) for codes in errors.values()),
        "shapes_with_errors": ", ".join(sorted(errors)),
        "refused": sum(found.get("refused", {}).values()),
        "p50_us": found.get("latency_us", {}).get("p50"),
        "p99_us": found.get("latency_us", {}).get("p99"),
        "requests_per_s": found.get("requests_per_s", 0.0),
        "memory_bytes": found.get("memory_bytes"),
    }


def _order(row: Json) -> tuple[bool, int, int, float]:
    p99 = row["p99_us"]
    return bool(row["why_not"]), row["errors"], row["refused"], float("inf") if p99 is None else p99
