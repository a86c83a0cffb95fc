"""Collecting the evidence of a migration from the control store. It contains no secret.

The reports include the digest by buckets that finalise takes of the source's last state
(`side_digest`).
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import orjson

from exodus.control import journal, ledger, registry
from exodus.control.changes import Key, unpack
from exodus.control.route import read_route
from exodus.control.store import ControlStore
from exodus.control.topology import read_failovers, read_topologies
from exodus.copy.scan import scan_once
from exodus.cutover.fence import read_record
from exodus.errors import SourceError, TargetError
from exodus.native import link
from exodus.net.client import answered
from exodus.net.info import databases_of, info_of, is_sentinel
from exodus.plan.address import Service
from exodus.plan.bounds import EVIDENCE_SCAN_KEYS
from exodus.plan.own_keys import is_own
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint

_BUCKETS = 64
_FOOT_BYTES = 10  # of a DUMP payload: version and checksum
Json = dict[str, Any]


async def side_digest(endpoint: Endpoint) -> Json:
    """Return the number of keys and a digest for each bucket of key hashes: name, dumped value, and
    expiry of every key but our own.

    Free of order, so that SCAN's does not matter. Fit to show that a side is as it was, not to
    compare two sides of different versions: verification does that.
    """
    counts, digests = [0] * _BUCKETS, [0] * _BUCKETS
    for node in await endpoint.each_node():
        async with await node.connect(name="exodus-digest") as leg:
            # Not by `facts`, which writes a scratch key
            databases = databases_of(info_of(await leg.call("INFO", "keyspace")))
        for db in databases:
            async with await node.connect(db, name="exodus-digest") as leg:
                cursor = -1
                while cursor:
                    cursor, keys = await scan_once(leg, max(cursor, 0), EVIDENCE_SCAN_KEYS)
                    keys = list(dict.fromkeys(key for key in keys if not is_own(key)))
                    dumps = await leg.pipeline([("DUMP", key) for key in keys])
                    for key, dump in zip(keys, dumps, strict=True):
                        if isinstance(dump, bytes):
                            bucket = zlib.crc32(key, db) % _BUCKETS
                            counts[bucket] += 1
                            value = hashlib.sha256(
                                b"%d:%d:" % (db, len(key)) + key + dump[:-_FOOT_BYTES]
                            ).digest()
                            digests[bucket] ^= int.from_bytes(value[:16], "big")
    buckets = [
        {"bucket": number, "keys": counts[number], "digest": f"{digests[number]:032x}"}
        for number in range(_BUCKETS)
    ]
    return {
        "keys": sum(counts),
        "digest": hashlib.sha256(orjson.dumps(buckets)).hexdigest(),
        "buckets": buckets,
    }


async def last_state(endpoint: Endpoint) -> Json:
    """Return what the protocol tells of a side: `side_digest`, its identity, and its position.

    `offset` is that of its replication stream (None where INFO does not tell), `quiet` whether it
    stayed there meanwhile, so that the digest is of exactly that state. `saved_at` and
    `changes_since_save` speak of the dump on its own disk. Keys that expire later change it.
    """
    before, digest, after = (
        await (await endpoint.any_node()).info(),
        await side_digest(endpoint),
        await (await endpoint.any_node()).info(),
    )
    saved = after.get("rdb_last_save_time")
    changes = after.get("rdb_changes_since_last_save")
    offset = before.get("master_repl_offset")
    return {
        "version": after.get("valkey_version") or after.get("redis_version"),
        "run_id": after.get("run_id"),
        "offset": None if offset is None else int(offset),
        "quiet": offset is not None
        and (offset, before.get("run_id"))
        == (after.get("master_repl_offset"), after.get("run_id")),
        "saved_at": None if saved is None else datetime.fromtimestamp(int(saved), UTC).isoformat(),
        "changes_since_save": None if changes is None else int(changes),
        **digest,
    }


async def collect(store: ControlStore, plan: Plan) -> dict[str, object]:
    """Documents by name, fit for `bundle.write`."""
    documents: dict[str, object] = {
        "plan": plan.model_dump(mode="json"),
        "route": (await read_route(store)).model_dump(mode="json"),
        "ledger": {"entries": await ledger.read_stored(store)},
        "phases": {name: state.as_json() for name, state in (await store.phases()).items()},
        "open-gaps": {
            "gaps": [
                orjson.loads(raw)
                for raw in (await answered(store.client.hgetall(store.keys.gap))).values()
            ]
        },
        "dead-letters": {
            "letters": [
                orjson.loads(raw)
                for raw in (await answered(store.client.hgetall(store.keys.dead))).values()
            ]
        },
        "divergences": {
            "divergences": [
                orjson.loads(raw)
                for raw in (await answered(store.client.hgetall(store.keys.divergence))).values()
            ]
        },
    }
    masters, failovers = await read_topologies(store), await read_failovers(store)
    if masters:
        documents["topology"] = {
            "masters": [
                {"side": str(side), **each.model_dump(mode="json")}
                for side, each in masters.items()
            ],
            "failovers": [
                {"at_ms": each.at_ms, "side": str(each.side), "what": each.text}
                for each in failovers
            ],
        }
    for kind in ("gateway", "syncer", "comparer"):
        documents[f"{kind}s"] = {
            "processes": [
                beat.model_dump(mode="json") for beat in await registry.heartbeats(store, kind)
            ]
        }
    prefix = store.keys.report("")
    async for raw in store.client.scan_iter(match=prefix.replace("{", "\\{") + "*", count=1000):
        name = raw.decode().removeprefix(prefix)
        report = await store.report(name)
        if report is not None:
            documents[f"report.{name}"] = report
    return documents


async def dirty_keys(store: ControlStore, plan: Plan, at_most: int) -> tuple[list[Key], int]:
    """Return keys written at the authority and not yet copied, as far as the journal knows, and
    their number.
    """
    changes = await journal.since(store, await _synced(store, plan))
    letters = [
        key
        for packed in await answered(store.client.hkeys(store.keys.dead))
        for key in unpack(packed)
    ]
    keys = list(dict.fromkeys([*changes.keys, *letters]))
    return keys[:at_most], len(keys)


async def _synced(store: ControlStore, plan: Plan) -> dict[int, bytes]:
    found = await journal.positions(store)
    return {partition: found.get(partition, b"0-0") for partition in range(plan.partitions)}


async def remaining_keys(store: ControlStore, plan: Plan) -> list[str]:
    """Return in words what Exodus has left on both sides."""
    left: list[str] = []
    for side in Side:
        record = await read_record(store, side)
        if record is not None:
            left.append(
                f"{side}: the fence is up "
                f"({record.kind}){': ' if record.kept else ''}{', '.join(record.kept)}"
            )
        try:
            if side is Side.TARGET and (follows := (await link.look(plan)).follows):
                left.append(f"{side}: it is a replica of {follows}")
            left += [
                f"{side}: key {key!r}"
                for key in await _own_keys(Endpoint(side, plan.address(side)))
            ]
        except (SourceError, TargetError) as exc:
            left.append(f"{side}: it was not looked at and not cleaned: {exc.why}")
    return left


async def _own_keys(endpoint: Endpoint) -> list[bytes]:
    found: list[bytes] = []
    for node in await endpoint.each_node():
        async with await node.connect(name="exodus-left") as leg:
            cursor = -1
            while cursor:
                cursor, keys = await scan_once(leg, max(cursor, 0), EVIDENCE_SCAN_KEYS)
                found += [key for key in keys if is_own(key)]
    return found


async def connected_clients(plan: Plan, side: Side) -> list[Json]:
    """Connections to a side that are not Exodus's: by user, host, name and kind. Ours are known by
    their names, which begin with `exodus`. Those of a service's Sentinels are left out.
    """
    watched = isinstance(plan.address(side), Service)
    found: Counter[tuple[str, str, str, str]] = Counter()
    for node in await Endpoint(side, plan.address(side)).each_node():
        async with await node.connect(name="exodus-clients") as leg:
            for line in (await leg.call("CLIENT", "LIST")).decode("utf-8", "replace").splitlines():
                facts = dict(pair.partition("=")[::2] for pair in line.split())
                name, flags = facts.get("name", ""), facts.get("flags", "")
                if not name.startswith("exodus") and not (watched and is_sentinel(name)):
                    kind = "replica" if "S" in flags else "subscriber" if "P" in flags else "client"
                    found[
                        (
                            facts.get("user", "?"),
                            facts.get("addr", "?").rpartition(":")[0],
                            name,
                            kind,
                        )
                    ] += 1
    return [
        {"user": user, "host": host, "name": name, "kind": kind, "connections": count}
        for (user, host, name, kind), count in sorted(found.items())
    ]
