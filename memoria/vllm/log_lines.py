"""What a line of vLLM's log means: its text, its time, and the progress of a start.

Texts are those of vLLM 0.32 and 0.33; the files named in comments are vLLM's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

LONGEST = 4096  # characters; the rest of a line is ignored

# ECMA-48: control sequences (colours), strings such as a window's title or a link, and all shorter ones
_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]|$)|\x9b[0-?]*[ -/]*[@-~]"
)

# `(EngineCore pid=4501) INFO 11-23 14:22:28 [core.py:402] text`; a message of several lines repeats it
# (vllm/logging_utils, NewLineFormatter). Lines of tqdm, tracebacks and uvicorn have part of it, or nothing.
_PREFIX = re.compile(
    r"(?:\([A-Za-z][\w ]{0,60} pid=\d{1,10}\) ?)?"
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]{1,80}\] ?)?"
)
# `INFO 11-23 14:22:28 [core.py:402]`: no year, local time (vllm/logging_utils)
_STAMP = re.compile(r"\b(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) (\d\d)-(\d\d) (\d\d):(\d\d):(\d\d) \[")

# vLLM 0.33 has a watchdog of its own (`watchdog_config`). A match only prompts a closer look, so a line that
# merely mentions it does no harm.
WATCHDOG = re.compile(r"watchdog\b.{0,200}?\b(?:timed out|timeout|stuck|stalled|hang|hung|no progress)", re.I)


def text_of(line: str) -> str:
    """The line without terminal escapes and without vLLM's prefix of process, level, time and place. Takes
    time linear in the line's length, whatever its content."""
    line = _ESCAPE.sub("", line[:LONGEST])
    match = _PREFIX.match(line)
    return line[match.end() :] if match else line


def time_of(line: str, now: datetime) -> datetime | None:
    """When the line was written, in the latest year that is not in the future; None where it has no time."""
    match = _STAMP.search(line[:200])
    if match is None:
        return None
    try:
        at = datetime(now.year, *(int(part) for part in match.groups()))  # type: ignore[arg-type]
    except ValueError:
        return None
    return at if at <= now + timedelta(days=1) else at.replace(year=now.year - 1)


# ---------------------------------------------------------------------- progress of a start


class Phase(StrEnum):
    """In the order of a start; the value is for people. Compiling and profiling may alternate."""

    SPAWNED = "spawned"
    IMPORTED = "reading the model's configuration"
    CONFIGURED = "starting the engine core"
    AT_GATE = "at the GPU gate"  # reported by the passenger, not in the log
    ENGINE = "opening the device"
    LOADING = "loading weights"
    COMPILING = "compiling"
    PROFILING = "profiling memory"
    CAPTURING = "capturing graphs"
    WARMING_UP = "warming up"
    LISTENING = "listening"


@dataclass(frozen=True, slots=True)
class StartFigures:
    """Figures that vLLM logs while it starts; None until logged. Sizes in GiB, times in seconds.

    `kv_gib` is negative when the fraction does not even hold the weights. `concurrency` is the number of
    requests of `max_model_len` tokens that the KV cache holds at once. `compiling_s` is logged where the
    compile cache lacked a graph.
    """

    max_model_len: int | None = None
    download_s: float | None = None
    weights_gib: float | None = None
    load_s: float | None = None
    compile_s: float | None = None
    compiling_s: float | None = None
    kv_gib: float | None = None
    kv_tokens: int | None = None
    concurrency: float | None = None
    graphs_gib: float | None = None
    graphs_s: float | None = None
    init_s: float | None = None

    def with_observation(self, seen: Observation) -> StartFigures:
        """These figures, with those of `seen` in place of earlier ones."""
        later = {name: value for name in _FIGURES if (value := getattr(seen.figures, name)) is not None}
        return replace(self, **later)


_FIGURES: dict[str, Callable[[str], Any]] = {
    figure.name: int if figure.type == "int | None" else float for figure in fields(StartFigures)
}


@dataclass(frozen=True, slots=True)
class Observation:
    """What one line reports. `percent` is of the phase."""

    phase: Phase
    percent: int | None = None
    figures: StartFigures = field(default_factory=StartFigures)


@dataclass(frozen=True, slots=True)
class _Sign:
    """A text in a line, and what may follow it: named groups are figures, `percent` is the progress.

    The expression is matched at one position only and its repetitions are bounded, so no line makes it slow.
    """

    text: str
    phase: Phase
    then: re.Pattern[str]


def _sign(text: str, phase: Phase, then: str = "") -> _Sign:
    return _Sign(text, phase, re.compile(then))


_NUMBER = r"-?\d{1,12}(?:\.\d{1,12})?"
_COUNT = r"\d[\d,]{0,20}"
_CONCURRENCY = rf"(?P<max_model_len>{_COUNT}) tokens per request: (?P<concurrency>{_NUMBER})x"

# The first sign in a line counts.
_SIGNS = (
    _sign("non-default args: ", Phase.IMPORTED),  # entrypoints/serve/utils/api_utils.py
    _sign("Resolved architecture: ", Phase.CONFIGURED),  # config/model.py
    _sign("Using max model len ", Phase.CONFIGURED, rf"(?P<max_model_len>{_COUNT})"),
    _sign("Initializing a V1 LLM engine ", Phase.ENGINE),  # v1/engine/core.py, after the plugins were called
    _sign("Starting to load model ", Phase.LOADING),  # v1/worker/*model_runner.py
    _sign("Loading model from scratch", Phase.LOADING),  # v1/worker/gpu/model_runner.py, the V2 runner
    _sign("Time spent downloading weights for ", Phase.LOADING, rf"\S{{1,400}}: (?P<download_s>{_NUMBER}) s"),
    _sign("checkpoint shards: ", Phase.LOADING, r" {0,4}(?P<percent>\d{1,3})% Completed"),
    _sign("Loading weights took ", Phase.LOADING, rf"(?P<load_s>{_NUMBER}) s"),
    _sign(
        "Model loading took ",
        Phase.PROFILING,
        rf"(?P<weights_gib>{_NUMBER}) GiB memory and (?P<load_s>{_NUMBER}) s",
    ),
    _sign("Starting torch.compile", Phase.COMPILING),  # compilation/monitor.py
    _sign("Warming up model for the compilation", Phase.COMPILING),  # v1/worker/cpu_model_runner.py
    _sign(  # compilation/backends.py
        "Compiling a graph for compile range",
        Phase.COMPILING,
        rf"[^a-z]{{1,60}}takes (?P<compiling_s>{_NUMBER}) s",
    ),
    _sign("Directly load AOT compilation", Phase.COMPILING),
    _sign("Directly load the compiled graph", Phase.COMPILING),
    _sign("torch.compile took ", Phase.PROFILING, rf"(?P<compile_s>{_NUMBER}) s"),
    _sign("Profiling CUDA graph memory: ", Phase.PROFILING),  # v1/worker/gpu_model_runner.py
    _sign("Available KV cache memory: ", Phase.WARMING_UP, rf"(?P<kv_gib>{_NUMBER}) GiB"),
    _sign("Explicitly set (", Phase.WARMING_UP, rf"(?P<kv_gib>{_NUMBER})/"),  # v1/worker/cpu_worker.py
    _sign("Auto set (", Phase.WARMING_UP, rf"(?P<kv_gib>{_NUMBER})/"),
    _sign(
        "GiB, reserved ",  # v1/worker/gpu_worker.py, with kv_cache_memory_bytes
        Phase.WARMING_UP,
        rf"(?P<kv_gib>{_NUMBER}) GiB memory for KV Cache",
    ),
    _sign(
        " KV cache size: ",  # v1/core/kv_cache_utils.py
        Phase.WARMING_UP,
        rf"(?P<kv_tokens>{_COUNT}) tokens(?:, Maximum concurrency for {_CONCURRENCY})?",
    ),
    _sign("Maximum concurrency for ", Phase.WARMING_UP, _CONCURRENCY),  # 0.26: in a line of its own
    _sign("Capturing CUDA graphs", Phase.CAPTURING, r"[^%]{0,80}?(?<!\d)(?P<percent>\d{1,3})%"),
    _sign(
        "Graph capturing finished in ",
        Phase.WARMING_UP,
        rf"(?P<graphs_s>{_NUMBER}) secs, took (?P<graphs_gib>{_NUMBER}) GiB",
    ),
    _sign("init engine (", Phase.WARMING_UP, rf"[^)]{{1,80}}\) took (?P<init_s>{_NUMBER}) s"),
    _sign("Application startup complete", Phase.LISTENING),  # uvicorn
)


def read_line(line: str) -> Observation | None:
    """None for a line without a sign. Lines are split at carriage returns too (tqdm writes them) and may have
    vLLM's prefix and colours. Takes time linear in the line's length."""
    text = text_of(line)
    for sign in _SIGNS:
        place = text.find(sign.text)
        if place >= 0:
            match = sign.then.match(text, place + len(sign.text))
            return Observation(sign.phase) if match is None else _observation(sign.phase, match.groupdict())
    return None


def _observation(phase: Phase, groups: dict[str, str | None]) -> Observation:
    percent = groups.pop("percent", None)
    return Observation(
        phase,
        None if percent is None else min(int(percent), 100),
        StartFigures(
            **{name: _FIGURES[name](text.replace(",", "")) for name, text in groups.items() if text}
        ),
    )
