"""What an engine needs for a moment: the peak of one step beside the weights, and CUDA graphs.

These are the planner's estimates, not vLLM's: it measures both (`profile_run`, `profile_cudagraph_memory` in
vllm/v1/worker/gpu_model_runner.py). The form is that of the largest tensors alive at once; what
engines report after their start takes their place in the next plan (`Learned`, memoria.plan.outcome).
"""

from __future__ import annotations

from memoria.plan.footprint.settings import Settings
from memoria.plan.footprint.shape import Shape

_HALF = 2  # bytes: activations are never quantised between layers
# The sampler sorts float32 logits: the logits, their copy and the sorted indices.
_LOGITS_COPIES = 3
_FLOAT = 4
# A captured graph keeps its inputs, outputs and workspace; per batch size, all layers together.
_GRAPH_BASE_BYTES = 64 * 2**20
_LARGEST_GRAPH = 512


def activation_bytes(shape: Shape, settings: Settings, *, pooling: bool) -> int:
    """The larger of the feed-forward block of a full batch of tokens, `T * (2I/TP + 4H) * 2 B`, and the
    logits of as many sequences as may run, `R * V/TP * 4 B * 3`. Expect errors of a half."""
    tokens = settings.max_num_batched_tokens
    wide = shape.intermediate
    if shape.experts:
        wide = max(shape.expert_intermediate * max(1, shape.experts_per_token), shape.expert_intermediate)
    per_token = (2 * wide // settings.tensor_parallel + 4 * shape.hidden) * _HALF
    logits = 0 if pooling else settings.max_num_seqs * shape.vocabulary * _FLOAT * _LOGITS_COPIES
    return max(tokens * per_token, logits // settings.tensor_parallel)


def graph_bytes(shape: Shape, settings: Settings) -> int:
    """None with `enforce_eager` and on a CPU. Batches of up to twice `max_num_seqs`, 512 at most, are
    captured (`_set_cudagraph_sizes`, vllm/config/vllm.py); each layer keeps a few hidden states of the
    largest, and graphs of smaller batches share its pool."""
    if settings.enforce_eager or shape.encoder_only:
        return 0
    batch = min(2 * settings.max_num_seqs, _LARGEST_GRAPH)
    return _GRAPH_BASE_BYTES + batch * len(shape.layers) * 2 * shape.hidden * _HALF
