"""Watching sides that are services behind Sentinel or clusters (`watch_cluster.py`): who is a
master, kept current in this process.

Each service is looked at every `TOPOLOGY_LOOK_S`, and at once when a Sentinel says +switch-master.
A failover ends this process's connections to the old master (`exodus/net/masters.py`), is noted in
the control store with a new topology epoch, and is told to `changed`.

A look also keeps the master's replication offset. After a failover, the new master says up to
which offset it has the old one's stream. So the watch knows since when acknowledged writes may be
lost: since the last look at which all that the master had written is in what the new one has.

A watch never waits for the control store before it follows a failover. What it could not note
there, it notes later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from redis.exceptions import RedisError

from exodus.cancellation import end_all, wait_at_most
from exodus.control.store import ControlStore
from exodus.control.topology import (
    Failover,
    Topology,
    note_master,
    note_shards,
    read_topologies,
)
from exodus.errors import OperatorError
from exodus.net.clusters import NodeLookout, cluster_of
from exodus.net.masters import Believed, Lookout, master_of
from exodus.net.sentinel import Sentinels
from exodus.plan.address import Address, Cluster, Service
from exodus.plan.bounds import TOPOLOGY_LOOK_S, TOPOLOGY_SIGHTS_KEPT
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.telemetry.states import States
from exodus.topology.lost_writes import Sight, lost_since
from exodus.topology.watch_cluster import ClusterWatch

log = logging.getLogger(__name__)
Masters = dict[str, tuple[str, int, list[str]]]  # side → master, config epoch, replicas
_STORE_ERRORS = (RedisError, OSError, TimeoutError)


def known_masters(plan: Plan) -> Masters:
    """Return what this process knows of the services of a plan, fit to be kept on disk."""
    found: Masters = {}
    for side in Side:
        place = plan.address(side)
        believed = master_of(place).believed if isinstance(place, Service) else None
        if believed is not None:
            found[str(side)] = (believed.announced, believed.config_epoch, list(believed.replicas))
    return found


def seed_masters(plan: Plan, known: Masters) -> None:
    """Begin with what was kept."""
    for side in Side:
        place = plan.address(side)
        if isinstance(place, Service) and str(side) in known:
            announced, config_epoch, replicas = known[str(side)]
            master_of(place).seed(announced, config_epoch, tuple(replicas))


class TopologyWatch:
    """The watch of one process over the services of a plan; nothing where there are none."""

    def __init__(
        self,
        plan: Plan,
        store: ControlStore,
        changed: Callable[[Side], None] | None = None,
        appeared: Callable[[Side], None] | None = None,
        looked: Callable[[Side], None] | None = None,
    ) -> None:
        """`changed` hears of failovers, `appeared` of replicas and nodes that were not there
        before, `looked` of each look at a cluster.
        """
        self._services = {
            side: place for side in Side if isinstance(place := plan.address(side), Service)
        }
        self._clusters = {
            side: place for side in Side if isinstance(place := plan.address(side), Cluster)
        }
        self._store = store
        self._changed = changed
        self._appeared = appeared
        self._looked = looked
        self._watches: dict[Side, ClusterWatch] = {}
        self._states = States(log)

    async def begin(self) -> None:
        """Look once, so that the masters are known; what no Sentinel tells comes from the store."""
        await self._seed()
        for service in self._services.values():
            async with Lookout(service) as lookout:
                await lookout.look()
        for cluster in self._clusters.values():
            async with NodeLookout(cluster) as nodes:
                await nodes.look()

    async def _seed(self) -> None:
        if not self._services:
            return
        with contextlib.suppress(*_STORE_ERRORS):
            for side, topology in (await read_topologies(self._store)).items():
                if side in self._services:
                    replicas = topology.replicas.split(",") if topology.replicas else []
                    master_of(self._services[side]).seed(
                        topology.master, topology.config_epoch, tuple(replicas)
                    )

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._seed()
        watching = [
            asyncio.create_task(_ServiceWatch(side, service, self).run())
            for side, service in self._services.items()
        ]
        self._watches = {
            side: ClusterWatch(side, cluster, self) for side, cluster in self._clusters.items()
        }
        watching += [asyncio.create_task(each.run()) for each in self._watches.values()]
        try:
            await asyncio.gather(*watching)
            await asyncio.Event().wait()
        finally:
            await end_all(watching)

    @property
    def why(self) -> str:
        """Return what is not known of the sides now; empty: all is."""
        found = {side: master_of(service).why for side, service in self._services.items()}
        found |= {side: cluster_of(cluster).why for side, cluster in self._clusters.items()}
        return "; ".join(f"{side}: {why}" for side, why in found.items() if why)

    async def note(self, side: Side, topology: Topology, failover: Failover) -> bool:
        """Note the master in the control store; return whether the store took it."""
        try:
            epoch = await note_master(self._store, side, topology, failover)
        except _STORE_ERRORS as exc:
            log.info("the master of the %s is not noted yet: %s", side, exc)
            return False
        if epoch > 1:
            log.warning(
                "topology epoch %d: %s is the master of the %s", epoch, topology.master, side
            )
        return True

    async def note_shards(
        self, side: Side, topology: Topology, failovers: Sequence[Failover]
    ) -> bool:
        """Note the shards of a cluster in the control store; return whether the store took them."""
        try:
            epoch = await note_shards(self._store, side, topology, failovers)
        except _STORE_ERRORS as exc:
            log.info("the shards of the %s are not noted yet: %s", side, exc)
            return False
        if epoch > 1:
            log.warning("topology epoch %d of the %s: %s", epoch, side, topology.master)
        return True

    async def now_ms(self) -> int | None:
        """Return the store's time; None while the store is away."""
        try:
            return await self._store.now_ms()
        except _STORE_ERRORS:
            return None

    def tell(self, side: Side, why: str) -> None:
        """Log what is not known of a service, once."""
        self._states.away(
            f"the master of the {side}",
            why,
            kind=why.partition(":")[0],
            verbs=("is not known for certain", "is known again"),
        )

    def failed_over(self, side: Side) -> None:
        """Tell the owner of a failover."""
        if self._changed is not None:
            self._changed(side)

    def looked(self, side: Side) -> None:
        """Tell the owner of a look at a cluster."""
        if self._looked is not None:
            self._looked(side)

    def look_now(self, side: Side) -> None:
        """Ask the nodes of a cluster at once."""
        if side in self._watches:
            self._watches[side].woken.set()

    def appeared(self, side: Side) -> None:
        """Tell the owner of another replica, or of another node of a cluster."""
        if self._appeared is not None:
            self._appeared(side)


class _ServiceWatch:
    """The watch over one service."""

    def __init__(self, side: Side, service: Service, owner: TopologyWatch) -> None:
        self._side = side
        self._service = service
        self._owner = owner
        self._woken = asyncio.Event()
        self._sights: deque[Sight] = deque(maxlen=TOPOLOGY_SIGHTS_KEPT)
        self._seen: tuple[str, int] | None = None
        self._noted: tuple[str, int] | None = None
        self._replicas: set[str] = set()
        # Since when writes may be lost, and bytes that are; until the store has taken it.
        self._lost: tuple[float | None, int | None] = (None, None)
        self._changed_at = 0.0

    async def run(self) -> None:
        sentinels = Sentinels(self._service)
        hearing = [
            asyncio.create_task(self._hear(sentinels, address))
            for address in self._service.sentinel_addresses
        ]
        master = master_of(self._service)
        master.watches += 1
        try:
            async with Lookout(self._service) as lookout:
                while True:
                    await self._look(lookout)
                    await wait_at_most(self._woken, TOPOLOGY_LOOK_S)
                    self._woken.clear()
        finally:
            master.watches -= 1
            try:
                await end_all(hearing)
            finally:
                await sentinels.close()

    async def _look(self, lookout: Lookout) -> None:
        master = master_of(self._service)
        try:
            await lookout.look()
        except OperatorError as exc:  # a password file that is not there now
            master.why = f"{exc.what}: {exc.why}"
        self._owner.tell(self._side, master.why)
        believed = master.believed
        if believed is None or not believed.role.run_id:
            return
        now = (believed.announced, believed.config_epoch)
        # Not what `look` returns: another connection of this process may have asked first.
        before, self._seen = self._seen, now
        if before not in (None, now):
            self._changed_at = time.monotonic()
            self._lost = lost_since(self._sights, believed.role)
            self._owner.failed_over(self._side)
        replicas = set(believed.replicas)
        if replicas != self._replicas:
            self._noted = None  # with these replicas
        if not replicas <= self._replicas:
            self._owner.appeared(self._side)
        self._replicas = replicas
        if not master.why:
            role = believed.role
            self._sights.append(Sight(time.monotonic(), role.replid, role.offset))
        if self._noted != now and await self._note(believed):
            self._noted = now

    async def _note(self, believed: Believed) -> bool:
        at_ms = await self._owner.now_ms()
        if at_ms is None:
            return False
        ago_ms = int((time.monotonic() - self._changed_at) * 1000) if self._changed_at else 0
        since, lost = self._lost
        noticed_ms = at_ms - ago_ms
        failover = Failover(
            side=self._side,
            master=believed.announced,
            at_ms=noticed_ms,
            witnessed=bool(self._changed_at),
            safe_until_ms=None
            if since is None
            else noticed_ms - int((self._changed_at - since) * 1000),
            lost_bytes_min=lost,
        )
        topology = Topology(
            master=believed.announced,
            config_epoch=believed.config_epoch,
            run_id=believed.role.run_id,
            replicas=",".join(believed.replicas),
            at_ms=at_ms,
        )
        return await self._owner.note(self._side, topology, failover)

    async def _hear(self, sentinels: Sentinels, address: Address) -> None:
        """Wake the watch when a Sentinel says that the master changed."""
        while True:
            try:
                pubsub = sentinels.client(address).pubsub()
                async with pubsub:
                    await pubsub.subscribe("+switch-master")
                    while True:
                        said = await pubsub.get_message(
                            ignore_subscribe_messages=True, timeout=TOPOLOGY_LOOK_S
                        )
                        if said is not None:
                            self._woken.set()
            except (*_STORE_ERRORS, OperatorError) as exc:
                log.debug("Sentinel %s is not heard: %s", address.place, exc)
                await asyncio.sleep(TOPOLOGY_LOOK_S)
