"""`/metrics` for Prometheus and `/health` for supervisors, on a thread of their own and on loopback unless told otherwise."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Labels = dict[str, str]
Sample = tuple[str, str, Labels, float]  # name as exodus_<part>_<what>_<unit>, help, labels, value; `_total` makes a counter


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


class StatusServer:
    """The two pages of one process. `health` answers (well, why)."""

    def __init__(self, host: str, port: int, samples: Callable[[], Iterable[Sample]], health: Callable[[], tuple[bool, str]]) -> None:
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

        self._server = ThreadingHTTPServer((host, port), Pages)
        self._thread = threading.Thread(target=self._server.serve_forever, name="status pages", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that was got."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=2)
