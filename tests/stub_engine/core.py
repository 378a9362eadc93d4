"""The engine core: a process of its own that ignores SIGTERM, passes the gate, loads, and makes tokens.

Like vLLM's it does not notice when its API server is gone: it lives on, holding the memory.
"""

from __future__ import annotations

import heapq
import os
import signal
import time
from multiprocessing.connection import Connection

from tests.stub_engine.device import claim, take_memory
from tests.stub_engine.events import record
from tests.stub_engine.faults import Faults, wait_for
from tests.stub_engine.log import Log
from tests.stub_engine.plugins import load_general_plugins
from tests.stub_mps import connect


def run_engine_core(
    pipe: Connection, model: str, max_model_len: int, fraction: float | None, faults: Faults
) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    record("core spawned")
    load_general_plugins(faults)
    record("through the gate")
    _load(Log("EngineCore", faults), model, max_model_len, fraction, faults)
    record("loaded")
    try:
        pipe.send("ready")
        _make_tokens(pipe)
    except (EOFError, OSError):
        while True:
            signal.pause()


def _load(log: Log, model: str, max_model_len: int, fraction: float | None, faults: Faults) -> None:
    log.reach("engine")
    log.info(f"Initializing a V1 LLM engine (v0.32.0) with config: model='{model}'", place="core.py:133")
    connect()
    if faults.gpu_bytes:
        take_memory(os.getpid(), faults.gpu_bytes, stays=faults.memory_stays)
    if faults.context_bytes is not None:
        claim(os.getpid(), 0.92 if fraction is None else fraction, faults.context_bytes)
    log.reach("loading")
    log.info(f"Starting to load model {model}...", place="gpu_model_runner.py:5040")
    wait_for(faults.load_until)
    for shard in range(1, 3):
        time.sleep(faults.load_seconds / 2)
        print(
            f"\rLoading safetensors checkpoint shards: {shard * 50}% Completed | {shard}/2",
            end="",
            flush=True,
        )
    print(flush=True)
    log.info("Model loading took 1.19 GiB memory and 0.250000 seconds", place="gpu_model_runner.py:5150")
    log.reach("warming_up")
    log.info("Available KV cache memory: 4.00 GiB", place="gpu_worker.py:760")
    log.info(
        f"GPU KV cache size: 37,440 tokens, Maximum concurrency for {max_model_len:,} tokens per request: "
        f"{37440 / max_model_len:.2f}x",
        place="kv_cache_utils.py:2327",
    )
    log.info("Graph capturing finished in 1 secs, took 0.50 GiB", place="gpu_model_runner.py:6582")
    log.info("init engine (profile, create kv cache, warmup model) took 0.15 s", place="core.py:402")


def _make_tokens(pipe: Connection) -> None:
    """Requests are ("generate", key, chunks, tokens, seconds for each) and ("abort", key); each chunk of the
    prompt goes back as (key, False), each token as (key, True). Raises EOFError or OSError when the API
    server is gone."""
    due: list[tuple[float, int, int, int, float]] = []  # when, key, chunks and tokens left, seconds for each
    while True:
        if pipe.poll(max(0.0, due[0][0] - time.monotonic()) if due else None):
            match pipe.recv():
                case ("generate", key, chunks, tokens, seconds):
                    heapq.heappush(due, (time.monotonic() + seconds, key, chunks, tokens, seconds))
                case ("abort", aborted):
                    due = [job for job in due if job[1] != aborted]
                    heapq.heapify(due)
        elif due:
            when, key, chunks, left, seconds = heapq.heappop(due)
            pipe.send((key, not chunks))
            if chunks:
                heapq.heappush(due, (when + seconds, key, chunks - 1, left, seconds))
            elif left > 1:
                heapq.heappush(due, (when + seconds, key, 0, left - 1, seconds))
