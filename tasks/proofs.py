"""Pre-test's proofs: what was watched and tried, as checks with their figures."""

from __future__ import annotations

from exodus.plan.bounds import (
    TASKS_PROOFS_NAMED,
    TASKS_PROOFS_PARSED_MIN,
    TASKS_PROOFS_PLAYED_MIN,
    TASKS_PROOFS_SEEN_MIN,
)
from tasks.checks import Level, check
from tasks.context import Json

_LONGER = "watch for longer (--seconds), while the applications work"


def judge_copy(watched: Json) -> list[Json]:
    """Return the checks of the copy: it is of this server, whole, and readable."""
    unseen = [
        f"{row['probes_seen']} of {row['probes_sent']} reads of {row['node']}"
        for row in watched["nodes"]
        if not row["probes_sent"] or row["probes_seen"] < row["probes_sent"]
    ]
    return [
        check(
            "the copy has requests of applications",
            watched["on_keys"] > 0,
            f"{watched['on_keys']} of {watched['requests']} requests name an application's key",
            why="Exodus's own requests do not count",
            next_step=_LONGER,
        ),
        check(
            "the copy shows the reads that Exodus sent to the source",
            watched["probes_sent"] > 0 and not unseen,
            "; ".join(unseen) or f"{watched['probes_seen']} of {watched['probes_sent']} reads",
            why="it is the copy of another server or port, is filtered, or came too late",
            next_step="capture every packet of the source's port (tcpdump -U), or leave "
            "capture_folder away for MONITOR",
        ),
        _counted(watched),
        *_clients(watched["unseen_clients"]),
        *_parsed(watched),
    ]


def _clients(unseen: list[Json] | str | None) -> list[Json]:
    """Return the check that packets of each client came. MONITOR shows all, so it has none."""
    if unseen is None:
        return []
    name = "the copy shows every active client of the source"
    if isinstance(unseen, str):
        return [check(name, False, f"not known: {unseen}", level=Level.INFO)]
    named = ", ".join(
        f"{row['client']} of {row['user']}@{row['host']}: {row['connections']} connection(s)"
        for row in unseen[:TASKS_PROOFS_NAMED]
    )
    return [
        check(
            name,
            not unseen,
            named or "CLIENT LIST of the source has no other",
            level=Level.SHOULD,
            why="these clients bypass the copy, so their traffic was not judged",
            next_step="capture their way too: another interface or network of the source's host",
        )
    ]


def _counted(watched: Json) -> Json:
    name, share = "the copy shows what the source executed", watched["seen_share"]
    if share is None:
        packets = len(watched["nodes"]) > 1 and watched["coverage"] is not None
        return check(
            name,
            False,
            watched["uncounted"],
            level=Level.SHOULD,
            why="nobody knows whether the copy is whole"
            if packets
            else "its INFO commandstats was refused or empty",
            next_step="leave capture_folder away for MONITOR, which is held against each master"
            if packets
            else "allow INFO, MULTI and EXEC to Exodus's user",
        )
    rows = watched["reconciled"]
    less = sorted(
        (row for row in rows if row["seen"] < row["executed"]),
        key=lambda row: row["seen"] - row["executed"],
    )
    unseen = ", ".join(
        f"{row['command']} {row['seen']:,} of {row['executed']:,}"
        for row in less[:TASKS_PROOFS_NAMED]
    )
    shares = {row["node"]: row.get("seen_share") for row in watched["nodes"]}
    low = [
        f"{of_node:.2%} on {node}"
        for node, of_node in shares.items()
        if len(shares) > 1 and of_node is not None and of_node < TASKS_PROOFS_SEEN_MIN
    ]
    return check(
        name,
        share >= TASKS_PROOFS_SEEN_MIN and not low,
        f"{share:.2%} of {sum(row['executed'] for row in rows):,} requests"
        + (f"; {', '.join(low)}" if low else "")
        + (f"; {unseen}" if unseen else ""),
        level=Level.SHOULD,
        why="some clients do not appear in the copy, so their traffic was not judged",
        next_step="find who sends them (CLIENT LIST on the source), and capture their way too",
    )


def _parsed(watched: Json) -> list[Json]:
    readable = check(
        "every request could be parsed",
        watched["unreadable"] == 0,
        f"{watched['unreadable']} unreadable of {watched['requests']} requests",
        next_step="report it with the server's version: MONITOR sent a line that has no request",
    )
    coverage = watched["coverage"]
    if coverage is None:
        return [readable]
    reasons = ", ".join(f"{size:,} B {why}" for why, size in coverage["unparsed_bytes"].items())
    tls = coverage["tls_connections"]
    return [
        readable,
        check(
            "the packets can be read",
            coverage["parsed_share"] >= TASKS_PROOFS_PARSED_MIN,
            f"{coverage['parsed_share']:.2%} of the bytes; {coverage['lost_bytes']:,} lost, "
            f"{coverage['cut_bytes']:,} cut off"
            + (f"; {tls} connections use TLS" if tls else "")
            + (f"; {reasons}" if reasons else ""),
            why="TLS hides the requests" if tls else "what cannot be read was not judged",
            next_step="capture behind the TLS termination, or leave capture_folder away for MONITOR"
            if tls
            else "tcpdump -U -s 0 -B 65536; see docs/operating/capture.md",
        ),
    ]


def judge_followed(places: list[Json]) -> list[Json]:
    """Return the check that one event came from the copy to the metric and the artifact."""
    counts = {row["events"] for row in places}
    return [
        check(
            "one event can be followed from the copy to the evidence",
            len(counts) == 1 and counts != {0},
            ", ".join(f"{row['where']}: {row['events']} of Exodus's own reads" for row in places),
            why="what is decided on is not what was seen",
            next_step="look into the log of this run: a report or an artifact was not kept",
        )
    ]


def judge_mix(tried: Json) -> list[Json]:
    """Return the checks of the trial on the target."""
    takes = "the target takes the observed mix"
    if tried["why"]:
        return [
            check(
                takes,
                False,
                tried["why"],
                level=Level.SHOULD,
                why="the mix could not be tried",
                next_step="watch for longer, or give the target room and Exodus's user the rights",
            )
        ]
    errors = {shape: sum(codes.values()) for shape, codes in tried["errors"].items()}
    latency = tried["latency_us"]
    return [
        check(
            takes,
            not errors and tried["sent"] > 0,
            f"{tried['sent']:,} requests on scratch keys, {sum(errors.values())} errors"
            + (f": {_shapes(tried['errors'])}" if errors else ""),
            why="applications would get the same errors after the cutover",
            next_step="choose a target that has these commands and options, or correct it",
        ),
        check(
            "the target lets its user run the observed mix",
            not tried["refused"],
            f"refused: {', '.join(list(tried['refused'])[:TASKS_PROOFS_NAMED])}"
            if tried["refused"]
            else "nothing was refused for want of a right",
            level=Level.SHOULD,
            why="these requests were not tried",
            next_step="name an application's user of the target in compare_user",
        ),
        check(
            "the trial is like the observed traffic",
            tried["played_share"] >= TASKS_PROOFS_PLAYED_MIN,
            f"{tried['played_share']:.1%} of the requests have a shape that was played"
            + _left_out(tried["not_played"]),
            level=Level.SHOULD,
            why="the rest was not tried on the target",
            next_step="try these by the applications' own tests",
        ),
        check(
            "the scratch keys of the trial are gone",
            tried["left"] == 0,
            f"{tried['left']} left on the target",
            next_step="remove the keys exodus:load:* from the target",
        ),
        check(
            "latency of the trial",
            True,
            f"p50 {latency['p50'] / 1000:.2f} ms, p99 {latency['p99'] / 1000:.2f} ms at "
            f"{tried['requests_per_s']:,.0f} requests/s",
            level=Level.INFO,
        ),
    ]


def _shapes(errors: Json) -> str:
    return "; ".join(
        f"{shape}: " + ", ".join(f"{code} {count}" for code, count in codes.items())
        for shape, codes in list(errors.items())[:TASKS_PROOFS_NAMED]
    )


def _left_out(not_played: Json) -> str:
    names = sorted(not_played, key=lambda name: -not_played[name])[:TASKS_PROOFS_NAMED]
    return f"; not played: {', '.join(names)}" if names else ""


def judge_candidates(rows: list[Json]) -> list[Json]:
    """Return the check that no candidate does better than the target."""
    if not rows:
        return []
    best = rows[0]
    (target,) = [row for row in rows if row["is_target"]]
    p99 = best["p99_us"]
    return [
        check(
            "no candidate takes the mix with fewer errors than the target",
            (bool(target["why_not"]), target["errors"]) <= (bool(best["why_not"]), best["errors"]),
            f"the best is {best['server']}: {best['errors']} errors"
            + ("" if p99 is None else f", p99 {p99 / 1000:.2f} ms"),
            level=Level.SHOULD,
            why=f"the target had {target['errors']} errors. {target['why_not']}".rstrip(". ") + ".",
            next_step="read the artifact candidates, and choose the target again",
        )
    ]
