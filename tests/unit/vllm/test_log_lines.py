"""What lines of vLLM's log mean: their text, their time, and the progress of a start."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from memoria.vllm.log_lines import WATCHDOG, Observation, Phase, StartFigures, read_line, text_of, time_of

LOGS = Path(__file__).parents[2] / "data" / "logs"


def figures_of(*lines: str) -> StartFigures:
    figures = StartFigures()
    for line in lines:
        seen = read_line(line)
        assert seen is not None, line
        figures = figures.with_observation(seen)
    return figures


def test_a_real_start_on_a_cpu_is_followed_to_its_end() -> None:
    phases: list[Phase] = []
    figures = StartFigures()
    for line in (LOGS / "start_cpu.log").read_text().splitlines():
        if (seen := read_line(line)) is not None:
            figures = figures.with_observation(seen)
            if seen.phase not in phases[-1:]:
                phases.append(seen.phase)
    assert phases == [
        Phase.IMPORTED,
        Phase.CONFIGURED,
        Phase.ENGINE,
        Phase.LOADING,
        Phase.WARMING_UP,
        Phase.LISTENING,
    ]
    assert figures == StartFigures(
        max_model_len=512, kv_gib=0.06, kv_tokens=131072, concurrency=256.0, init_s=0.15
    )


@pytest.mark.parametrize(
    ("line", "phase", "percent"),
    [
        ("Resolved architecture: Qwen3ForCausalLM", Phase.CONFIGURED, None),
        ("Initializing a V1 LLM engine (v0.33.0) with config: model='x'", Phase.ENGINE, None),
        ("Starting to load model Qwen/Qwen3-4B...", Phase.LOADING, None),
        ("Loading safetensors checkpoint shards:   0% Completed | 0/3 [00:00<?, ?it/s]", Phase.LOADING, 0),
        ("Loading safetensors checkpoint shards:  67% Completed | 2/3 [00:01<00:00]", Phase.LOADING, 67),
        ("Loading pt checkpoint shards: 100% Completed | 3/3 [00:01<00:00]", Phase.LOADING, 100),
        ("Starting torch.compile", Phase.COMPILING, None),
        ("Loading model from scratch...", Phase.LOADING, None),
        ("[main] Compiling a graph for compile range", Phase.COMPILING, None),
        ("Directly load AOT compilation from path /cache/x", Phase.COMPILING, None),
        ("Profiling CUDA graph memory: PIECEWISE=51 (largest=512)", Phase.PROFILING, None),
        ("Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  43%|####", Phase.CAPTURING, 43),
        ("Capturing CUDA graphs (decode, FULL): 100%|####| 35/35", Phase.CAPTURING, 100),
        ("Capturing CUDA graphs (decode, FULL)", Phase.CAPTURING, None),
        ("INFO:     Application startup complete.", Phase.LISTENING, None),
    ],
)
def test_each_step_of_a_gpu_start_is_recognised(line: str, phase: Phase, percent: int | None) -> None:
    assert read_line(line) == Observation(phase, percent)


def test_a_gpu_start_reports_what_the_fraction_buys() -> None:
    assert figures_of(
        "Using max model len 32768",
        "Time spent downloading weights for Qwen/Qwen3-4B: 12.500000 seconds",
        "Model loading took 4.2 GiB memory and 3.250000 seconds",
        "[main] Compiling a graph for compile range (1, 8192) takes 5.72 s",
        "torch.compile took 18.05 s in total",
        "Available KV cache memory: 70.25 GiB",
        "GPU KV cache size: 613,216 tokens, Maximum concurrency for 8,192 tokens per request: 74.86x",
        "Graph capturing finished in 5 secs, took 0.61 GiB",
        "init engine (profile, create kv cache, warmup model) took 41.90 s (compilation: 18.05 s)",
    ) == StartFigures(
        max_model_len=8192,
        download_s=12.5,
        weights_gib=4.2,
        load_s=3.25,
        compile_s=18.05,
        compiling_s=5.72,
        kv_gib=70.25,
        kv_tokens=613216,
        concurrency=74.86,
        graphs_gib=0.61,
        graphs_s=5.0,
        init_s=41.9,
    )


def test_vllm_0_26_logs_the_kv_cache_in_two_lines() -> None:
    assert figures_of(
        "GPU KV cache size: 613,216 tokens", "Maximum concurrency for 8,192 tokens per request: 74.86x"
    ) == StartFigures(max_model_len=8192, kv_tokens=613216, concurrency=74.86)


def test_a_kv_cache_that_does_not_fit_is_negative() -> None:
    assert figures_of("Available KV cache memory: -3.21 GiB").kv_gib == -3.21


@pytest.mark.parametrize(
    "line",
    [
        "Initial free memory 138.9 GiB, reserved 24.0 GiB memory for KV Cache as specified",
        "Auto set (24.0/62.7) GiB for KV cache on node 0, with 31.4 GiB requested memory for the worker.",
        "Explicitly set (24.0/62.7) GiB for KV cache on node 0.",
    ],
)
def test_a_kv_cache_of_given_size_is_read_too(line: str) -> None:
    assert figures_of(line).kv_gib == 24.0


def test_later_figures_replace_earlier_ones() -> None:
    first, second = "Using max model len 4096", "Using max model len 2048"
    assert figures_of(first, second).max_model_len == 2048


@pytest.mark.parametrize(
    "prefix",
    [
        "(EngineCore pid=4501) INFO 11-23 14:22:28 [core.py:402] ",
        "\x1b[0;36m(EngineCore pid=4501)\x1b[0;0m \x1b[32mINFO\x1b[0m 11-23 14:22:28 [core.py:402] ",
        "(Worker pid=4501) ",
        "INFO 11-23 14:22:28 [core.py:402] ",
    ],
)
def test_process_names_levels_and_colours_are_looked_through(prefix: str) -> None:
    assert read_line(prefix + "Model loading took 4.2 GiB memory and 3.2 seconds") == Observation(
        Phase.PROFILING, None, StartFigures(weights_gib=4.2, load_s=3.2)
    )


@pytest.mark.parametrize(
    "line", ["", "Traceback (most recent call last):", "Avg prompt throughput: 1.0 tokens/s"]
)
def test_other_lines_say_nothing(line: str) -> None:
    assert read_line(line) is None


@pytest.mark.parametrize(
    "line",
    [
        "Capturing CUDA graphs" + "1" * 100_000,
        "Capturing CUDA graphs " * 5_000,
        "checkpoint shards: " + " " * 100_000,
        "KV cache size: " + "1," * 50_000,
        "\x1b[" * 50_000,
        "\x1b[" + "0;" * 50_000,
        "(" + "A " * 50_000,
        "init engine (" * 10_000,
    ],
    ids=lambda line: line[:20],
)
def test_a_hostile_line_does_not_hold_up_the_reader(line: str) -> None:
    """An expression that backtracks would hang here; what such a line says does not matter."""
    for _ in range(100):
        read_line(line)


# ------------------------------------------------------------------ text and time


@pytest.mark.parametrize(
    "escape",
    [
        "\x1b[1;31m",
        "\x1b[?25l",
        "\x1b[2J",
        "\x9b31m",
        "\x1b]0;a title\x07",
        "\x1b]8;;https://example.org\x1b\\",
        "\x1bPq#0;2;0;0;0\x1b\\",
        "\x1b(B",
        "\x1b7",
        "\x1bc",
        "\x1bM",
    ],
)
def test_terminal_escapes_of_every_kind_are_taken_out(escape: str) -> None:
    assert text_of(f"{escape}CUDA out {escape}of memory{escape}") == "CUDA out of memory"


@pytest.mark.parametrize("unfinished", ["\x1b", "\x1b[", "\x1b[31", "\x1b]0;title", "\x1b]0;ti\x1b"])
def test_an_escape_that_is_cut_off_does_no_harm(unfinished: str) -> None:
    assert "\x1b" not in text_of(f"text{unfinished}")
    assert text_of(f"text{unfinished}").startswith("text")


def test_vllms_prefix_is_taken_out() -> None:
    line = "\x1b[0;36m(EngineCore pid=4501)\x1b[0;0m INFO 11-23 14:22:28 [core.py:402] text"
    assert text_of(line) == "text"


NOW = datetime(2026, 1, 2, 12, 0)


def line(stamp: str) -> str:
    return f"(EngineCore pid=1) INFO {stamp} [core.py:402] text"


@pytest.mark.parametrize(
    ("text", "at"),
    [
        (line("01-02 11:59:58"), datetime(2026, 1, 2, 11, 59, 58)),
        (line("12-31 23:00:00"), datetime(2025, 12, 31, 23)),
        (line("02-30 23:00:00"), None),
        ("INFO:     Application startup complete.", None),
    ],
)
def test_a_stamp_without_a_year_is_never_in_the_future(text: str, at: datetime | None) -> None:
    assert time_of(text, NOW) == at


@pytest.mark.parametrize(
    ("line", "fires"),
    [
        (
            "(EngineCore pid=7) ERROR 11-23 14:22:28 [watchdog.py:81] Watchdog: loop stuck for 60 s",
            True,
        ),
        ("Engine core watchdog timeout after 60 s, dumping stacks", True),
        ("non-default args: {'watchdog_config': {'dump_dir': '/tmp'}}", False),
        ("INFO:     Application startup complete.", False),
    ],
)
def test_vllms_own_watchdog_is_read_in_the_log(line: str, fires: bool) -> None:
    assert bool(WATCHDOG.search(line)) is fires
