"""Plans of the default file's two models, and what `memoria plan` shows of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from memoria.cli.screens.layout import render_problems
from memoria.cli.screens.plan import render_choices, render_outcomes
from memoria.config.model import Config, Want
from memoria.errors import Problem
from memoria.gpu.catalogue import named_device
from memoria.plan.outcome import Outcomes
from memoria.plan.plan import Plan, make_plan
from memoria.plan.problems import plan_problems
from memoria.plan.wishes import Settled, settle
from memoria.preflight.outcomes import make_outcomes
from tests.unit import checkpoints as models
from tests.unit.checkpoints import model_files
from tests.unit.plans import config

Flags = Mapping[str, Mapping[str, Any]]
DEFAULT_FLAGS: Flags = {
    "embedding": {"max_num_seqs": 256, "max_num_batched_tokens": 8192},
    "generation": {"max_num_seqs": 128, "max_num_batched_tokens": 16384, "max_model_len": 8192},
}


def default_config(flags: Flags = DEFAULT_FLAGS, embedding: str = "0.30", generation: str = "0.60") -> Config:
    """memoria.yaml's two engines."""
    made = config({"embedding": embedding, "generation": generation})
    named = {"embedding": "Qwen/Qwen3-Embedding-0.6B", "generation": "Qwen/Qwen3-4B-Thinking-2507-FP8"}
    engines = (
        replace(
            engine,
            model=named[engine.name],
            runner="pooling" if engine.name == "embedding" else "generate",
            vllm_args=flags[engine.name],
        )
        for engine in made.engines
    )
    return replace(made, engines=tuple(engines))


FILES = {
    "embedding": replace(model_files(models.QWEN3_EMBEDDING), name="Qwen/Qwen3-Embedding-0.6B"),
    "generation": replace(model_files(models.QWEN3_4B_FP8), name="Qwen/Qwen3-4B-Thinking-2507-FP8"),
}


def planned(wanted: Config, gpu: str, unknown: Mapping[str, Problem] | None = None) -> tuple[Plan, Outcomes]:
    plan = make_plan(wanted, {0: named_device(gpu)})
    files = {name: found for name, found in FILES.items() if name not in (unknown or {})}
    return plan, make_outcomes(wanted, plan, files, unknown or {})


def screen(wanted: Config, gpu: str, width: int, *, color: bool = False) -> str:
    plan, outcomes = planned(wanted, gpu)
    problems = plan_problems(wanted, plan, outcomes)
    return render_outcomes(wanted, plan, outcomes, width, color, ok=not problems)


def problems_of(wanted: Config, gpu: str) -> tuple[Problem, ...]:
    plan, outcomes = planned(wanted, gpu)
    return plan_problems(wanted, plan, outcomes)


UNFIT_GPU = "24GiB"
# The first has its weights and no more, the second not even those; a neighbour has nothing to spare.
UNFIT = default_config({**DEFAULT_FLAGS, "generation": {"max_num_seqs": 64}}, "0.10", "0.15")


def unfit(width: int, color: bool) -> str:
    return screen(UNFIT, UNFIT_GPU, width, color=color)


def unfit_problems(_: int, color: bool) -> str:
    return render_problems(problems_of(UNFIT, UNFIT_GPU), color)


def wishing(concurrency: float) -> Settled:
    wanted = default_config()
    wants = {"embedding": Want(concurrency=1.0), "generation": Want(8192, concurrency)}
    engines = tuple(
        replace(engine, gpu_memory_utilization=Decimal(0), want=wants[engine.name])
        for engine in wanted.engines
    )
    return settle(replace(wanted, engines=engines), {0: named_device("RTX 4090")}, FILES)


def wishes(width: int, color: bool) -> str:
    settled = wishing(8.0)
    table = screen(settled.config, "RTX 4090", width, color=color)
    return "\n".join([table, "", *render_choices(settled.choices, written=False)])


def wishes_refused(_: int, color: bool) -> str:
    return render_problems(wishing(64.0).problems, color)
