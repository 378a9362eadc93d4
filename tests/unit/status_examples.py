"""Statuses to draw: what a daemon with two engines tells in a good and in a bad hour."""

from __future__ import annotations

from dataclasses import replace

from memoria.admin.status import DeviceStatus, EngineStatus, Status
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
    ttft_p50=0.012,
    ttft_p95=0.021,
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
    ttft_p95=0.18,
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
            ttft_p95=None,
        ),
    ),
)
EVENTS = [
    {
        "number": 1,
        "at": AT - 60,
        "subject": "memoria",
        "what": "listening",
        "detail": "http://127.0.0.1:8200",
    },
    {
        "number": 2,
        "at": AT - 4,
        "subject": "generation",
        "what": "backoff",
        "detail": "CUDA out of memory" * 9,
    },
]
