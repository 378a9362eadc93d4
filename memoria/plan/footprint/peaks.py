"""What a start measures beside the weights: the peak of one step, what stays, CUDA graphs; and how far off
these estimates are.

vLLM runs one step of `max_num_batched_tokens` at its start and takes the highest memory it saw off the KV
cache (`profile_run`, `determine_available_memory`, vllm/v1/worker). The tensors alive at once are counted
here. What each version and runner does was compared with published starts: `python -m tests.oracle`.
"""

from __future__ import annotations

from dataclasses import dataclass

from memoria.plan.footprint.settings import Settings
from memoria.plan.footprint.shape import Shape
from memoria.plan.footprint.vision import Encoder

_HALF = 2  # bytes: activations are never quantised between layers
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Peaks:
    """In bytes on one GPU. `step_bytes` is the peak of one step where the compile cache is warm,
    `cold_bytes` what the first start with an empty cache takes more. `stays_bytes` is what is neither weights
    nor released after the step: workspaces of kernels, communicators, modules of the driver. `graph_bytes` is
    the pool of captured graphs, `charged_bytes` what vLLM takes off the KV cache for it. `bar_bytes`: the
    error of all that, which nine of ten starts stay within."""

    step_bytes: int
    cold_bytes: int
    stays_bytes: int
    graph_bytes: int
    estimated_bytes: int
    charged_bytes: int
    bar_bytes: int


def find_peaks(
    shape: Shape, settings: Settings, encoder: Encoder | None, gpu: str, *, pooling: bool
) -> Peaks:
    """`gpu` is the device's name."""
    forward, logits = _forward(shape, settings), _logits(shape, settings, pooling=pooling)
    image = encoder.peak_bytes(settings.tensor_parallel) if encoder and settings.profiles_images else 0
    warm = max(forward, logits, image)
    count = _graph_count(shape, settings, gpu, pooling=pooling)
    graphs = int(count * (3.0 + 0.09 * len(shape.layers)) * _MIB)
    estimated = _estimated(count, graphs, shape)
    if graphs and not (settings.v2_runner or pooling) and any(name in gpu for name in _FLASHINFER_FIRST):
        estimated += _FLASHINFER_WORKSPACE
    return Peaks(
        step_bytes=warm,
        cold_bytes=max(0, _cold(shape, settings) - warm),
        stays_bytes=_stays(shape, settings, gpu),
        graph_bytes=graphs,
        estimated_bytes=estimated,
        charged_bytes=estimated if settings.charges_graphs else 0,
        bar_bytes=_bar(shape, settings, gpu),
    )


def _forward(shape: Shape, settings: Settings) -> int:
    """A layer's feed-forward over a full batch: the gate and up projections, their product, and hidden states
    with their residuals; for tensor parallelism one more, which is reduced. Those of experts are in a
    workspace."""
    ranks, hidden, tokens = settings.tensor_parallel, shape.hidden, settings.max_num_batched_tokens
    if shape.experts:
        inside = 0 if settings.vllm >= _KEEPS_WORKSPACE else _expert_workspace(shape, settings)
        return inside + tokens * 4 * hidden * _HALF
    return tokens * (3 * shape.intermediate // ranks + (4 + (ranks > 1)) * hidden) * _HALF


# From this release on the workspace of experts is kept between steps (vllm/v1/worker/workspace.py).
_KEEPS_WORKSPACE = (0, 13)


def _expert_workspace(shape: Shape, settings: Settings) -> int:
    """Inputs and three intermediates of each token, once for every expert that it is routed to."""
    routed = settings.max_num_batched_tokens * max(1, shape.experts_per_token)
    return routed * (3 * shape.expert_intermediate // settings.tensor_parallel + shape.hidden) * _HALF


def _logits(shape: Shape, settings: Settings, *, pooling: bool) -> int:
    """The sampler's tensors for `max_num_seqs` sequences beside the step's hidden states. The V2 runner keeps
    logits alone; V1 adds them in float32, their probabilities and as many random numbers (`random_sample`,
    vllm/v1/sample/ops/topk_topp_sampler.py), and up to 0.15 sorted them with their indices."""
    if pooling:
        return 0
    rows = min(settings.max_num_seqs, settings.max_num_batched_tokens)
    element = 2.0 if settings.v2_runner else 14.3
    if settings.vllm < (0, 16):
        element = 10.5 if settings.flashinfer_sampler else 38.4
    states = 2 * settings.max_num_batched_tokens * shape.hidden
    return int(rows * shape.vocabulary * element) + states


def _cold(shape: Shape, settings: Settings) -> int:
    """Compiling for the first time copies the embedding table."""
    if settings.enforce_eager or settings.vllm < (0, 20) or shape.multimodal:
        return 0
    table = 2 * shape.vocabulary * shape.hidden // settings.tensor_parallel
    return table + 4 * settings.max_num_batched_tokens * shape.hidden


# FlashInfer's buffer (`VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE`), allocated by the first capture where it is
# the first choice (`_get_backend_priorities`, vllm/platforms/cuda.py).
_FLASHINFER_WORKSPACE = 394 * _MIB
_FLASHINFER_FIRST = ("B100", "B200", "B300")
# GPUs that reach each other's memory: all-reduce then keeps buffers of its own beside NCCL's. GeForce cards
# do not.
_PEERS = ("H100", "H200", "H800", "B200", "B300", "RTX PRO")


def _stays(shape: Shape, settings: Settings, gpu: str) -> int:
    """Until 0.26 vLLM counted only what PyTorch had not allocated; from 0.27 on also what its allocator keeps
    in fragments (`memory_profiling`, vllm/utils/mem_utils.py)."""
    mib = 80
    if settings.vllm >= (0, 27):
        mib = 520 if shape.multimodal or "state" in shape.layers else 345
    if settings.tensor_parallel > 1:
        mib += 410 if any(name in gpu for name in _PEERS) else 205 if "A100" in gpu else 0
    if "GB10" in gpu:
        # One memory for both: what the process takes as a host's, vLLM counts as the GPU's (psutil's
        # `available` in `MemorySnapshot.measure`, vllm/utils/mem_utils.py).
        mib += 2048
    kept = shape.experts and settings.vllm >= _KEEPS_WORKSPACE
    return mib * _MIB + (_expert_workspace(shape, settings) if kept else 0)


def _estimated(count: int, graphs: int, shape: Shape) -> int:
    """vLLM's own estimate of `count` graphs that take `graphs` bytes then. It extrapolates from the largest
    (`profile_cudagraph_memory`), and those of linear attention grow with the batch."""
    if "state" in shape.layers:
        return int(count * (3.0 + 0.2 * len(shape.layers)) * _MIB)
    return int(graphs * 1.15)


def _graph_count(shape: Shape, settings: Settings, gpu: str, *, pooling: bool) -> int:
    """Each graph takes nodes for every layer; all share one pool of tensors. Sizes
    (`_set_cudagraph_sizes`, vllm/config/vllm.py) are captured piecewise, for any batch, and up to
    `max_num_seqs` whole, for batches that only decode."""
    if settings.enforce_eager or shape.encoder_only:
        return 0
    decode = settings.max_num_seqs * settings.decode_tokens
    limit = 1024 if any(name in gpu for name in _FLASHINFER_FIRST) and settings.vllm >= (0, 32) else 512
    largest = settings.largest_graph or min(2 * decode, limit)
    if shape.model_type == "gpt_oss":  # `GptOssForCausalLMConfig`, vllm/model_executor/models/config.py
        largest = settings.largest_graph or 1024
    sizes = settings.graph_sizes or [size for size in CAPTURED if size <= largest]
    count = len(sizes)
    if not pooling:
        count += sum(size <= decode for size in sizes)
    if settings.max_loras:
        count *= 2  # with adapters, and without
    return count


CAPTURED = (1, 2, 4, *range(8, 256, 8), *range(256, 1025, 16))


def _bar(shape: Shape, settings: Settings, gpu: str) -> int:
    if "GB10" in gpu:
        return 5 * 2**29
    return int((0.6 if shape.experts or shape.multimodal else 0.3) * 2**30)
