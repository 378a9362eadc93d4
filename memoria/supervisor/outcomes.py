"""Reads every engine's model from its files and says what its fraction buys."""

from __future__ import annotations

from collections.abc import Mapping

from memoria.checkpoint.model_files import ModelFiles
from memoria.checkpoint.read import read_model
from memoria.config.model import Config
from memoria.errors import Problem, UnavailableError
from memoria.plan.outcome import Learned, Outcome, Outcomes, make_outcome
from memoria.plan.plan import Plan


def read_models(
    config: Config, environ: Mapping[str, str], *, may_ask_hub: bool = False
) -> tuple[dict[str, ModelFiles], dict[str, Problem]]:
    """The files of each engine's model by the engine's name, and why the others' are not known."""
    files: dict[str, ModelFiles] = {}
    unknown: dict[str, Problem] = {}
    for engine in config.engines:
        try:
            files[engine.name] = read_model(engine.model, {**environ, **engine.env}, may_ask_hub=may_ask_hub)
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
) -> Outcomes:
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
            )
        except ValueError as error:
            not_known[engine.name] = Problem(f"{engine.name} cannot be planned: {error}")
    return Outcomes(known, not_known)
