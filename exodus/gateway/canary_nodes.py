"""Canary connections to the nodes of a cluster: each read goes to the node that has its slot.

The gateway asks the nodes itself, so no client hears of the follower's addresses. A node that has
the slot no more answers MOVED, ASK or TRYAGAIN. That is no fault of the follower: the read counts
as not asked, the client gets the authority's answer, and the nodes are asked who has the slot. The
same holds for a node that is a master since a moment, until there are connections to it.

A node that ends its connections fails its reads, as a single server does. So a failover by a crash
ends the canary, and one that an operator asks for does not.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable

from exodus.background import BackgroundTasks
from exodus.commands.key_slots import slot_of
from exodus.commands.slots import redirected_to
from exodus.gateway.canary_connections import CanaryConnections
from exodus.gateway.canary_reads import Canary, CanaryRead
from exodus.gateway.session import Session
from exodus.net.clusters import cluster_of
from exodus.plan.address import Cluster
from exodus.plan.vocabulary import Side

log = logging.getLogger(__name__)
_ELSEWHERE = (b"MOVED ", b"ASK ", b"TRYAGAIN")


class CanaryNodes:
    """Sends canary reads to the nodes of a cluster."""

    def __init__(
        self,
        canary: Canary,
        cluster: Cluster,
        tls: ssl.SSLContext | None,
        tasks: BackgroundTasks,
        look_now: Callable[[Side], None],
        *,
        side: Side,
        wait_s: float,
    ) -> None:
        """`look_now` asks the nodes of a side who has which slots."""
        self._canary = canary
        self._cluster = cluster
        self._tls = tls
        self._tasks = tasks
        self._look_now = look_now
        self._side = side
        self._wait_s = wait_s
        self._nodes: dict[str, CanaryConnections] = {}  # by announced address
        self._meeting: set[str] = set()
        self._closed = False

    async def connect(self) -> None:
        """Connect to each master.

        Raises:
            OSError, TimeoutError: the masters are not known, or one refuses the connection or the
                login.
        """
        self.close()
        self._closed = False
        for master in cluster_of(self._cluster).known.masters:
            await self._connect(master)

    async def _connect(self, master: str) -> None:
        connections = CanaryConnections(
            self._canary,
            self._cluster.server(master),
            self._tls,
            field=self._side,
            wait_s=self._wait_s,
            elsewhere=self._elsewhere,
        )
        await connections.connect()
        if self._closed:
            connections.close()
        else:
            self._nodes[master] = connections

    @property
    def lost(self) -> bool:
        """Tell whether a connection ended."""
        return not self._nodes or any(each.lost for each in self._nodes.values())

    def ask(self, session: Session, read: CanaryRead, request: bytes, protocol: int) -> None:
        """Send a session's read to the node that has its key's slot."""
        view = cluster_of(self._cluster).view
        shard = view.owner(slot_of(read.key)) if view is not None else None
        if shard is None:
            read.left_out()
            return
        connections = self._nodes.get(shard.master)
        if connections is not None:
            connections.ask(session, read, request, protocol)
            return
        read.left_out()
        if shard.master not in self._meeting:
            self._meeting.add(shard.master)
            self._tasks.spawn(self._meet(shard.master))

    async def _meet(self, master: str) -> None:
        """Connect to a node that was no master before."""
        try:
            await self._connect(master)
        except (OSError, TimeoutError) as exc:
            log.warning("canary reads do not reach %s of the %s: %s", master, self._side, exc)
            self._look_now(self._side)
        finally:
            self._meeting.discard(master)

    def _elsewhere(self, said: bytes, asked: str) -> bool:
        """Take over what a node says of the slot; tell whether it does not serve it now."""
        if not said.startswith(_ELSEWHERE):
            return False
        to, view = redirected_to(said.decode(), asked), cluster_of(self._cluster).view
        moved = to is not None and said.startswith(b"MOVED ") and view is not None
        if not moved or to is None or view is None or not view.move(*to):
            cluster_of(self._cluster).doubt()
            self._look_now(self._side)
        return True

    def close(self) -> None:
        """End the connections. Reads under way fail."""
        self._closed = True
        for connections in self._nodes.values():
            connections.close()
        self._nodes = {}
