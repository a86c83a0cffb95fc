"""What a server says of its part in replication."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import hiredis

from exodus.net.info import info_of
from exodus.plan.address import place_of


@dataclass(frozen=True)
class RoleReport:
    """What a server says of its part in replication."""

    is_master: bool
    run_id: str
    offset: int  # of what it wrote, or applied
    replid: str
    replid_before: str  # of the master that it was a replica of, until its own failover
    offset_before: int  # up to which the stream of that master was its own; -1: none
    replicas: dict[str, int] = field(default_factory=dict)  # as they announce themselves → offset


def role_report(role: Any, server: Any, replication: Any) -> RoleReport:
    """Read the replies to ROLE, INFO server and INFO replication.

    Raises:
        ValueError: the server refuses to tell.
    """
    refused = next((str(said) for said in (server, replication) if not isinstance(said, bytes)), "")
    if refused:
        raise ValueError(refused)
    facts = info_of(server) | info_of(replication)
    if isinstance(role, hiredis.ReplyError) and not str(role).startswith("NOPERM"):
        raise ValueError(str(role))
    is_master = facts.get("role") == "master" and (
        not isinstance(role, list) or role[0] == b"master"
    )
    replicas = {
        place_of(row[0].decode(), int(row[1])): int(row[2])
        for row in (role[2] if is_master and isinstance(role, list) else ())
    }
    return RoleReport(
        is_master,
        facts.get("run_id", ""),
        int(facts.get("master_repl_offset" if is_master else "slave_repl_offset", 0)),
        facts.get("master_replid", ""),
        facts.get("master_replid2", ""),
        int(facts.get("second_repl_offset", -1)),
        replicas,
    )
