"""The failures of vLLM that memoria can explain, as a table.

Each expression is searched in the text of one error (its first line and a few that follow), never in the
whole log: vLLM's warnings and usage texts are full of such words. `{1}` is the first captured group. Messages
are those of vLLM 0.32 and 0.33 and of the libraries below it. The first matching row counts: rows go from the
special to the general. A new failure is one row, and an example in tests/unit/vllm/test_diagnosis.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_FLOOR, Decimal
from typing import Literal

from memoria.vllm.facts import LaunchSettings

# "no": only a change of the configuration or the machine helps; "limited": may help a few times.
Retry = Literal["yes", "no", "limited"]
# The area of a cause: the table's sections, and `signal` (killed, or crashed in native code), `error` (not in
# the table), `silence` (nothing in the log), `memoria` (which ended the engine itself) and `hub` (its model
# does not come).
Kind = Literal["memory", "device", "model", "start", "signal", "error", "silence", "memoria", "hub"]
Match = re.Match[str]
Hint = str | Callable[[re.Match[str], LaunchSettings | None], str]


@dataclass(frozen=True, slots=True)
class Failure:
    """`hint` names memoria's own key and, where vLLM or the engine's settings give one, the value to try."""

    pattern: re.Pattern[str]
    cause: str
    hint: Hint
    retry: Retry
    kind: Kind = "error"

    def hint_for(self, match: Match, settings: LaunchSettings | None = None) -> str:
        return self.hint(match, settings) if callable(self.hint) else fill(self.hint, match)

    def cause_for(self, match: Match) -> str:
        return fill(self.cause, match)


def fill(template: str, match: Match) -> str:
    return template.format(match[0], *match.groups(default="?"))


_LEAST_CACHE = 0.25  # GiB: the smallest useful cache
_LENGTH_STEP = 16  # tokens: a block
_SMALLEST_HALVED = 2
_PRUDENT = 0.9  # of what is free now


def _largest_fraction(match: Match, _: LaunchSettings | None) -> str:
    free, total = Decimal(match[1]), Decimal(match[2])
    fits = (free / total).quantize(Decimal("0.01"), ROUND_FLOOR) if total else Decimal(0)
    return f"set gpu_memory_utilization to {fits} or less, or stop what uses the rest (see `memoria check`)"


def _raise_fraction(settings: LaunchSettings | None, missing_gib: float | None) -> str:
    fraction = settings.raised(missing_gib) if settings else None
    return f"raise gpu_memory_utilization to {fraction}" if fraction else "raise gpu_memory_utilization"


def _room_for_weights(_: Match, settings: LaunchSettings | None) -> str:
    """The `kv_gib` that vLLM logged is negative here."""
    left = settings.kv_gib if settings else None
    missing = None if left is None or left > 0 else _LEAST_CACHE - left
    return f"{_raise_fraction(settings, missing)}, or choose a smaller or quantised model"


def _room_for_a_token(_: Match, settings: LaunchSettings | None) -> str:
    return f"{_raise_fraction(settings, None)}, or choose a smaller model"


def _room_for_a_request(match: Match, settings: LaunchSettings | None) -> str:
    """A cache grows at most in proportion to the length, so the proportional length always fits."""
    length, needed, there = int(match[1]), float(match[2]), float(match[3])
    shorter = int(length * there / needed) // _LENGTH_STEP * _LENGTH_STEP if needed > there > 0 else 0
    lower = f"set max_model_len to {shorter}" if shorter else "lower max_model_len"
    return f"{_raise_fraction(settings, needed - there)}, or {lower}"


def _fewer_at_once(_: Match, settings: LaunchSettings | None) -> str:
    ways = [
        _halved("max_num_batched_tokens", settings.max_num_batched_tokens if settings else None),
        _halved("max_num_seqs", settings.max_num_seqs if settings else None),
    ]
    return f"{' or '.join(ways)}, or use a quantised model"


def _fewer_sequences(match: Match, _: LaunchSettings | None) -> str:
    return f"{_halved('max_num_seqs', int(match[1]))}, or lower gpu_memory_utilization"


def _halved(key: str, now: int | None) -> str:
    return f"set {key} to {now // 2}" if now is not None and now >= _SMALLEST_HALVED else f"lower {key}"


def _smaller_cache(match: Match, _: LaunchSettings | None) -> str:
    free = int(float(match[1]) * _PRUDENT)
    size = f" to {free}G" if free else ""
    return f"lower kv_cache_memory_bytes{size}, or gpu_memory_utilization where it is not set, or free memory"


_GIB = r"(-?\d{1,9}(?:\.\d{1,9})?)"
_NAME = r"(\S{1,200}?)"


def _row(pattern: str, cause: str, hint: Hint, retry: Retry) -> Failure:
    return Failure(re.compile(pattern), cause, hint, retry)


_MEMORY = (
    _row(
        rf"Free memory on device .{{0,40}}?\({_GIB}/{_GIB} GiB\).{{0,40}}? less than desired .{{0,40}}?"
        rf"\({_GIB}, {_GIB} GiB\)",
        "the fraction {3} needs {4} GiB, but only {1} of {2} GiB are free on the GPU",
        _largest_fraction,
        "yes",
    ),
    _row(
        rf"Available memory on node .{{0,20}}?\({_GIB}/{_GIB} GiB\).{{0,20}}? less than desired .{{0,40}}?"
        rf"\({_GIB}, {_GIB} GiB\)",
        "the fraction {3} needs {4} GiB, but only {1} of {2} GiB of the host's memory are free",
        _largest_fraction,
        "yes",
    ),
    _row(
        r"No available memory for the cache blocks|less than requested memory for kv \(-",
        "the fraction does not even hold the model's weights; nothing is left for the KV cache",
        _room_for_weights,
        "no",
    ),
    _row(
        rf"Available memory on node .{{0,20}}?\({_GIB}/{_GIB} GiB\) on kv cache allocation is less than "
        rf"requested memory for kv \({_GIB}",
        "a KV cache of {3} GiB does not fit into the {1} GiB of the host's memory that are free",
        _smaller_cache,
        "yes",
    ),
    _row(
        rf"max seq len \((\d{{1,12}})\).{{0,40}}?{_GIB} GiB KV cache is needed.{{0,80}}?\({_GIB} GiB\)"
        r".{0,80}?estimated maximum model length is (\d{1,12})",
        "a request of {1} tokens needs {2} GiB of KV cache, and there are {3} GiB",
        "set max_model_len to {4} or less, or use `kv_cache_dtype: fp8`, or raise gpu_memory_utilization",
        "no",
    ),
    _row(
        rf"max seq len \((\d{{1,12}})\).{{0,40}}?{_GIB} GiB KV cache is needed.{{0,80}}?\({_GIB} GiB\)",
        "a request of {1} tokens needs {2} GiB of KV cache, and there are {3} GiB",
        _room_for_a_request,
        "no",
    ),
    _row(
        r"Cannot auto-fit max_model_len",
        "the KV cache does not hold a single token",
        _room_for_a_token,
        "no",
    ),
    _row(
        rf"Error in memory profiling.{{0,10}}?Initial free memory {_GIB} GiB, current free memory {_GIB} GiB",
        "another process gave back GPU memory while this engine measured it ({1}, then {2} GiB free)",
        "nothing to change: the next start measures again",
        "yes",
    ),
    _row(
        r"out of memory occurred when warming up \w{1,20} with (\d{1,9}) dummy requests",
        "GPU memory ran out while warming up with {1} requests at once",
        _fewer_sequences,
        "limited",
    ),
    _row(
        rf"CUDA out of memory.{{0,20}}?Tried to allocate {_GIB} ([MG]iB)",
        "CUDA out of memory: {1} {2} more could not be allocated",
        _fewer_at_once,
        "limited",
    ),
    _row(
        r"CUDA out of memory|CUDA error: out of memory|not enough GPU memory",
        "CUDA out of memory",
        _fewer_at_once,
        "limited",
    ),
)

_DEVICE = (
    _row(
        r"illegal memory access|\bXid\b|unspecified launch failure|uncorrectable ECC",
        "the GPU reported a fault",
        "look for `Xid` in the kernel's log (`journalctl -k`): a recurring fault may be the hardware's",
        "yes",
    ),
    _row(
        r"driver on your system is too old|no kernel image is available|driver version is insufficient",
        "the NVIDIA driver and this build of vLLM do not fit together",
        "update the driver, or install a vLLM built for it: `memoria setup --vllm VERSION`",
        "no",
    ),
    _row(
        r"Failed to infer device type|No CUDA GPUs are available|no NVIDIA driver on your system",
        "vLLM sees no GPU",
        "check `nvidia-smi`; without a GPU use `device: cpu` and `memoria setup --cpu`",
        "no",
    ),
    _row(
        r"Bfloat16 is only supported on GPUs",
        "this GPU is too old for bfloat16",
        "set `dtype: half`",
        "no",
    ),
    _row(
        rf"quantization method {_NAME} is not supported for the current GPU",
        "this GPU is too old for the quantization {1}",
        "choose a model with another quantization",
        "no",
    ),
)

_MODEL = (
    _row(
        r"Loading lora (\S{1,200}) failed: No adapter found for (\S{1,200})",
        "there is no LoRA adapter {1} at {2}",
        "check `lora_modules`: a directory that exists, or a name like `organisation/adapter`",
        "no",
    ),
    _row(
        r"gated repo|GatedRepoError|401 Client Error|403 Client Error",
        "the model is gated: its hub requires an account that has accepted its licence",
        "accept the licence on the model's page and set HF_TOKEN",
        "no",
    ),
    _row(
        r"LocalEntryNotFoundError|outgoing traffic has been disabled",
        "the model is not in the local cache and the hub cannot be reached",
        "check `model`; unset HF_HUB_OFFLINE, or download the model first",
        "no",
    ),
    _row(
        r"HFValidationError: .{0,200}?: '(.{1,200}?)'\.?(?:\n|$)",
        "there is no model at {1}",
        "check `model`: a directory that exists, or a name like `organisation/model`",
        "no",
    ),
    _row(
        r"Repository Not Found|RepositoryNotFoundError|HFValidationError|is not a local folder",
        "the model was not found",
        "check `model`: a directory that exists, or a name like `organisation/model`",
        "no",
    ),
    _row(
        rf"Model architectures? \[?{_NAME}\]? (?:are|is) not supported",
        "this vLLM does not support the architecture {1}",
        "a newer vLLM may: `memoria setup --vllm VERSION`",
        "no",
    ),
    _row(
        rf"model type {_NAME} but Transformers does not recognize this architecture",
        "this vLLM's transformers does not support the model type {1}",
        "a newer vLLM may: `memoria setup --vllm VERSION`",
        "no",
    ),
    _row(
        r"trust_remote_code=True",
        "the model comes with code of its own, which vLLM would have to run",
        "review that code, then set `trust_remote_code: true`",
        "no",
    ),
    _row(
        r"max_model_len \((\d{1,12})\) is greater than the derived max_model_len \(\w{1,60}=(\d{1,12})",
        "max_model_len {1} is longer than the {2} that the model was made for",
        "set max_model_len to {2} or less",
        "no",
    ),
    _row(
        r"Can't load tokenizer|Couldn't instantiate the backend tokenizer|Failed to load the tokenizer",
        "the model's tokenizer is missing or cannot be read",
        "put tokenizer.json beside the model, or name another one with `args: {{tokenizer: ...}}`",
        "no",
    ),
    _row(
        rf"Cannot find any model weights with {_NAME}(?:\s|$)",
        "there are no weights in {1}",
        "download the model again, or check `model`",
        "no",
    ),
    _row(
        r"SafetensorError|deserializing header",
        "a weights file is damaged or was not downloaded completely",
        "delete the file and download the model again",
        "no",
    ),
    _row(
        r"(?m)^MemoryError(?::|$)",
        "the host's memory ran out, or a weights file is not what its name says (an HTML page, say)",
        "`memoria plan` checks the headers of the weights; download the model again if they are damaged",
        "limited",
    ),
    _row(
        r"JSONDecodeError: ",
        "one of the model's JSON files is damaged",
        "download the model again: config.json, tokenizer.json and the like",
        "no",
    ),
)

_START = (
    _row(
        r"chat template string \((.{1,200}?)\) appears path-like, but doesn't exist",
        "there is no chat template at {1}",
        "check `chat_template`: a file that exists, or the template itself",
        "no",
    ),
    _row(
        r"Errno 98\b|[Aa]ddress already in use",
        "another process listens on the engine's port or socket",
        "find it with `ss -ltnp`, or choose another `port`",
        "yes",
    ),
    _row(
        r"unrecognized arguments: (.{1,200})",
        "this vLLM does not know the flag {1}",
        "remove it from the engine's `args`, or correct its name",
        "no",
    ),
    _row(
        r": error: argument (\S{1,80}): (.{1,200})",
        "vLLM refuses {1}: {2}",
        "correct it in the engine's configuration",
        "no",
    ),
    _row(
        r"validation errors? for \w{1,80}\n\s*Value error, (.{1,200}?)(?:\. | \[type=|\n|$)",
        "vLLM refuses the configuration: {1}",
        "correct it in the engine's configuration",
        "no",
    ),
    _row(
        r"validation errors? for \w{1,80}\n(\w{1,80})\n\s*(.{1,200}?)(?: \[type=|\n|$)",
        "vLLM refuses {1}: {2}",
        "correct it in the engine's configuration",
        "no",
    ),
    _row(
        r"No space left on device|os error 28\b",
        "a disk is full",
        "free some space: usually in the model cache, /tmp or /dev/shm (`df -h`)",
        "yes",
    ),
    _row(
        r"Timed out waiting for engine core.{0,100}?Waited (\d{1,9})\s?s",
        "the engine core was not up after {1} s",
        "give it longer: `timeouts: {{start: ...}}` and `env: {{VLLM_ENGINE_READY_TIMEOUT_S: ...}}`",
        "yes",
    ),
)

_SECTIONS: Mapping[Kind, Sequence[Failure]] = {
    "memory": _MEMORY,
    "device": _DEVICE,
    "model": _MODEL,
    "start": _START,
}
FAILURES = tuple(replace(row, kind=kind) for kind, rows in _SECTIONS.items() for row in rows)
