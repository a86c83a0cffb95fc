"""TLS contexts of the gateway: towards both sides, and towards the applications."""

from __future__ import annotations

import logging
import ssl

from exodus.errors import OperatorError
from exodus.gateway.options import GatewayOptions
from exodus.net.tls import ssl_context
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side

log = logging.getLogger(__name__)


class TlsContexts:
    """The contexts in force. A reload applies to connections made from then on."""

    def __init__(self, plan: Plan, options: GatewayOptions) -> None:
        self.plan = plan
        self._options = options
        self._sides = self._read_sides()
        self.listener = listener_tls(options)
        self.reload_failures = 0

    def _read_sides(self) -> dict[Side, ssl.SSLContext | None]:
        return {side: ssl_context(self.plan.address(side)) for side in Side}

    def side(self, side: Side) -> ssl.SSLContext | None:
        """Return the context towards a side; None: no TLS."""
        return self._sides[side]

    def reload(self) -> None:
        """Read certificates and keys again. If that fails, the old ones stay in force."""
        options = self._options
        try:
            fresh = self._read_sides()
            listener = listener_tls(options)  # reads all files before the one in use is changed
            if self.listener is not None and listener is not None and options.cert_file is not None:
                self.listener.load_cert_chain(options.cert_file, options.key_file)
                if options.client_ca_file is not None:
                    self.listener.load_verify_locations(options.client_ca_file)
        except (OSError, OperatorError) as exc:
            self.reload_failures += 1
            log.error("certificates could not be read again, the old ones stay in force: %s", exc)
            return
        self._sides = fresh
        log.info("certificates were read again")


def listener_tls(options: GatewayOptions) -> ssl.SSLContext | None:
    """Return the context towards the applications, or None."""
    if options.cert_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(options.cert_file, options.key_file)
    if options.client_ca_file is not None:
        context.load_verify_locations(options.client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
