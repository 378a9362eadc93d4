"""The figures that show progress in an engine's `/metrics`."""

from __future__ import annotations

from memoria.vllm.client import progress_of

METRICS = """\
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.2e+06
vllm:generation_tokens_total{engine="0",model_name="m"} 17.0
vllm:request_success_total{engine="0",finished_reason="abort"} 4.0
"""


def test_only_what_the_core_moves_is_progress() -> None:
    assert progress_of(METRICS) == (
        ("kv_cache_usage_perc", "0.25"),
        ("prompt_tokens_total", "1.2e+06"),
        ("generation_tokens_total", "17.0"),
    )
    assert progress_of("python_gc_objects_collected_total 3\n") == ()
