"""A span for each completed request, sent by OpenTelemetry's SDK where its environment variables are set.

Sources: OpenTelemetry's environment variables of the OTLP exporter, its semantic conventions for HTTP servers
and for generative AI. The SDK's own thread sends; nothing here waits for the collector.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from memoria import __version__
from memoria.admin.telemetry.requests import tokens
from memoria.aio import in_daemon_thread
from memoria.errors import UnavailableError
from memoria.proxy.exchange.record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FLUSH_TIMEOUT = 5.0  # seconds for unsent spans when the daemon ends


def open_tracing(environ: Mapping[str, str]) -> Tracing | None:
    """None where no endpoint is set; OpenTelemetry is not imported then. Raises `UnavailableError` where one
    is set and OpenTelemetry is not installed."""
    endpoints = [name for name in ENDPOINTS if environ.get(name)]
    if not endpoints or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise UnavailableError(
            f"{endpoints[0]} is set, and OpenTelemetry is not installed",
            hint="pip install 'memoria[otel]' to send a span for each request, or unset the variable",
        ) from error
    service = {
        "service.name": environ.get("OTEL_SERVICE_NAME") or "memoria",
        "service.version": __version__,
    }
    provider = TracerProvider(resource=Resource.create(service), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Tracing:
    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
            TraceContextTextMapPropagator,
        )

        self._provider = provider
        self._tracer = provider.get_tracer("memoria", __version__)
        self._extract = TraceContextTextMapPropagator().extract
        self._kind = trace.SpanKind.SERVER
        self._failed = trace.Status(trace.StatusCode.ERROR)

    def add_span(self, record: RequestRecord) -> None:
        """The parent is the client's span (`traceparent`); without one the span begins a trace."""
        end = time.time_ns()
        carrier = {} if record.traceparent is None else {"traceparent": record.traceparent.decode("latin-1")}
        span = self._tracer.start_span(
            f"{record.method} {record.route}" if record.route else record.method,
            context=self._extract(carrier),
            kind=self._kind,
            attributes=attributes_of(record),
            start_time=end - int(record.duration_s * 1e9),
        )
        if record.status >= 500:
            span.set_status(self._failed)
        span.end(end)

    async def close(self) -> None:
        """Send the remaining spans, waiting up to `FLUSH_TIMEOUT`."""
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await in_daemon_thread(self._provider.shutdown)
        except TimeoutError:
            logger.warning("the last spans were not sent: the collector does not answer")


def attributes_of(record: RequestRecord) -> dict[str, AttributeValue]:
    """Attributes of a span, without those not known."""
    prompt, completion = tokens(record.ends)
    known: dict[str, AttributeValue | None] = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "http.request.body.size": record.request_bytes,
        "http.response.body.size": record.response_bytes,
        "client.address": record.client or None,
        "error.type": str(record.status) if record.status >= 500 else None,
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": completion,
        "memoria.engine": record.engine,
        "memoria.key": record.key,
        "memoria.request_id": record.request_id,
        "memoria.first_byte_seconds": record.first_byte_s,
        "memoria.aborted": not record.complete,
        "memoria.replays": record.replays,
    }
    return {name: value for name, value in known.items() if value is not None}
