"""`memoria plan`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from memoria.cli.options import Options, command
from memoria.cli.screens.plan import render_choices, render_outcomes
from memoria.config.model import Config, ConfigPath
from memoria.errors import ConfigError, ExitCode, MemoriaError, Problem, UnavailableError
from memoria.gpu import open_reader, read_devices
from memoria.gpu.catalogue import named_device
from memoria.plan.outcome import Outcomes
from memoria.plan.plan import Plan, make_plan
from memoria.plan.problems import plan_problems
from memoria.plan.wishes import Choice, settle
from memoria.preflight.outcomes import make_outcomes, read_models
from memoria.preflight.records import learned, measured_asleep
from memoria.supervisor.runtime_dir import RuntimeDir
from memoria.text import fraction_text
from memoria.vllm.install.find import data_home, find

if TYPE_CHECKING:
    from memoria.gpu.device import Device
    from memoria.vllm.install.facts import VllmInstall


@command()
@click.option("--gpu", metavar="GPU", help="Plan for a GPU that is not here: `24GiB`, `RTX 4090`.")
@click.option(
    "--hub/--no-hub",
    default=True,
    help="Query the Hugging Face hub for models that are not in the cache.  [default: yes, for 5 s at most]",
)
@click.option("--write", is_flag=True, help="Write the fractions chosen for `auto` into the file.")
def plan(options: Options, gpu: str | None, hub: bool, write: bool) -> int:
    """Show what each memory fraction buys: weights, KV cache, concurrent requests. Starts nothing.

    \b
    Example:  memoria plan --gpu "RTX 4090"
    """
    config = options.load()
    if gpu is not None:
        config = replace(config, device="cuda")
    devices = _devices(config, gpu)
    files, unknown = read_models(config, os.environ, may_ask_hub=hub)
    install = _install(config)
    version = install.version if install else None
    chosen = settle(config, devices, files, unknown, vllm=version)
    if chosen.problems:
        if options.json:
            _print_json(
                {"ok": False, "devices": [], "problems": [asdict(problem) for problem in chosen.problems]}
            )
            return ExitCode.CONFIG
        raise ConfigError(chosen.problems)
    config = chosen.config
    if write:
        write_choices(config, chosen.choices)
    own = () if gpu is not None else RuntimeDir(config.runtime_dir).own_pids()
    asleep = {} if gpu or install is None else measured_asleep(config, devices, install, os.environ)
    made = make_plan(config, devices, own, asleep)
    known = {} if gpu or install is None else learned(config, made, install, os.environ)
    outcomes = make_outcomes(config, made, files, unknown, known, vllm=version)
    problems = plan_problems(config, made, outcomes)
    if options.json:
        _print_json(as_data(made, outcomes, problems))
        return ExitCode.CONFIG if problems else _code(outcomes)
    screen = render_outcomes(config, made, outcomes, options.width, options.colored, ok=not problems)
    sys.stdout.write(screen + "\n")
    if shown := _shown(config, chosen.choices, write=write):
        sys.stdout.write("\n" + "\n".join(render_choices(shown, written=write)) + "\n")
    elif write:
        sys.stdout.write("\nnothing to write: no engine has `gpu_memory_utilization: auto`\n")
    sys.stdout.flush()
    if problems:
        raise ConfigError(problems)
    return _code(outcomes)


def _code(outcomes: Outcomes) -> ExitCode:
    """An engine that could not be planned does not count as fitting."""
    return ExitCode.UNAVAILABLE if outcomes.unknown else ExitCode.OK


def _shown(config: Config, choices: tuple[Choice, ...], *, write: bool) -> tuple[Choice, ...]:
    """The choices, or with `write` those that were written: a size stays a size."""
    return tuple(c for c in choices if not write or config.engine(c.engine).gpu_memory is None)


def _install(config: Config) -> VllmInstall | None:
    """None without an installed vLLM."""
    try:
        return find(config.vllm, data_home(os.environ), config.device)
    except UnavailableError:
        return None


def write_choices(config: Config, choices: tuple[Choice, ...]) -> None:
    """Writes the fractions chosen for `auto` into the file. A size stays a size."""
    from memoria.config.file import rewrite

    chosen: dict[ConfigPath, str] = {
        ("engines", choice.engine, "gpu_memory_utilization"): fraction_text(choice.fraction)
        for choice in choices
        if config.engine(choice.engine).gpu_memory is None
    }
    if config.path is not None and chosen:
        rewrite(config.path, chosen)


def as_data(plan: Plan, outcomes: Outcomes, problems: tuple[Problem, ...]) -> dict[str, Any]:
    return {
        "ok": not problems and not outcomes.unknown,
        "devices": [
            {
                "name": device.device.name,
                "label": device.device.label,
                "total_bytes": device.device.usable_bytes,
                "unplanned_bytes": device.unplanned_bytes,
                "context_bytes": device.context_bytes,
                "awake_sets": device.awake_sets,
                "engines": [_engine_data(budget.engine, plan, outcomes) for budget in device.budgets],
            }
            for device in plan.devices
        ],
        "problems": [asdict(problem) for problem in problems],
    }


def _print_json(data: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def _engine_data(name: str, plan: Plan, outcomes: Outcomes) -> dict[str, Any]:
    budget = plan.budget(name)
    data: dict[str, Any] = {
        "name": name,
        "gpu_memory_utilization": str(budget.fraction),
        "requested_bytes": budget.requested_bytes,
        "asleep_bytes": budget.asleep_bytes,
    }
    if name not in outcomes.known:
        return data | {"unknown": outcomes.unknown[name].what, "hint": outcomes.unknown[name].hint}
    outcome = outcomes.known[name]
    capacity, terms = outcome.capacity, outcome.terms
    return data | {
        "model": outcome.files.name,
        "weights_bytes": terms.weights_bytes,
        "weights_by_dtype": dict(outcome.footprint.weights.by_dtype),
        "weights_exact": outcome.footprint.weights.exact,
        "step_bytes": terms.step_bytes,
        "graph_bytes": terms.graph_bytes,
        "bar_bytes": terms.bar_bytes,
        "cold_bytes": terms.cold_bytes,
        "learned": terms.learned,
        "kv_bytes": outcome.kv_bytes,
        "kv_token_bytes": outcome.footprint.token_bytes,
        "kv_blocks": capacity.blocks,
        "kv_tokens": capacity.tokens,
        "concurrency": round(capacity.concurrency, 4),
        "max_model_len": outcome.max_model_len,
        "fits": outcome.fits,
        "doubtful": outcome.is_doubtful,
        "caveats": list(outcome.remarks),
    }


def _devices(config: Config, gpu: str | None) -> dict[int | str, Device]:
    if gpu is not None:
        planned = named_device(gpu)
        wanted = dict.fromkeys(engine.gpu for engine in config.engines)
        return {
            which: replace(planned, index=number, uuid=f"planned-{number}")
            for number, which in enumerate(wanted)
        }
    reader = open_reader(config.device)
    try:
        return read_devices(reader, (engine.gpu for engine in config.engines))
    except MemoriaError as error:
        hint = "plan for a GPU that is not here: `memoria plan --gpu 24GiB`"
        raise type(error)(
            replace(problem, hint=problem.hint or hint) for problem in error.problems
        ) from error
    finally:
        reader.close()
