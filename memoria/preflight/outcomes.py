"""Every engine's model, read from its files, and what its fraction buys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from memoria.config.model import Config, EngineConfig
from memoria.errors import Problem, UnavailableError
from memoria.plan.checkpoint import Choice, ModelFiles, NotCachedError, read_model
from memoria.plan.footprint.settings import draft_method, needs_draft, read_speculation
from memoria.plan.outcome import Learned, Outcome, Outcomes, make_outcome
from memoria.plan.plan import Plan
from memoria.plan.shipped import shipped_model
from memoria.vllm.fetch.metadata import Question, ask_hub
from memoria.vllm.fetch.repository import HUB_NAME, is_offline, is_set


def read_engine_model(engine: EngineConfig, environ: Mapping[str, str]) -> ModelFiles:
    """With the draft model's, where there is one. Raises as `read_model` does."""
    env = {**environ, **engine.env}
    files = read_model(engine.model, env, choice_of(engine.vllm_args))
    if (draft := _draft_of(engine)) is None:
        return files
    try:
        return replace(files, draft=read_model(draft[0], env, draft[1]))
    except UnavailableError:
        return files  # said to be not counted


def _draft_of(engine: EngineConfig) -> tuple[str, Choice] | None:
    speculation = read_speculation(engine.vllm_args)
    if not speculation.get("model") or not needs_draft(draft_method(speculation)):
        return None
    return str(speculation["model"]), Choice(revision=_text(speculation.get("revision")))


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
    config: Config, environ: Mapping[str, str], *, may_ask_hub: bool = True
) -> tuple[dict[str, ModelFiles], dict[str, Problem]]:
    """The files of each engine's model, and why the others are not known; both by the engine's name.

    What the cache lacks the hub says, if it answers in time; else what is shipped with memoria must do. An
    engine whose configuration is here, but no weights, has its headers from the hub."""
    files: dict[str, ModelFiles] = {}
    unknown: dict[str, Problem] = {}
    questions: dict[tuple[str, str], Question] = {}  # by engine and model

    def ask(engine: EngineConfig, model: str, choice: Choice) -> None:
        env = {**environ, **engine.env}
        if may_ask_hub and _is_on_hub(model, env):
            questions[engine.name, model] = Question(model, choice, env)

    for engine in config.engines:
        try:
            files[engine.name] = found = read_engine_model(engine, environ)
            asks = not found.tensors and not found.missing and found.index_bytes is None
        except NotCachedError as error:
            unknown[engine.name], asks = error.problems[0], True
        except UnavailableError as error:
            unknown[engine.name], asks = error.problems[0], False
        except OSError as error:
            unknown[engine.name], asks = Problem(f"{engine.model} cannot be read: {error.strerror}"), False
        if asks:
            ask(engine, engine.model, choice_of(engine.vllm_args))
        if (draft := _draft_of(engine)) is not None and (
            engine.name not in files or files[engine.name].draft is None
        ):
            ask(engine, *draft)
    answers, refusals = ask_hub(questions) if questions else ({}, {})
    for engine in config.engines:
        name, key = engine.name, (engine.name, engine.model)
        known = (
            answers.get(key) or files.get(name) or shipped_model(engine.model, choice_of(engine.vllm_args))
        )
        if known is None:
            unknown[name] = refusals.get(key, unknown[name])
            continue
        before = files[name].draft if name in files else None
        draft = _draft_of(engine)
        files[name] = replace(known, draft=before or (answers.get((name, draft[0])) if draft else None))
        unknown.pop(name, None)
    return files, unknown


def _is_on_hub(model: str, environ: Mapping[str, str]) -> bool:
    elsewhere = model.startswith("/") or is_set(environ.get("VLLM_USE_MODELSCOPE"))
    return not elsewhere and not is_offline(environ) and HUB_NAME.fullmatch(model) is not None


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
