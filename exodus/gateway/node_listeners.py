"""Which listener stands for which node, in this process; and what clients are told of the nodes.

    address     the node to which sessions of a listener connect
    told_error  a MOVED or ASK with the listener in place of the node
    told_reply  a reply of CLUSTER, likewise

The map of each side is published in the control store (exodus/control/listener_map.py). This
process derives it from what the nodes say, at each look, and never waits for the store. A MOVED or
ASK may name a node before a look has found it. The map then changes at once.

A listener without a node of its own leads to one of the masters. A client that comes there is
answered as by a master that has lost its slots: by MOVED.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping

from exodus.cancellation import wait_at_most
from exodus.commands.slots import View, redirected_to
from exodus.control.listener_map import (
    ListenerMap,
    assign,
    learn,
    publish_listeners,
    read_listeners,
)
from exodus.control.store import ControlStore
from exodus.gateway.client_names import ClusterClients
from exodus.gateway.facade import answer, node_id
from exodus.gateway.relay import Connection
from exodus.gateway.store_state import STORE_ERRORS
from exodus.gateway.topology_replies import NAMES_NODES, Told, rewritten
from exodus.net.clusters import NoMaster, cluster_of
from exodus.plan.address import Address, Cluster, advertised, place_of
from exodus.plan.bounds import TOPOLOGY_LOOK_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import ClusterReplicas, Side
from exodus.telemetry.states import States

log = logging.getLogger(__name__)
_NO_LISTENER = b"CLUSTERDOWN the gateway has no listener left for a node of the cluster"
_NOT_KNOWN = b"TRYAGAIN the gateway does not know this node of the cluster yet"


class NodeListeners:
    """The maps of both sides; empty where no side is a cluster."""

    def __init__(
        self,
        plan: Plan,
        store: ControlStore,
        *,
        tls: bool,
        changed: Callable[[Side], None],
        look_now: Callable[[Side], None],
        advertise: str | None = None,
    ) -> None:
        """Begin without a map.

        Args:
            plan: with the number of listeners.
            store: where the maps are published.
            tls: clients of this process use TLS.
            changed: called when a listener stands for another node.
            look_now: called when the nodes are to be asked at once.
            advertise: host that clients are told, in place of the plan's.
        """
        self._clusters = {
            side: place for side in Side if isinstance(place := plan.address(side), Cluster)
        }
        self._store = store
        self._count = plan.gateway.listeners
        self._ident = node_id(plan.name)
        self._changed = changed
        self._look_now = look_now
        self._host = advertise or advertised(plan.gateway.advertise)[0]
        self._first_port = plan.gateway.told_port
        self.tls = tls
        self.replicas = plan.gateway.replicas is ClusterReplicas.LISTED
        self._maps = {side: ListenerMap() for side in self._clusters}
        self._published = dict(self._maps)
        self._woken = asyncio.Event()
        self._states = States(log)
        self.clients = ClusterClients()
        self.missing: dict[Side, int] = {}  # nodes for which no listener is left
        self.redirects: Counter[str] = Counter()  # MOVED, ASK
        self.untold: Counter[str] = Counter()  # replies without a node that has no listener

    # ------------------------------------------------------------------ the maps

    @property
    def maps(self) -> dict[Side, ListenerMap]:
        """Return the maps of now, fit to be kept on disk."""
        return dict(self._maps)

    @property
    def versions(self) -> dict[str, int]:
        """Return the version of each map; 0 while this process has another than the published."""
        return {
            str(side): known.version if known.nodes == self._published[side].nodes else 0
            for side, known in self._maps.items()
        }

    @property
    def why(self) -> str:
        """Return which nodes clients cannot be told of; empty: all have a listener."""
        return "; ".join(
            f"{missing} nodes of the {side} have no listener (gateway.listeners: {self._count})"
            for side, missing in self.missing.items()
            if missing
        )

    async def begin(self, kept: Mapping[Side, ListenerMap]) -> None:
        """Begin with the published maps. Without the store, begin with this process's last maps."""
        if not self._clusters:
            return
        try:
            kept = await read_listeners(self._store)
        except STORE_ERRORS as exc:
            log.warning("which listener stands for which node is not told: %s", exc)
        for side in self._clusters:
            self._maps[side] = self._published[side] = kept.get(side, ListenerMap())
            self.looked(side)

    async def run(self) -> None:
        """Agree with the other gateways on the maps, until cancelled."""
        while self._clusters:
            try:
                await self._agree()
            except STORE_ERRORS as exc:
                log.debug("the maps of listeners are not published yet: %s", exc)
            await wait_at_most(self._woken, TOPOLOGY_LOOK_S)
            self._woken.clear()

    async def _agree(self) -> None:
        published = await read_listeners(self._store)
        for side in self._clusters:
            self._adopt(side, published.get(side, ListenerMap()))
            known, theirs = self._maps[side], self._published[side]
            if not known.nodes or (known.nodes == theirs.nodes and theirs.version):
                continue
            after = known.model_copy(update={"version": theirs.version + 1})
            if await publish_listeners(self._store, side, after):
                self._published[side] = after
                self._set_version(side, after.version)
            else:
                self._woken.set()  # another gateway was faster

    def _adopt(self, side: Side, theirs: ListenerMap) -> None:
        """Take a published map, unless the store fell back to an older one."""
        ours, self._published[side] = self._published[side], theirs
        if theirs.version > ours.version:
            self._take(side, theirs)
            self.looked(side)
        self._set_version(side, theirs.version)

    def _set_version(self, side: Side, version: int) -> None:
        self._maps[side] = self._maps[side].model_copy(update={"version": version})

    def looked(self, side: Side) -> None:
        """Derive a side's map from what its nodes said at the last look."""
        view = self._view(side)
        if view is None:
            return
        known = self._maps[side]
        after, self.missing[side] = assign(known, view, self._count, replicas=self.replicas)
        self._states.away("a listener for each node", self.why, verbs=("is missing", "is there"))
        self._take(side, after)

    def _take(self, side: Side, after: ListenerMap) -> None:
        known, self._maps[side] = self._maps[side], after
        if after.nodes != known.nodes:
            for at, node in after.nodes.items():
                if known.nodes.get(at, node).place != node.place:
                    log.warning("listener %d stands for %s of the %s now", at, node.place, side)
            self._woken.set()
            self._changed(side)

    def _view(self, side: Side) -> View | None:
        return cluster_of(self._clusters[side]).view

    # ------------------------------------------------------------------ where sessions connect

    def stands(self, side: Side, listener: int) -> bool:
        """Tell whether a listener stands for a node of its own."""
        node, view = self._maps[side].nodes.get(listener), self._view(side)
        if node is None:
            return False
        if not node.node_id or view is None:
            return True  # a redirect named it, or nobody knows better
        return any(node.place in (shard.master, *shard.replicas) for shard in view.shards)

    def address(self, side: Side, listener: int) -> Address:
        """Return the node to which sessions of a listener connect.

        Raises:
            NoMaster: no node is known.
        """
        cluster = self._clusters[side]
        if self.stands(side, listener):
            return cluster.server(self._maps[side].nodes[listener].place)
        view = self._view(side)
        if view is None or not view.masters:
            raise NoMaster(f"no node of {cluster.url} is known: {cluster_of(cluster).why}")
        return cluster.server(view.masters[listener % len(view.masters)])

    # ------------------------------------------------------------------ what clients are told

    def told_error(self, connection: Connection, head: bytes, *, by_server: bool) -> bytes:
        """Return the first line of the error in place of a MOVED or ASK.

        What a script says is not believed: it would let a client lead a listener to any address.

        Args:
            connection: the client's.
            head: the error, without its first and last bytes.
            by_server: the server itself said it.
        """
        kind = head.partition(b" ")[0]
        self.redirects[kind.decode()] += 1
        leg = connection.leg
        try:
            found = redirected_to(head.decode(), _host_of(leg.address if leg else None))
        except ValueError:
            found = None
        if found is None:
            self.untold["not understood"] += 1
            return _NO_LISTENER
        slot, place = found
        teller = _Teller(self, connection)
        if not by_server and self._known(connection.side, "", [place]) is None:
            self._look_now(connection.side)
            self.untold["a script named a node that is not known"] += 1
            return _NOT_KNOWN
        told = teller.told("", [place], slot)
        if told is None:
            return _NO_LISTENER
        return b"%b %d %b:%d" % (kind, slot, told.host.encode(), told.port)

    def told_reply(self, connection: Connection, word: bytes, frame: bytes) -> bytes:
        """Return a whole reply to `CLUSTER word` as the client may see it."""
        return rewritten(word, frame, _Teller(self, connection))

    def find(self, side: Side, node_id: str, places: list[str], slot: int | None) -> int | None:
        """Return the listener of a node. One that serves a slot gets one, if one is left."""
        found = self._known(side, node_id, places)
        if found is None and slot is not None:
            self.looked(side)  # somebody else of this process may have asked the nodes meanwhile
            found = self._known(side, node_id, places)
        if found is not None and (slot is not None or self.stands(side, found)):
            return found
        if slot is None or not places:
            return None
        known = self._maps[side]
        after = learn(known, places[0], slot, self._view(side), self._count, replicas=self.replicas)
        self._look_now(side)
        if after is None:
            self.untold["no listener is left"] += 1
            return None
        self._take(side, after)
        return after.by_place(places[0])

    def as_cluster(self, connection: Connection, args: list[bytes], protocol: int) -> bytes:
        """Answer a cluster client for a single server: all listeners lead to it, and clients are
        told of the first.
        """
        if len(args) > 1 and args[1].upper() in NAMES_NODES:
            self.clients.note(connection)
        return answer(
            args,
            protocol,
            host=self.host(connection),
            port=self.port(connection, 0),
            ident=self._ident,
            tls=self.tls,
        )

    def _known(self, side: Side, node_id: str, places: list[str]) -> int | None:
        known = self._maps[side]
        found = known.by_id(node_id) if node_id else None
        for place in places:
            found = known.by_place(place) if found is None else found
        return found

    def host(self, connection: Connection) -> str:
        """Return the host that a client is told."""
        return self._host or _reached(connection)[0]

    def port(self, connection: Connection, listener: int) -> int:
        """Return the port of a listener that a client is told."""
        first = self._first_port or _reached(connection)[1] - connection.listener
        return first + listener


class _Teller:
    """Tells one client where the nodes are (`topology_replies.Nodes`)."""

    def __init__(self, listeners: NodeListeners, connection: Connection) -> None:
        self._listeners = listeners
        self._connection = connection
        self.tls = listeners.tls
        self.replicas = listeners.replicas
        self.ip = _reached(connection)[0]

    def told(self, node_id: str, places: list[str], slot: int | None) -> Told | None:
        connection, leg = self._connection, self._connection.leg
        asked = _host_of(leg.address if leg else None)
        named = [_with_host(place, asked) for place in places]
        found = self._listeners.find(connection.side, node_id, named, slot)
        if found is None:
            return None
        return Told(self._listeners.host(connection), self._listeners.port(connection, found))


def _reached(connection: Connection) -> tuple[str, int]:
    """Return the address of the gateway, as the client reached it."""
    client = connection.client
    host, port, *_ = client.get_extra_info("sockname") if client is not None else ("", 0)
    return str(host).removeprefix("::ffff:"), int(port)


def _host_of(address: Address | None) -> str:
    return address.host if address is not None else ""


def _with_host(place: str, asked: str) -> str:
    """Return a place whose host, if it is empty, is the one that was asked."""
    return place_of(asked, int(place[1:])) if place.startswith(":") else place
