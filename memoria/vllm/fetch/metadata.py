"""What the hub says of models that are not here: configurations and tensor headers, no weights."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from memoria.config.paths import hub_cache
from memoria.errors import Problem
from memoria.plan.checkpoint import BITS, Choice, ModelFiles, Tensor, overridden
from memoria.vllm.fetch.launch import child_command, child_environ, fetch_error
from memoria.vllm.fetch.repository import Repository

SECONDS = 5.0
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Question:
    model: str
    choice: Choice
    environ: Mapping[str, str]


def ask_hub(
    questions: Mapping[Key, Question], *, seconds: float = SECONDS
) -> tuple[dict[Key, ModelFiles], dict[Key, Problem]]:
    """The answers by the questions' keys, and why there is none for the others. All at once; what has not
    come in time is left out."""
    began = time.monotonic()
    children = {name: _spawn(question) for name, question in questions.items()}
    known: dict[Key, ModelFiles] = {}
    unknown: dict[Key, Problem] = {}
    for name, child in children.items():
        question = questions[name]
        try:
            output, _ = child.communicate(timeout=max(0.0, began + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            output, _ = child.communicate()
        said: dict[str, Any] = {}
        for line in output.splitlines():
            with suppress(ValueError):  # one that was cut
                said = {**said, **json.loads(line)}
        if "config" in said:
            known[name] = overridden(_files(question.model, said), question.choice)
        elif "failure" in said:
            diagnosis = fetch_error(said["failure"], said["values"], question.environ).diagnosis
            unknown[name] = Problem(diagnosis.cause, (), diagnosis.hint)
        else:
            text = f"no answer within {seconds:g} s"
            diagnosis = fetch_error("network", {"text": text}, question.environ).diagnosis
            unknown[name] = Problem(diagnosis.cause, (), diagnosis.hint)
    return known, unknown


def _spawn(question: Question) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        child_command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environ(question.environ),
        start_new_session=True,
        text=True,
    )
    repository = Repository(question.model, question.choice.revision, (), str(hub_cache(question.environ)))
    assert child.stdin is not None
    child.stdin.write(json.dumps({"metadata": asdict(repository)}) + "\n")
    child.stdin.flush()
    return child


def _files(model: str, said: Mapping[str, Any]) -> ModelFiles:
    return ModelFiles(
        name=model,
        source="the hub",
        config=said["config"],
        tensors=tuple(
            Tensor(name, dtype, tuple(shape))
            for name, dtype, shape in said.get("tensors", ())
            if dtype in BITS
        ),
        index_bytes=said.get("index_bytes"),
        tokenizer_length=said.get("tokenizer_length"),
        encoder_length=said.get("encoder_length"),
        pools=bool(said.get("pools")),
    )
