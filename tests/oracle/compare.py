"""Rows of logged starts, and what the planner says of each.

`starts.tsv` has one start a line, `-` where a figure is not known; sizes are GiB as vLLM logged them.
`configs.json` has the architectural numbers of their models, as config.json; vision towers only in some.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from memoria.plan.budgets import requested_bytes
from memoria.plan.checkpoint import ModelFiles
from memoria.plan.footprint.footprint import Footprint, measure
from memoria.plan.footprint.model_types import UnknownModelError
from memoria.plan.footprint.settings import Machine
from memoria.text import GIB

HERE = Path(__file__).parent
# From this on, seconds of torch.compile mean that the compile cache was empty.
_COLD_SECONDS = 11.0
# Where the log does not show a total, any will do for what does not depend on it.
_ANY_TOTAL = 24.0


@dataclass(frozen=True, slots=True)
class Start:
    """A row, by the names of its columns."""

    row: Mapping[str, str]

    def __getattr__(self, name: str) -> str:
        return self.row[name]

    def number(self, name: str) -> float | None:
        return None if self.row[name] in ("-", "") else float(self.row[name])

    @property
    def flags(self) -> dict[str, Any]:
        found = json.loads(self.row["other_flags"])
        return found if isinstance(found, dict) else {}

    @property
    def version(self) -> tuple[int, int]:
        match = re.match(r"(\d+)\.(\d+)", self.row["vllm"])
        assert match, self.row["vllm"]
        return int(match[1]), int(match[2])

    @property
    def is_plain(self) -> bool:
        """Neither a changed build, nor speculation, nor LoRA, nor the engine of old."""
        lora = any("lora" in key for key in self.flags)
        return (self.fork, self.spec, self.engine) == ("False", "-", "V1") and not lora

    @property
    def is_cold(self) -> bool:
        """As logged, else by the time that compiling took; a start of which neither is known is cold, as a
        first one is."""
        if "warm" in self.flags:
            return not self.flags["warm"]
        seconds = self.number("compile_s")
        return seconds is None or seconds > _COLD_SECONDS

    @property
    def generation(self) -> str:
        """Of the GPU; what is said about it in brackets counts too."""
        return next((name for part, name in _GENERATIONS if part in self.gpu), "other")


_GENERATIONS = (
    *(("GB10", "GB10"), ("H100", "Hopper"), ("H200", "Hopper"), ("GH200", "Hopper"), ("A100", "Ampere")),
    *(("3090", "Ampere"), ("4090", "Ada"), ("L40", "Ada"), ("L4", "Ada"), ("4080", "Ada"), ("4070", "Ada")),
    *(("5090", "Blackwell"), ("5070", "Blackwell"), ("RTX PRO", "Blackwell"), ("B200", "Blackwell")),
    *(("T4", "Turing"), ("24 GB", "24 GB class")),
)


@dataclass(frozen=True, slots=True)
class Error:
    """One term of one start: planner and log, in GiB."""

    start: Start
    architecture: str
    term: str
    planned: float
    logged: float
    bar: float

    @property
    def error(self) -> float:
        """Above 0 where the planner says more than the log."""
        return self.planned - self.logged


def read_starts(table: Path = HERE / "starts.tsv") -> list[Start]:
    with table.open(encoding="utf-8") as file:
        return [Start(row) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def read_configs(source: Path = HERE / "configs.json") -> dict[str, Any]:
    """From one file by names, or a folder of NAME.json."""
    if source.is_dir():
        return {path.stem: json.loads(path.read_text()) for path in source.glob("*.json")}
    found: dict[str, Any] = json.loads(source.read_text())
    return found


def arguments(start: Start) -> dict[str, Any]:
    """The flags of the start, as an engine's `vllm_args`."""
    args: dict[str, Any] = {
        flag: int(value)
        for flag, column in (
            ("tensor_parallel_size", "tp"),
            ("max_model_len", "max_model_len"),
            ("max_num_seqs", "max_num_seqs"),
            ("max_num_batched_tokens", "max_num_batched_tokens"),
            ("block_size", "block_size"),
        )
        if (value := start.number(column)) is not None
    }
    if start.flags.get("entry") == "llm" and "max_num_batched_tokens" not in args:
        args["max_num_batched_tokens"] = 8192  # the default of the class LLM
    args["enforce_eager"] = start.enforce_eager == "True"
    if start.prefix_caching != "-":
        args["enable_prefix_caching"] = start.prefix_caching == "True"
    if start.kv_cache_dtype not in ("-", "auto"):
        args["kv_cache_dtype"] = start.kv_cache_dtype
    if (slots := re.match(r"(\d+) slot", str(start.flags.get("lora")))) is not None:
        args |= {"enable_lora": True, "max_loras": int(slots[1])}
    for flag in (
        *("language_model_only", "limit_mm_per_prompt", "async_scheduling", "enable_lora"),
        "speculative_config",
    ):
        if flag in start.flags:
            args[flag] = start.flags[flag]
    if (largest := start.number("largest_capture")) is not None and largest > 0:
        args["max_cudagraph_capture_size"] = int(largest)
    if start.flags.get("other") == "skip_mm_profiling":
        args["skip_mm_profiling"] = True
    return args


def environment(start: Start) -> dict[str, str]:
    env = {}
    if start.runner != "-":
        env["VLLM_USE_V2_MODEL_RUNNER"] = "1" if start.runner == "V2" else "0"
    if start.sampler != "-":
        env["VLLM_USE_FLASHINFER_SAMPLER"] = "1" if start.sampler == "flashinfer" else "0"
    return env


def planned(start: Start, configs: Mapping[str, Any]) -> Footprint | None:
    """None where the model is not known."""
    if start.config not in configs:
        return None
    total = int((start.number("gpu_total_GiB") or _ANY_TOTAL) * GIB)
    # What is in brackets is said about the name, not part of it.
    machine = Machine(total, start.gpu.partition(" (")[0].partition(",")[0], vllm=start.version)
    files = ModelFiles(name=start.config, source="oracle", config=configs[start.config])
    try:
        return measure(
            files, arguments(start), machine, pooling=start.pooling == "True", environ=environment(start)
        )
    except UnknownModelError:
        return None


def compare(start: Start, configs: Mapping[str, Any]) -> Iterator[Error]:
    """The terms that the log of this start shows."""
    footprint = planned(start, configs)
    if footprint is None:
        return
    peaks = footprint.peaks
    bar = peaks.bar_bytes / GIB

    def error(term: str, planned_bytes: float, logged: float) -> Error:
        return Error(start, footprint.shape.model_type, term, planned_bytes / GIB, logged, bar)

    weights, kv, total = (start.number(name) for name in ("weights_GiB", "kv_GiB", "gpu_total_GiB"))
    share = start.number("gpu_memory_utilization")
    if weights is not None and _stored_as_configured(start, footprint):
        yield error("weights", footprint.weights.total_bytes, weights)
    step = peaks.step_bytes + peaks.stays_bytes + (peaks.cold_bytes if start.is_cold else 0)
    charged = peaks.charged_bytes
    if start.graph_estimate_applied != "-" and (start.graph_estimate_applied == "True") != bool(charged):
        charged = peaks.estimated_bytes if start.graph_estimate_applied == "True" else 0
    requested = None
    if total is not None and share is not None:
        requested = requested_bytes(int(total * GIB), Decimal(str(share))) / GIB
    if requested is not None and weights is not None and kv is not None:
        kv_planned = requested - weights - (step + charged) / GIB
        yield error("kv", kv_planned * GIB, kv)
    if (rest := _rest(start, requested, charged / GIB)) is not None:
        yield error("step", step, rest)
    graphs = start.number("graph_GiB")
    if graphs is not None and graphs > 0 and start.version >= (0, 17):
        yield error("graphs", peaks.graph_bytes, graphs)


def layout_is_exact(start: Start, configs: Mapping[str, Any]) -> bool | None:
    """Whether the KV cache of this size holds the logged requests; None where the log does not say. The size
    has two decimals, so any that rounds to it will do. (Tokens of models with several kinds of layers meant
    something else before 0.22.)"""
    footprint = planned(start, configs)
    kv, requests = start.number("kv_GiB"), start.number("concurrency")
    known = start.number("max_model_len") is not None
    if footprint is None or kv is None or kv <= 0 or requests is None or not known:
        return None
    low, high = (
        round(footprint.kv_cache.capacity(int((kv + around) * GIB)).concurrency, 2)
        for around in (-0.0051, 0.0051)
    )
    return low <= requests <= high


def _rest(start: Start, requested: float | None, charged: float) -> float | None:
    """One step and what stays, as logged: from its parts, else what the budget lacks."""
    weights, kv = start.number("weights_GiB"), start.number("kv_GiB")
    activation, consumed = start.number("activation_GiB"), start.number("consumed_GiB")
    outside = start.number("non_torch_GiB")
    if activation is not None and weights is not None:
        if consumed is not None:
            # Where the log shows no estimate of its own, the peak contains it.
            inside = charged if start.kind != "log" and start.number("graph_estimate_GiB") is None else 0.0
            return activation + consumed - weights - inside
        if outside is not None:
            return activation + outside
    if requested is None or weights is None or kv is None:
        return None
    if start.graph_estimate_applied == "True":
        charged = start.number("graph_estimate_GiB") or charged
    elif start.graph_estimate_applied == "False":
        charged = 0.0
    return requested - weights - kv - charged


def _stored_as_configured(start: Start, footprint: Footprint) -> bool:
    """Whether config.json is the checkpoint's: some stand for a quantised one."""
    quantised = start.quantization not in ("-", "auto")
    return quantised == bool(footprint.shape.quantization)
