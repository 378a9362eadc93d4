"""The runner that vLLM chooses for a model by itself (`_get_default_runner_type`, vllm/config/model.py)."""

from __future__ import annotations

import re

from memoria.config.model import Runner
from memoria.plan.checkpoint import ModelFiles

# By the end of an architecture's name, the first that fits.
_BY_ENDING: tuple[tuple[str, Runner], ...] = (
    *((ending, "generate") for ending in ("ForCausalLM", "ForConditionalGeneration", "ChatModel")),
    ("LMHeadModel", "generate"),
    *((ending, "pooling") for ending in ("ForTextEncoding", "Classification", "ForRewardModeling")),
    *((ending, "pooling") for ending in ("ClassificationModel", "Model", "ForMaskedLM")),
    *((ending, "pooling") for ending in ("ForRetrieval", "ForRanking", "ColBERT")),
)
# They generate text, whatever their names end with (vllm/model_executor/models/registry.py).
_GENERATING = frozenset(
    {"ChatGLMModel", "MiDashengLMModel", "MossAudioModel", "Qwen2_5OmniModel", "UltravoxModel"}
)
_BY_NAME = re.compile(r"embed|rerank|colbert|(^|[/-])(bge|e5|gte)-", re.IGNORECASE)


def runner_of(model: str, files: ModelFiles | None) -> Runner:
    """Of a model whose files say nothing, or are not known, by its name."""
    if files is not None and files.pools:
        return "pooling"
    for architecture in (files.config.get("architectures") or ()) if files is not None else ():
        if architecture in _GENERATING:
            return "generate"
        for ending, runner in _BY_ENDING:
            if str(architecture).endswith(ending):
                # one made to generate may still be an embedder, if its modules.json is not here
                return "pooling" if runner == "generate" and _BY_NAME.search(model) else runner
    return "pooling" if _BY_NAME.search(model) else "generate"
