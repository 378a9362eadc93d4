"""The demo: real vLLM on the CPU with two tiny models of random weights. Their text is noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from memoria.errors import ConfigError, Problem

# Engines of the demo's memoria.yaml, and the variables that set their served names.
NAME_VARIABLES: Mapping[str, str] = {
    "embedding": "MEMORIA_DEMO_EMBEDDING",
    "generation": "MEMORIA_DEMO_GENERATION",
}


def config_path() -> Path:
    return Path(__file__).parent / "memoria.yaml"


def names_to_environ(text: str) -> dict[str, str]:
    """The variables with which the demo's memoria.yaml serves its models under the names in `text`:
    `embedding=MODEL,generation=MODEL`, or one of the two. Raises `ConfigError` with every
    problem of the list."""
    environ: dict[str, str] = {}
    problems: list[Problem] = []
    engines = " and ".join(NAME_VARIABLES)
    for part in text.split(","):
        engine, equals, model = (piece.strip() for piece in part.partition("="))
        if not (engine and equals and model) or len(model.split()) > 1:
            hint = "write `--names embedding=MODEL,generation=MODEL`, or one of the two"
            problems.append(Problem(f"`{part.strip()}` is not ENGINE=MODEL", hint=hint))
        elif engine not in NAME_VARIABLES:
            problems.append(Problem(f"the demo has no engine `{engine}`", hint=f"it has {engines}"))
        elif NAME_VARIABLES[engine] in environ:
            problems.append(Problem(f"`{engine}` is named twice", hint="it serves under one name"))
        else:
            environ[NAME_VARIABLES[engine]] = model
    if problems:
        raise ConfigError(problems)
    return environ
