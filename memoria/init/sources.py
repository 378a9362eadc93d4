"""What `memoria init --from` is given: a compose file, or command lines; and names for what was found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from memoria.config.paths import is_local_model
from memoria.errors import UsageError
from memoria.init.containers import DOCKER, from_compose, from_docker
from memoria.init.draft import Draft, DraftEngine, LeftOut, Published, engine_name
from memoria.init.serve_line import ASSIGNMENT, Place, Translator, served, wrappers
from memoria.init.shell import commands

_OF_VLLM = re.compile(r"(^|[-_])vllm([-_]|$)")


def read_source(
    source: str, folder: Path, environ: Mapping[str, str], translator: Translator
) -> tuple[list[DraftEngine], Published | None]:
    """The engines of one `--from`, and the address of a router. Raises `UsageError` for a command line, and
    `ConfigError` for a file, in which there is no vLLM."""
    text = source.strip()
    if not re.search(r"\s", text) or (folder / text).is_file():
        if not (folder / text).exists():
            hint = "name a compose file, or put a command line in quotes: 'vllm serve MODEL'"
            raise UsageError(f"there is no file {text}", hint=hint)
        return from_compose(folder / text, environ, translator)
    engines: list[DraftEngine] = []
    for words in commands(source, environ):
        program = next((word for word in words if word.rpartition("/")[2] in DOCKER), None)
        if program is not None and "run" in words:
            engine = from_docker(words[words.index(program) :], folder, translator)
        elif (found := served(words)) is not None:
            before, arguments = found
            assigned = (ASSIGNMENT.fullmatch(word) for word in before)
            env: dict[str, str | None] = {match[1]: match[2] for match in assigned if match}
            place = Place("", "vllm serve", folder, environ, env)
            for wrapper in wrappers(before):
                translator.leave_out(place, f"`{wrapper}`", "engines are started by memoria alone")
            engine = translator.engine(arguments, place)
        else:
            continue
        if engine is not None:
            engines.append(engine)
    if not engines:
        raise UsageError(
            "`--from` has no command that starts vLLM with a model",
            hint="a file's name, or `vllm serve MODEL ...`, `docker run ... vllm/vllm-openai ...` in quotes",
        )
    return engines, None


def settle_names(draft: Draft, folder: Path) -> None:
    """Names that differ, of engines and of models, and paths as they are written in a file in `folder`."""
    taken: set[str] = set()
    served_names: set[tuple[str, str]] = set()
    for number, engine in enumerate(draft.engines):
        wish = _OF_VLLM.sub(lambda match: "-" if match[1] and match[2] else "", engine.name).strip("-_")
        engine.is_named = bool(wish)
        engine.name = engine_name(wish or "engine", taken)
        taken.add(engine.name)
        if is_local_model(engine.model):
            path = Path(engine.model)
            if path.is_relative_to(folder):
                engine.model = f"./{path.relative_to(folder)}"
        own = Path(engine.model).name if is_local_model(engine.model) else engine.model
        names = engine.keys.get("served_model_name") or own
        names = names if isinstance(names, list) else [names]
        runner = str(engine.keys.get("runner", ""))
        if served_names & {(runner, name) for name in names}:
            engine.keys["served_model_name"] = other = f"{names[0]}-{number + 1}"
            draft.left_out.append(
                LeftOut(
                    engine.source, f"the name `{names[0]}`", f"two engines have it: this one is `{other}`"
                )
            )
        served_names |= {(runner, name) for name in names}
