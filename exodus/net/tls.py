"""The TLS settings of a connection that Exodus opens."""

from __future__ import annotations

import ssl

from exodus.errors import OperatorError
from exodus.plan.address import Place


def ssl_context(address: Place) -> ssl.SSLContext | None:
    """Return the TLS settings of one leg, or None for plain TCP.

    Raises:
        OperatorError: one of its files cannot be used.
    """
    if not address.tls:
        return None
    try:
        context = ssl.create_default_context(
            cafile=str(address.ca_file) if address.ca_file else None
        )
    except OSError as exc:
        raise _unusable(address, f"ca_file {address.ca_file}", exc) from exc
    try:
        if address.cert_file:
            context.load_cert_chain(
                str(address.cert_file), str(address.key_file) if address.key_file else None
            )
    except OSError as exc:
        raise _unusable(
            address, f"cert_file {address.cert_file}, key_file {address.key_file}", exc
        ) from exc
    return context


def _unusable(address: Place, fields: str, exc: OSError) -> OperatorError:
    return OperatorError(
        f"the TLS files of {address.url} cannot be used: {fields}",
        why=str(exc),
        next_step="correct the path in the migration file; it is read on the machine of each "
        "process, as its user, in PEM",
    )
