"""An OpenTelemetry collector of the tests' own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.integration.daemon import PATIENCE

SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}  # milliseconds from a span's end until it is sent


class Collector:
    """Takes what is posted to `/v1/traces`."""

    def __init__(self) -> None:
        self.got: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        got = self.got

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                got.put(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def spans(self, route: str) -> Iterator[tuple[dict[str, Any], Span]]:
        """As they come, with their resource's attributes; none but those of one route."""
        while True:
            message = ExportTraceServiceRequest.FromString(self.got.get(timeout=PATIENCE))
            for group in message.resource_spans:
                for span in (span for scope in group.scope_spans for span in scope.spans):
                    if attributes(span).get("http.route") == route:
                        yield attributes(group.resource), span

    def everything(self) -> Iterator[str]:
        """What has come so far, as text."""
        while not self.got.empty():
            yield str(ExportTraceServiceRequest.FromString(self.got.get()))

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def attributes(of: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in of.attributes}
