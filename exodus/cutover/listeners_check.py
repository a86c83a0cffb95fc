"""Whether every gateway has a listener for each node of the sides that are clusters.

The map of listeners is published in the control store (`exodus/control/listener_map.py`). A gateway
says which version it uses, and 0 while it uses another map than the published one. A switch needs
one map everywhere: with two of them, clients of two gateways would be told other nodes at the same
address.
"""

from __future__ import annotations

from exodus.control import registry
from exodus.control.heartbeats import GatewayHeartbeat
from exodus.control.listener_map import read_listeners
from exodus.control.store import ControlStore
from exodus.cutover.context import Switch
from exodus.errors import CutoverAborted, DecisionRefused
from exodus.plan.address import Cluster
from exodus.plan.bounds import SWITCH_LISTENERS_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side


def clusters_of(plan: Plan) -> list[Side]:
    """Return the sides that are clusters."""
    return [side for side in Side if isinstance(plan.address(side), Cluster)]


def lacks(beat: GatewayHeartbeat, versions: dict[str, int]) -> str:
    """Return why a gateway's map of listeners does not do; empty where it does.

    Args:
        beat: its last heartbeat.
        versions: side → version of the published map.
    """
    if beat.facts.nodes_without_listener:
        return f"{beat.facts.nodes_without_listener} nodes have no listener"
    other = [
        side for side, version in versions.items() if beat.facts.listeners.get(side) != version
    ]
    return f"its map of the {' and the '.join(other)} is not the published one" if other else ""


async def check_listeners(store: ControlStore, plan: Plan) -> dict[str, int]:
    """Wait until every gateway uses the published maps; return their versions by side.

    Raises:
        DecisionRefused: one does not, or has too few listeners.
    """
    sides = clusters_of(plan)
    if not sides:
        return {}
    published = await read_listeners(store)
    versions = {str(side): published[side].version for side in sides if side in published}
    why = ""
    if len(versions) == len(sides):
        try:
            await registry.wait_for_gateways(
                store,
                lambda beat: not lacks(beat, versions),
                within_s=SWITCH_LISTENERS_S,
                otherwise="-",
            )
        except CutoverAborted as exc:
            said = [
                f"{beat.process}: {lack}"
                for beat in await registry.heartbeats(store, "gateway")
                if isinstance(beat, GatewayHeartbeat) and (lack := lacks(beat, versions))
            ]
            why = "; ".join(said) or exc.why
    else:
        why = "no gateway has published which listener stands for which node"
    if why:
        raise DecisionRefused(
            "not every gateway has a listener for each node",
            why=why,
            next_step="give gateway.listeners as many as the larger side has nodes; otherwise wait "
            "until `exodus status` shows one map",
        )
    return versions


async def check_same_listeners(switch: Switch) -> None:
    """Check that the maps have not changed since the switch began.

    Raises:
        CutoverAborted: a node appeared, or a listener stands for another one now.
    """
    if not switch.listeners:
        return
    published = await read_listeners(switch.store)
    now = {str(side): known.version for side, known in published.items()}
    moved = [side for side, version in switch.listeners.items() if now.get(side) != version]
    if moved:
        raise CutoverAborted(
            f"listeners of the {' and the '.join(moved)} stand for other nodes now",
            why="a node failed over, appeared, or lost its slots while the switch was under way",
            next_step="writes go on at the old side; wait until `exodus status` is quiet, retry",
        )
