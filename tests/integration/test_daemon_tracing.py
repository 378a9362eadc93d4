"""Spans of requests, sent to a collector of the test's own by OpenTelemetry's SDK."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.integration.daemon import PATIENCE, Box
from tests.integration.otlp_collector import SOON, Collector, attributes

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT = b'{"model":"writer","prompt":"a secret","max_tokens":4}'


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def complete(port: int, path: str = "/v1/completions", **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", path, PROMPT, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def test_a_request_is_a_span_of_its_client_s_trace(box: Box, collector: Collector) -> None:
    box.configure()
    daemon = box.start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **SOON)
    daemon.until_ready()
    traced = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    assert complete(box.ports.main, **traced) == 200
    assert complete(box.ports.main) == 200  # without a trace: it begins one
    spans = collector.spans("/v1/completions")
    resource, span = next(spans)
    assert resource["service.name"] == "memoria"
    assert span.name == "POST /v1/completions"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    found = attributes(span)
    assert found["http.request.method"] == "POST"
    assert found["http.response.status_code"] == 200
    assert found["memoria.engine"] == "generation"
    assert found["memoria.request_id"] == "mine"
    assert found["gen_ai.usage.output_tokens"] == 4
    assert (
        0 < found["memoria.first_byte_seconds"] <= (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    )
    assert "secret" not in str(span)
    _, second = next(spans)
    assert second.parent_span_id == b""
    assert second.trace_id.hex() != TRACE
    assert daemon.stop() == 0


def test_an_error_is_one_and_the_last_spans_are_sent_at_the_end(box: Box, collector: Collector) -> None:
    box.configure()
    daemon = box.start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="1000000")
    daemon.until_ready()
    daemon.ask("POST", "/v1/completions", {"model": "writer", "prompt": "a", "max_tokens": 4})
    assert daemon.stop() == 0
    _, span = next(collector.spans("/v1/completions"))
    assert span.status.code == Status.STATUS_CODE_UNSET


@pytest.mark.parametrize(("lost", "code"), [(True, "502"), (False, "503")])
def test_what_memoria_or_an_engine_failed_at_is_an_error(
    box: Box, collector: Collector, lost: bool, code: str
) -> None:
    box.configure(top="hold: {seconds: 0}")
    if lost:
        box.vllm.set_faults("generation", vanish_after_tokens=2)
    daemon = box.start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **SOON)
    daemon.until_ready()
    if not lost:
        assert box.call("stop", "generation").returncode == 0
    assert str(complete(box.ports.main)) == code
    _, span = next(collector.spans("/v1/completions"))
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == code
    assert daemon.stop() == 0


def test_what_a_client_got_wrong_is_no_error(box: Box, collector: Collector) -> None:
    box.configure()
    daemon = box.start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **SOON)
    daemon.until_ready()
    unknown = {"model": "nobody", "prompt": "a"}
    assert daemon.ask("POST", "/v1/completions", unknown).status == 404
    _, span = next(collector.spans("/v1/completions"))
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert daemon.stop() == 0


def test_a_collector_that_is_gone_holds_nothing_up(box: Box, collector: Collector) -> None:
    collector.close()
    box.configure()
    daemon = box.start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **SOON)
    daemon.until_ready()
    assert complete(box.ports.main) == 200
    assert daemon.stop() == 0


def test_an_endpoint_without_the_sdk_is_found_before_anything_starts(box: Box, tmp_path: Path) -> None:
    box.configure()
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry/__init__.py").write_text("raise ImportError('not here')\n")
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    done = box.call("run", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318", PYTHONPATH=path)
    assert done.returncode == 69
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set, and OpenTelemetry is not installed" in done.stderr
    assert "pip install 'memoria[otel]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_where_no_endpoint_is_set_nothing_of_it_is_loaded(box: Box, tmp_path: Path) -> None:
    """Were it imported, the daemon would not start."""
    box.configure()
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry/__init__.py").write_text("raise SystemExit('imported')\n")
    daemon = box.start(PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}")
    daemon.until_ready()
    assert complete(box.ports.main) == 200
    assert daemon.stop() == 0
