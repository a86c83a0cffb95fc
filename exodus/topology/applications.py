"""Connections as an application makes them: through a gateway, or to a side without Exodus's own
login.
"""

from __future__ import annotations

from exodus.errors import OperatorError, SourceError, TargetError
from exodus.net.leg import Leg
from exodus.net.routed import RoutedLeg
from exodus.plan.address import Address, Cluster, ServerLogin
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.topology.endpoint import Endpoint


async def connect_as_application(
    plan: Plan, authority: Side, *, name: str, key: bytes | None = None
) -> Leg:
    """Through a gateway: without a login where that suffices, as Exodus's own may be another on the
    other side.

    Args:
        plan: says where the gateway listens.
        authority: the side that answers.
        name: for CLIENT SETNAME.
        key: that is asked for. Where the authority is a cluster, the connections follow its
            listeners, and the one of this key's node is made.

    Raises:
        OperatorError: the gateway does not answer, or the authority refuses Exodus's own login
            there.
    """
    nobody = plan.through_gateway(None)
    cluster = key is not None and isinstance(plan.address(authority), Cluster)

    async def connect(gateway: Address) -> Leg:
        if not cluster or key is None:
            return await Leg.connect(gateway, authority, name=name)
        async with await Leg.connect(gateway, authority, name=name):
            pass  # the login is not refused; cluster clients would not tell it apart
        login = {field: getattr(gateway, field) for field in ServerLogin.model_fields}
        leg = RoutedLeg(Cluster(cluster=(gateway.place,), **login), authority, name)
        try:
            await leg.look()
            await leg.of(key)
        except BaseException:
            await leg.close()
            raise
        return leg

    try:
        try:
            return await connect(nobody)
        except OperatorError:
            # The gateway lets the authority check it.
            return await connect(plan.through_gateway(authority))
    except (SourceError, TargetError) as exc:
        raise OperatorError(
            f"gateway: nothing answers at {nobody.url}",
            why=exc.why,
            next_step="correct gateway.host, gateway.port, gateway.tls or gateway.ca_file of the "
            "migration file, and look whether a gateway runs",
        ) from exc


async def takes_nobody(plan: Plan, side: Side) -> bool:
    """Return whether a side lets a client in that shows no login; of a cluster, every master.

    Raises:
        SourceError, TargetError: no node of a cluster says who has which slots.
    """
    none = {"username": None, "password": None, "password_env": None, "password_file": None}
    endpoint = Endpoint(side, plan.address(side))
    nodes = [node.place for node in await endpoint.each_node()]
    try:
        for node in nodes:
            async with await Leg.connect(node.model_copy(update=none), side, name="exodus-login"):
                pass
    except (OperatorError, SourceError, TargetError):  # one in protected mode ends the connection
        return False
    return True
