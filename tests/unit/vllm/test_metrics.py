"""The figures in an engine's `/metrics`."""

from __future__ import annotations

from memoria.vllm.metrics import EngineLoad, load_of, progress_of

METRICS = b"""\
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.2e+06
vllm:generation_tokens_total{engine="0",model_name="m"} 17.0
vllm:request_success_total{engine="0",finished_reason="abort"} 4.0
"""


def test_only_what_the_core_moves_is_progress() -> None:
    assert progress_of(METRICS) == (
        (b"kv_cache_usage_perc", b"0.25"),
        (b"prompt_tokens_total", b"1.2e+06"),
        (b"generation_tokens_total", b"17.0"),
    )
    assert progress_of(b"python_gc_objects_collected_total 3\n") == ()


def test_the_cores_of_an_engine_are_summed_and_the_fullest_cache_counts() -> None:
    second = METRICS.replace(b'engine="0"', b'engine="1"').replace(b" 0.25", b" 0.75")
    assert load_of(METRICS + second) == EngineLoad(6, None, 0.75, 2.4e6, 34.0)
    assert load_of(METRICS).tokens("generate") == 17.0
    assert load_of(METRICS).tokens("pooling") == 1.2e6


def test_what_an_engine_does_not_report_is_not_known() -> None:
    assert load_of(b"") == EngineLoad(None, None, None, None, None)
