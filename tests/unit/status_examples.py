"""Statuses of a daemon with two engines, healthy and otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memoria.admin.status.status import (
    DeviceStatus,
    EngineStatus,
    GuardStatus,
    PlannedTerm,
    StartSpan,
    Status,
)
from memoria.engine.events import Entry, EventKind
from memoria.text import GIB

AT = 1_700_000_000.0

EMBEDDING = EngineStatus(
    name="embedding",
    state="ready",
    since=AT - 11_520,
    phase=None,
    percent=None,
    detail="",
    hint=None,
    retry_at=None,
    restarts=0,
    pid=4121,
    port=8100,
    models=("embedder",),
    runner="pooling",
    device="gpu 0",
    fraction="0.30",
    budget_bytes=int(41.9 * GIB),
    used_bytes=int(40.8 * GIB),
    start_seconds=20.1,
    kv_tokens=1_048_576,
    concurrency=128.0,
    max_model_len=8192,
    kv_usage=0.02,
    running=1,
    waiting=0,
    in_flight=1,
    held=0,
    limit=64,
    requests=12_345,
    requests_per_second=42.0,
    tokens_per_second=None,
    ttft_p50=None,
    ttft_p95=None,
    total_p50=0.013,
    total_p95=0.024,
    last_exit=None,
    planned_kv_tokens=None,
    standby=None,
    standby_bytes=None,
)
GENERATION = replace(
    EMBEDDING,
    name="generation",
    runner="generate",
    pid=4122,
    port=8101,
    fraction="0.60",
    budget_bytes=int(83.8 * GIB),
    used_bytes=int(83.1 * GIB),
    kv_usage=0.91,
    running=128,
    waiting=17,
    requests_per_second=3.1,
    tokens_per_second=2311.0,
    ttft_p50=0.09,
    ttft_p95=0.18,
    total_p50=4.1,
    total_p95=12.5,
)
GPU = DeviceStatus("gpu 0", "NVIDIA H200", int(139.7 * GIB), int(132.7 * GIB), None, None)
HEALTHY = Status(
    version="0.1.0",
    pid=4000,
    url="http://127.0.0.1:8200",
    uptime=11_541.0,
    at=AT,
    devices=(
        DeviceStatus(
            "gpu 0", "NVIDIA H200", int(139.7 * GIB), int(132.7 * GIB), int(126.2 * GIB), int(13.0 * GIB)
        ),
    ),
    engines=(EMBEDDING, GENERATION),
)
STARTED = replace(
    HEALTHY,
    engines=(
        replace(
            EMBEDDING,
            start_spans=(
                StartSpan("fetch", 0.4, 5.1),
                StartSpan("import", 5.5, 9.0),
                StartSpan("gate", 14.5, 0.0),
                StartSpan("load", 14.5, 1.5),
                StartSpan("profile", 16.0, 1.0),
                StartSpan("graphs", 17.0, 2.5),
                StartSpan("warm-up", 19.5, 1.0),
            ),
        ),
        replace(
            GENERATION,
            start_spans=(
                StartSpan("import", 0.4, 10.0),
                StartSpan("gate", 10.4, 10.1),
                StartSpan("load", 20.5, 4.0),
                StartSpan("compile", 24.5, 9.0),
                StartSpan("profile", 33.5, 2.0),
                StartSpan("compile", 35.5, 1.0),
                StartSpan("graphs", 36.5, 5.0),
                StartSpan("warm-up", 41.5, 0.5),
            ),
        ),
    ),
    ready_after=42.3,
)
DEGRADED = replace(
    HEALTHY,
    devices=(GPU,),
    engines=(
        replace(EMBEDDING, held=3),
        replace(
            GENERATION,
            state="backoff",
            since=AT - 4,
            detail="exited 1: CUDA out of memory",
            hint="lower max_num_batched_tokens, or raise the fraction",
            retry_at=AT + 8,
            restarts=3,
            pid=None,
            used_bytes=None,
            kv_usage=None,
            running=None,
            waiting=None,
            requests_per_second=None,
            tokens_per_second=None,
            ttft_p50=None,
            ttft_p95=None,
            total_p50=None,
            total_p95=None,
        ),
    ),
)


def second(**facts: Any) -> Status:
    """The good hour, but for the second engine."""
    return replace(HEALTHY, engines=(EMBEDDING, replace(GENERATION, **facts)))


AWAY = {
    "used_bytes": None,
    "kv_usage": None,
    "running": None,
    "waiting": None,
    "requests_per_second": None,
    "tokens_per_second": None,
    "ttft_p50": None,
    "ttft_p95": None,
    "total_p50": None,
    "total_p95": None,
}
LOST = {**AWAY, "pid": None}

# Every state that a screen shows in a way of its own.
STATUSES = {
    "healthy": HEALTHY,
    "degraded": DEGRADED,
    "idle": second(
        running=0, waiting=0, requests_per_second=0.0, kv_usage=0.0, ttft_p95=None, total_p95=None
    ),
    "starting": second(**AWAY, state="starting", since=AT - 12, phase="loading weights", percent=62),
    "waiting": second(
        **AWAY,
        state="starting",
        since=AT - 40,
        phase="at the gate",
        detail="generation needs 83.8 GiB of GPU 0, and 41.0 GiB are free",
        hint="pid 9912 ana python train.py 47.0 GiB; stop pid 9912, or lower the fraction by 0.31",
    ),
    "failed": second(
        **LOST,
        state="failed",
        since=AT - 900,
        restarts=5,
        detail="exited 1: the model needs more memory for its KV cache than there is",
        hint="lower max_model_len to 4096, or raise gpu_memory_utilization to 0.64",
    ),
    "held": second(
        **LOST,
        state="held",
        since=AT - 71,
        restarts=1,
        detail="its memory has not come back; nothing starts on this device until it does",
    ),
    "suspect": second(state="suspect", since=AT - 3, detail="no progress for 120 s, 4 requests in flight"),
    "standby": second(standby="waiting", standby_bytes=int(1.2 * GIB)),
    "difference": second(
        kv_tokens=613_216,
        planned_kv_tokens=700_000,
        plan=(PlannedTerm("kv_tokens", 700_000, 613_216, -0.124, True),),
    ),
    "guard": replace(
        HEALTHY,
        guard=GuardStatus("generation", ("embedding",), target=0.05, gap_p95=0.0614, limit=4, lowered=3),
    ),
    "host": replace(
        HEALTHY,
        devices=(replace(GPU, label="host", name="AMD EPYC 9654 96-Core Processor"),),
        engines=tuple(replace(engine, device="host") for engine in (EMBEDDING, GENERATION)),
    ),
    "long-names": replace(
        HEALTHY,
        engines=(
            replace(EMBEDDING, name="embedding-multilingual-large", restarts=12),
            replace(
                GENERATION,
                name="generation-thinking-2507-fp8-long-context",
                restarts=104,
                running=1024,
                waiting=2048,
                requests_per_second=1234.5,
                ttft_p95=12.345,
            ),
        ),
    ),
    "hostile": second(
        **LOST,
        state="failed",
        detail="exited 1: \033]0;title\007\033[2Jwiped\r\nerror: forged line",
        hint="\033[31mred",
    ),
}
EVENTS = [
    Entry(AT - 60, 0.0, "memoria", EventKind.LISTENING, "http://127.0.0.1:8200", {}, 1).to_json(),
    Entry(
        AT - 4,
        0.0,
        "generation",
        EventKind.TRANSITION,
        "CUDA out of memory" * 9,
        {"state": "backoff", "cause": "retry"},
        2,
    ).to_json(),
]
