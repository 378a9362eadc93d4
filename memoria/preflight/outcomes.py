"""Every engine's model, read from its files, and what its fraction buys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from memoria.config.model import Config, EngineConfig
from memoria.errors import Problem, UnavailableError
from memoria.plan.checkpoint import Choice, ModelFiles, read_model
from memoria.plan.footprint.settings import draft_method, needs_draft, read_speculation
from memoria.plan.outcome import Learned, Outcome, Outcomes, make_outcome
from memoria.plan.plan import Plan


def read_engine_model(
    engine: EngineConfig, environ: Mapping[str, str], *, may_ask_hub: bool = False
) -> ModelFiles:
    """With the draft model's, where there is one. Raises as `read_model` does."""
    env = {**environ, **engine.env}
    files = read_model(engine.model, env, choice_of(engine.vllm_args), may_ask_hub=may_ask_hub)
    speculation = read_speculation(engine.vllm_args)
    if not speculation.get("model") or not needs_draft(draft_method(speculation)):
        return files
    choice = Choice(revision=_text(speculation.get("revision")))
    try:
        draft = read_model(str(speculation["model"]), env, choice, may_ask_hub=may_ask_hub)
    except UnavailableError:
        return files  # said to be not counted
    return replace(files, draft=draft)


def choice_of(args: Mapping[str, Any]) -> Choice:
    """What vLLM's flags select; `hf_overrides` may be written as JSON, as on its command line."""
    overrides = args.get("hf_overrides")
    if isinstance(overrides, str):
        try:
            overrides = json.loads(overrides)
        except ValueError:
            overrides = None
    return Choice(
        revision=_text(args.get("revision")),
        download_dir=_text(args.get("download_dir")),
        overrides=overrides if isinstance(overrides, dict) else {},
    )


def _text(value: Any) -> str | None:
    return str(value) if value else None


def read_models(
    config: Config, environ: Mapping[str, str], *, may_ask_hub: bool = False
) -> tuple[dict[str, ModelFiles], dict[str, Problem]]:
    """The files of each engine's model, and why the others are not known; both by the engine's name."""
    files: dict[str, ModelFiles] = {}
    unknown: dict[str, Problem] = {}
    for engine in config.engines:
        try:
            files[engine.name] = read_engine_model(engine, environ, may_ask_hub=may_ask_hub)
        except UnavailableError as error:
            unknown[engine.name] = error.problems[0]
        except OSError as error:
            unknown[engine.name] = Problem(f"{engine.model} cannot be read: {error.strerror}")
    return files, unknown


def make_outcomes(
    config: Config,
    plan: Plan,
    files: Mapping[str, ModelFiles],
    unknown: Mapping[str, Problem],
    learned: Mapping[str, Learned] | None = None,
    *,
    vllm: str | None = None,
) -> Outcomes:
    """`vllm` is its version, where known."""
    known: dict[str, Outcome] = {}
    not_known = dict(unknown)
    for engine in config.engines:
        if engine.name not in files:
            continue
        try:
            known[engine.name] = make_outcome(
                engine,
                plan.budget(engine.name),
                files[engine.name],
                plan.device(engine.name),
                (learned or {}).get(engine.name),
                vllm=vllm,
            )
        except ValueError as error:
            not_known[engine.name] = Problem(f"{engine.name} cannot be planned: {error}")
    return Outcomes(known, not_known)
