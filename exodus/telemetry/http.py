"""`/metrics` for Prometheus and `/health` for supervisors, on own threads, on loopback by default.

They ask for no login, so a client's cost is bounded: a connection lasts at most
`STATUS_SECONDS_MAX`. If all threads are taken, the oldest client makes room for the newest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from exodus.plan.bounds import STATUS_CLIENTS_MAX, STATUS_SECONDS_MAX
from exodus.telemetry.sample import Sample

log = logging.getLogger(__name__)


class _Samples(Collector):
    def __init__(self, samples: Callable[[], Iterable[Sample]]) -> None:
        self._samples = samples

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for name, text, labels, value in self._samples():
            family = families.get(name)
            if family is None:
                kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                family = families[name] = kind(name, text, labels=sorted(labels))
            family.add_metric([labels[key] for key in sorted(labels)], value)  # type: ignore[attr-defined]
        return families.values()


class _Bounded(ThreadingHTTPServer):
    """At most so many clients at a time, each for so long."""

    daemon_threads = True
    # That wait to be accepted; beyond, a client's SYN is dropped and comes again after a second
    request_queue_size = 128
    block_on_close = False

    def __init__(self, address: tuple[str, int], pages: type[BaseHTTPRequestHandler]) -> None:
        self._turn = threading.Lock()
        self._clients: dict[socket.socket, float] = {}  # since when, oldest first
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, pages)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._turn:
            if len(self._clients) >= STATUS_CLIENTS_MAX:
                self._cut(next(iter(self._clients)))
            self._clients[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._turn:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut off who takes too long; called twice a second."""
        before = time.monotonic() - STATUS_SECONDS_MAX
        with self._turn:
            for request in [each for each, since in self._clients.items() if since < before]:
                self._cut(request)

    def _cut(self, request: socket.socket) -> None:
        """Cut a connection, so that its thread ends."""
        del self._clients[request]
        with contextlib.suppress(OSError):  # it was gone already
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that was cut off or went away."""
        del request
        failure = sys.exc_info()[1]
        if not isinstance(failure, OSError):
            log.error("a status page failed for %s", client_address, exc_info=failure)


class StatusServer:
    """The two pages of one process. `health` answers (well, why)."""

    def __init__(
        self,
        host: str,
        port: int,
        samples: Callable[[], Iterable[Sample]],
        health: Callable[[], tuple[bool, str]],
    ) -> None:
        registry = CollectorRegistry()
        registry.register(_Samples(samples))

        class Pages(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, "text/plain; version=0.0.4", generate_latest(registry))
                elif self.path == "/health":
                    well, why = health()
                    body = json.dumps({"well": well, "why": why}).encode()
                    self._answer(200 if well else 503, "application/json", body)
                else:
                    self._answer(404, "text/plain", b"/metrics or /health\n")

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Requests for metrics are not worth a line each."""

        self._server = _Bounded((host, port), Pages)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="status pages", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """Return the port that the server listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=2)
