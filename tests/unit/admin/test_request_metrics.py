"""Completed requests, counted by outcome."""

from __future__ import annotations

from typing import Any

from memoria.admin.telemetry.exposition import Exposition
from memoria.admin.telemetry.metrics import BOUNDS, RequestMetrics
from memoria.proxy.exchange.record import CLIENT_GONE, RequestRecord
from tests.promtool import complaints

ANSWERED = RequestRecord(
    request_id="1",
    engine="generation",
    route="/v1/completions",
    status=200,
    response_bytes=1,
    first_byte_s=0.2,
    duration_s=2.0,
    complete=True,
    replays=0,
)


def counted(*changes: dict[str, Any]) -> dict[str, float]:
    metrics = RequestMetrics(["embedding", "generation"])
    for change in changes:
        metrics.count_request(ANSWERED._replace(**change))
    text = Exposition(metrics.families()).render().decode()
    assert complaints(text) == []
    return {
        name: float(value)
        for line in text.splitlines()
        if not line.startswith("#")
        for name, _, value in [line.rpartition(" ")]
    }


def test_requests_are_counted_by_engine_route_and_code() -> None:
    found = counted({}, {}, {"status": 400}, {"route": "/v1/chat/completions"})
    ours = 'memoria_requests_total{engine="generation",route='
    assert {name: value for name, value in found.items() if name.startswith("memoria_requests_total")} == {
        f'{ours}"/v1/completions",code="200"}}': 2,
        f'{ours}"/v1/completions",code="400"}}': 1,
        f'{ours}"/v1/chat/completions",code="200"}}': 1,
    }


def test_before_the_first_request_there_are_zeros() -> None:
    assert counted() == {
        f'memoria_requests_{what}_total{{engine="{engine}"}}': 0
        for what in ("aborted", "replayed")
        for engine in ("embedding", "generation")
    }


def test_an_error_of_memorias_own_is_a_refusal_and_an_engines_is_not() -> None:
    found = counted(
        {"status": 503, "first_byte_s": None},
        {"status": 503, "first_byte_s": None, "route": "/v1/responses"},
        {"status": 503},
        {"status": 401, "first_byte_s": None, "engine": None, "route": None},
        {"status": CLIENT_GONE, "first_byte_s": None, "complete": False},
    )
    refused = {name: value for name, value in found.items() if "refused" in name}
    assert refused == {
        'memoria_requests_refused_total{engine="generation",code="503"}': 2,
        'memoria_requests_refused_total{engine="",code="401"}': 1,
    }
    assert found['memoria_requests_aborted_total{engine="generation"}'] == 1


def test_repeated_requests_are_counted() -> None:
    found = counted({"replays": 1}, {"replays": 1, "engine": "embedding"}, {"replays": 0})
    assert found['memoria_requests_replayed_total{engine="generation"}'] == 1
    assert found['memoria_requests_replayed_total{engine="embedding"}'] == 1


def test_times_fall_into_the_buckets_that_end_at_them_or_above() -> None:
    found = counted({"duration_s": 0.5}, {"duration_s": 0.500001}, {"duration_s": 1000.0})
    name = 'memoria_request_duration_seconds{}{{engine="generation",route="/v1/completions"{}}}'
    at = {bound: found[name.format("_bucket", f',le="{bound:g}"')] for bound in BOUNDS}
    assert (at[0.25], at[0.5], at[1.0], at[300.0]) == (0, 1, 2, 2)
    assert found[name.format("_bucket", ',le="+Inf"')] == found[name.format("_count", "")] == 3
    assert found[name.format("_sum", "")] == 1001.000001


def test_only_what_an_engine_answered_has_a_time() -> None:
    found = counted({"status": 429, "first_byte_s": None}, {"status": CLIENT_GONE, "first_byte_s": None})
    assert not [name for name in found if "seconds" in name]
