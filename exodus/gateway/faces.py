"""Opening the Sentinel face of a gateway process: which names it knows, and whom it names."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from exodus.control.route import Route
from exodus.errors import ExodusError, OperatorError
from exodus.gateway.options import GatewayOptions
from exodus.gateway.sentinel_face import Named, SentinelFace
from exodus.net.masters import master_of
from exodus.plan.address import Address, Service, split_place
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side


def services_of(plan: Plan, options: GatewayOptions) -> tuple[str, ...]:
    """Return the service names that clients may ask for: the given ones, or else the plan's.

    Raises:
        OperatorError: there are none.
    """
    places = [plan.address(side) for side in Side]
    found = options.sentinel_services or tuple(
        dict.fromkeys(place.service for place in places if isinstance(place, Service))
    )
    if not found:
        raise OperatorError(
            "--sentinel-listen: no service is known",
            why="no side of the plan is behind Sentinel, and clients ask by a service name",
            next_step="--sentinel-service NAME, as the applications name it",
        )
    return found


def authority_named(plan: Plan, side: Side) -> Named | None:
    """Return a side as applications reach it without a gateway; None where that is no one server,
    or not known.
    """
    place = plan.address(side)
    if isinstance(place, Address):
        return Named(place.host, place.port)
    if isinstance(place, Service) and (believed := master_of(place).believed) is not None:
        return Named(*split_place(believed.announced))
    return None


async def open_face(
    plan: Plan,
    options: GatewayOptions,
    port: int,
    tls: ssl.SSLContext | None,
    route: Callable[[], Route],
) -> SentinelFace | None:
    """Open the face, where the options ask for one. `port` and `tls` are the gateway's own.

    Raises:
        ExodusError: it cannot listen there.
        OperatorError: no service is known, or there is no certificate for TLS.
    """
    if not options.sentinel_listen:
        return None
    if options.sentinel_tls and tls is None:
        raise OperatorError(
            "--sentinel-tls: there is no certificate",
            why="the Sentinel face shows the gateway's own",
            next_step="--cert-file and --key-file, or no --sentinel-tls",
        )
    announced = (
        Named(*split_place(options.sentinel_announce)) if options.sentinel_announce else None
    )

    def name_master(reached: str) -> Named:
        now = route()
        away = authority_named(plan, now.authority) if now.redirect is not None else None
        return away or announced or Named(reached, port)

    face = SentinelFace(services_of(plan, options), name_master, lambda: route().epoch)
    try:
        await face.open(
            *split_place(options.sentinel_listen), tls if options.sentinel_tls else None
        )
    except OSError as exc:
        raise ExodusError(
            f"cannot answer like a Sentinel on {options.sentinel_listen}",
            why=str(exc),
            next_step="stop what uses the port, or choose another with --sentinel-listen",
        ) from exc
    return face
