"""The one value that everything a person sees is made of."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from memoria.admin.status.status import DeviceStatus, EngineStatus, GuardStatus, Status

ENGINE = EngineStatus(
    name="generation",
    state="ready",
    since=1_700_000_000.25,
    phase=None,
    percent=None,
    detail="",
    hint=None,
    retry_at=None,
    restarts=0,
    pid=4121,
    port=8101,
    models=("Qwen/Qwen3-4B", "small"),
    runner="generate",
    device="gpu 0",
    fraction="0.60",
    budget_bytes=90_000_000_000,
    used_bytes=89_000_000_000,
    start_seconds=41.0,
    kv_tokens=613_216,
    planned_kv_tokens=600_000,
    concurrency=74.9,
    max_model_len=8192,
    kv_usage=0.02,
    running=1,
    waiting=0,
    in_flight=1,
    held=0,
    limit=64,
    requests=42,
    requests_per_second=None,
    tokens_per_second=None,
    ttft_p50=None,
    ttft_p95=None,
    total_p50=None,
    total_p95=None,
    last_exit=None,
    standby=None,
    standby_bytes=None,
)
STATUS = Status(
    version="0.1.0",
    pid=4000,
    url="http://127.0.0.1:8200",
    uptime=12.5,
    at=1_700_000_012.75,
    devices=(DeviceStatus("gpu 0", "NVIDIA H200", 150_000_000_000, 142_500_000_000, None, None),),
    engines=(ENGINE, replace(ENGINE, name="embedding")),
)


def test_a_status_survives_its_way_through_json() -> None:
    assert Status.from_json(json.loads(json.dumps(STATUS.to_json()))) == STATUS


def test_the_guard_survives_it_too() -> None:
    guarded = replace(STATUS, guard=GuardStatus("generation", ("embedding",), 0.05, 0.061, 4, 3))
    assert Status.from_json(json.loads(json.dumps(guarded.to_json()))) == guarded


def test_one_engine_that_is_not_ready_makes_the_whole_degraded() -> None:
    degraded = replace(STATUS, engines=(ENGINE, replace(ENGINE, state="backoff")))
    assert (STATUS.healthy, STATUS.to_json()["status"]) == (True, "healthy")
    assert (degraded.healthy, degraded.to_json()["status"]) == (False, "degraded")


def test_what_is_not_known_is_null() -> None:
    assert STATUS.to_json()["devices"][0]["used_bytes"] is None


@pytest.mark.parametrize("change", [{"engines": [{"name": "generation"}]}, {"pid": "4000"}, {"guard": {}}])
def test_what_another_version_wrote_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"missing required field|Expected `int`"):
        Status.from_json(STATUS.to_json() | change)


def test_a_field_of_a_newer_version_is_ignored() -> None:
    assert Status.from_json(STATUS.to_json() | {"new": 1}) == STATUS
