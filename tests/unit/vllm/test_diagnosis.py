"""Logs in tests/data/logs are vLLM 0.32's own (CPU build, shortened); the messages of GPUs and of the hub are
the texts of their sources."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from memoria.vllm.diagnosis import Diagnosis, diagnose
from memoria.vllm.facts import ExitStatus, LaunchSettings

OOM_VALUES = "set max_num_batched_tokens to 4096 or set max_num_seqs to 128, or use a quantised model"
LOGS = Path(__file__).parents[2] / "data" / "logs"
FAILED = ExitStatus(code=1)


def log(name: str) -> list[str]:
    return (LOGS / f"{name}.log").read_text().splitlines()


def of(*lines: str) -> Diagnosis:
    return diagnose(["Traceback (most recent call last):", '  File "x.py", line 1, in main', *lines], FAILED)


@pytest.mark.parametrize(
    ("name", "cause", "hint", "retry"),
    [
        ("unknown_flag", "does not know the flag --max-num-seq-count", "`args`", "no"),
        ("unknown_choice", "refuses --runner: invalid choice: 'pool'", "configuration", "no"),
        ("missing_model", "no model at ./nothere", "organisation/model", "no"),
        ("not_in_the_cache", "not in the local cache", "HF_HUB_OFFLINE", "no"),
        ("longer_than_the_model", "99999 is longer than the 2048", "max_model_len to 2048", "no"),
        ("kv_cache_too_small", "a request of 2048 tokens needs", "max_model_len to 896", "no"),
        (
            "no_room_for_weights",
            "does not even hold the model's weights",
            "raise gpu_memory_utilization",
            "no",
        ),
        ("host_memory_taken", "1.0 needs 7.59 GiB, but only 6.3 of 7.59", "0.83 or less", "yes"),
        ("port_taken", "listens on the engine's port", "`port`", "yes"),
        ("socket_taken", "listens on the engine's port or socket", "ss -ltnp", "yes"),
        ("unknown_architecture", "the architecture 'NoSuchForCausalLM'", "memoria setup", "no"),
        ("unknown_model_type", "the model type `nosuch`", "memoria setup", "no"),
        ("code_of_its_own", "comes with code of its own", "trust_remote_code: true", "no"),
        ("no_weights", "no weights in `./noweights`", "download", "no"),
        (
            "fraction_over_one",
            "gpu_memory_utilization: Input should be less than or equal to 1",
            "correct",
            "no",
        ),
        ("weights_cut_off", "a weights file is damaged", "download the model again", "no"),
        ("weights_are_a_page", "not what its name says", "memoria plan", "limited"),
        ("tokenizer_missing", "tokenizer is missing", "tokenizer.json", "no"),
        ("tokenizer_damaged", "JSON files is damaged", "tokenizer.json", "no"),
        ("configuration_damaged", "JSON files is damaged", "config.json", "no"),
        (
            "kv_cache_larger_than_the_host",
            "838.19 GiB does not fit into the 6.9",
            "kv_cache_memory_bytes",
            "yes",
        ),
        ("batch_smaller_than_a_request", "(512) is smaller than max_model_len (2048)", "correct", "no"),
        ("unknown_quantization", "Unknown quantization method: nosuch", "correct", "no"),
    ],
)
def test_vllms_own_logs_are_explained(name: str, cause: str, hint: str, retry: str) -> None:
    code = 2 if name in {"unknown_flag", "unknown_choice"} else 1
    found = diagnose(log(name), ExitStatus(code=code))
    assert cause in found.cause
    assert hint in found.hint
    assert found.retry == retry


@pytest.mark.parametrize(
    ("line", "cause", "hint", "retry"),
    [
        (
            "ValueError: Loading lora sql failed: No adapter found for /srv/style",
            "there is no LoRA adapter sql at /srv/style",
            "`lora_modules`",
            "no",
        ),
        (
            "VLLMValidationError: The supplied chat template string (/srv/chat.jinja) appears "
            "path-like, but doesn't exist! Tried: /srv/chat.jinja and /x/chat.jinja",
            "there is no chat template at /srv/chat.jinja",
            "`chat_template`",
            "no",
        ),
        (
            "ValueError: Free memory on device cuda:0 (60.1/139.7 GiB) on startup is less than desired "
            "GPU memory "
            "utilization (0.6, 83.82 GiB). Decrease GPU memory utilization or reduce GPU memory used by "
            "other "
            "processes.",
            "the fraction 0.6 needs 83.82 GiB, but only 60.1 of 139.7 GiB are free on the GPU",
            "gpu_memory_utilization to 0.43 or less",
            "yes",
        ),
        (
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
            "nothing is left for the KV cache",
            "raise gpu_memory_utilization",
            "no",
        ),
        (
            "ValueError: To serve at least one request with the model's max seq len (262144), (36.0 GiB "
            "KV cache is "
            "needed, which is larger than the available KV cache memory (0.01 GiB). Try increasing",
            "a request of 262144 tokens needs 36.0 GiB of KV cache, and there are 0.01 GiB",
            "raise gpu_memory_utilization",
            "no",
        ),
        (
            "ValueError: Cannot auto-fit max_model_len: not enough GPU memory available to serve even a "
            "single token.",
            "does not hold a single token",
            "smaller model",
            "no",
        ),
        (
            "AssertionError: Error in memory profiling. Initial free memory 60.1 GiB, current free "
            "memory 88.0 GiB. "
            "This happens when other processes sharing the same container release GPU memory",
            "gave back GPU memory",
            "measures again",
            "yes",
        ),
        (
            "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. "
            "Please try",
            "warming up with 1024 requests",
            "set max_num_seqs to 512",
            "limited",
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total "
            "capacity of",
            "2.50 GiB more could not be allocated",
            "max_num_batched_tokens",
            "limited",
        ),
        ("RuntimeError: CUDA error: out of memory", "CUDA out of memory", "quantised", "limited"),
        (
            "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
            "the GPU reported a fault",
            "Xid",
            "yes",
        ),
        (
            "RuntimeError: The NVIDIA driver on your system is too old (found version 12040).",
            "driver and this build of vLLM do not fit",
            "update the driver",
            "no",
        ),
        ("RuntimeError: No CUDA GPUs are available", "vLLM sees no GPU", "device: cpu", "no"),
        ("RuntimeError: Failed to infer device type, please set", "vLLM sees no GPU", "nvidia-smi", "no"),
        (
            "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.",
            "too old for bfloat16",
            "dtype: half",
            "no",
        ),
        (
            "ValueError: The quantization method fp8 is not supported for the current GPU. Minimum "
            "capability: 89.",
            "too old for the quantization fp8",
            "another quantization",
            "no",
        ),
        (
            "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1)",
            "the model is gated",
            "HF_TOKEN",
            "no",
        ),
        (
            "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error.",
            "the model was not found",
            "check `model`",
            "no",
        ),
        (
            "OSError: Can't load tokenizer for 'x'. If you were trying to load it from",
            "tokenizer is missing",
            "tokenizer.json",
            "no",
        ),
        (
            "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
            "a weights file is damaged",
            "download the model again",
            "no",
        ),
        ("OSError: [Errno 28] No space left on device", "a disk is full", "df -h", "yes"),
        (
            "TimeoutError: Timed out waiting for engine core processes to start. This is often caused by "
            "slow weight "
            "loading for large models. Waited 600s (configured by VLLM_ENGINE_READY_TIMEOUT_S).",
            "not up after 600 s",
            "VLLM_ENGINE_READY_TIMEOUT_S",
            "yes",
        ),
        (
            "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8100): in use",
            "listens on the engine's port",
            "`port`",
            "yes",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_messages_of_gpus_hubs_and_disks_are_explained(line: str, cause: str, hint: str, retry: str) -> None:
    found = of(line)
    assert cause in found.cause
    assert hint in found.hint
    assert found.retry == retry


def test_the_first_error_counts_and_not_its_echo() -> None:
    found = of(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.",
        "Traceback (most recent call last):",
        "OSError: [Errno 28] No space left on device",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    )
    assert found.cause == "CUDA out of memory: 20.00 MiB more could not be allocated"


def test_an_error_quoted_in_a_warning_does_not_count() -> None:
    found = diagnose(
        [
            "WARNING 11-23 14:22:11 [system_utils.py:255] like `OSError: [Errno 28] No space left on "
            "device`.",
            "usage: api_server.py [-h] [--trust-remote-code] CUDA out of memory",
            "(EngineCore pid=1) ERROR 11-23 14:22:11 [core.py:1510] KeyError: 'model.norm'",
        ],
        FAILED,
    )
    assert found.cause == "KeyError: 'model.norm'"


def test_an_unknown_error_is_quoted() -> None:
    found = diagnose(log("core_fails_while_serving"), ExitStatus(code=0))
    assert found.cause == (
        "RuntimeError: Unsupported CPU attention configuration: head_dim=16 isa=2 kv_cache_idx=0"
    )
    assert found.retry == "yes"


def test_a_quote_is_kept_short() -> None:
    assert len(of("ValueError: " + "x" * 4000).cause) < 320


@pytest.mark.parametrize(
    ("number", "cause", "retry"),
    [
        (signal.SIGKILL, "killed by SIGKILL", "yes"),
        (signal.SIGILL, "the processor lacks an instruction", "no"),
        (signal.SIGSEGV, "crashed in native code (SIGSEGV)", "yes"),
        (signal.SIGTERM, "ended by a signal from outside (SIGTERM)", "yes"),
    ],
)
def test_a_signal_without_a_traceback_is_explained(number: int, cause: str, retry: str) -> None:
    found = diagnose(["INFO:     Application startup complete."], ExitStatus(signal=number))
    assert found.cause.startswith(cause)
    assert found.retry == retry


def test_an_old_error_does_not_explain_a_kill() -> None:
    found = diagnose(["OSError: [Errno 28] No space left on device"], ExitStatus(signal=signal.SIGKILL))
    assert "SIGKILL" in found.cause


@pytest.mark.parametrize(
    "line",
    [
        "ERROR 11-23 14:22:11 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly "
        "(exit code: -4), shutting down executor.",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): "
        "{'EngineCore': -4}",
    ],
)
def test_the_signal_that_ended_a_child_is_explained(line: str) -> None:
    found = diagnose([line], FAILED)
    assert "SIGILL" in found.cause
    assert "dtype" in found.hint


@pytest.mark.parametrize("name", ["core_killed_while_busy", "core_killed_while_idle"])
def test_an_engine_core_that_vanished_points_at_the_hosts_memory(name: str) -> None:
    found = diagnose(log(name), ExitStatus(code=0))
    assert "engine core died without an error" in found.cause
    assert "oom" in found.hint
    assert found.retry == "yes"


@pytest.mark.parametrize("tail", [[], log("start_cpu")])
def test_silence_is_said_to_be_silence(tail: Sequence[str]) -> None:
    assert diagnose(tail, ExitStatus(code=0)).cause == "exited 0 without an error in its log"


@pytest.mark.parametrize(
    "line",
    [
        "ValueError: " + "max seq len (1" * 300,
        "ValueError: Free memory on device " + "(1/1 GiB)" * 500,
        "HFValidationError: " + ": '" * 2000,
        "RuntimeError: 1 validation error for X\n" + " " * 4000,
        "." * 4096,
        "Error." * 700,
        "a" * 4096 + "Error",
    ],
    ids=lambda line: line[:30],
)
def test_a_hostile_log_does_not_hold_up_the_reader(line: str) -> None:
    """An expression that backtracks would hang here; what such a log says does not matter."""
    diagnose([line] * 400, FAILED)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (ExitStatus(code=1), "exited 1"),
        (ExitStatus(signal=signal.SIGKILL), "killed by SIGKILL"),
        (ExitStatus(signal=99), "killed by signal 99"),
        (ExitStatus(signal=11), "killed by SIGSEGV"),
        (ExitStatus(code=0), "exited 0"),
        (ExitStatus(), "ended"),
    ],
    ids=str,
)
def test_an_exit_status_reads_as_a_phrase(status: ExitStatus, text: str) -> None:
    assert str(status) == text


SETTINGS = LaunchSettings(Decimal("0.60"), 24 * 2**30, max_num_seqs=256, max_num_batched_tokens=8192)
NO_ROOM = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"
TOO_LONG = (
    "ValueError: To serve at least one request with the model's max seq len (262144), (36.0 GiB KV cache is "
    "needed, which is larger than the available KV cache memory (4.5 GiB)."
)


@pytest.mark.parametrize(
    ("line", "settings", "hint"),
    [
        (NO_ROOM, {"kv_gib": -2.4}, "raise gpu_memory_utilization to 0.72, or choose"),
        (NO_ROOM, {}, "raise gpu_memory_utilization to 0.65, or choose"),
        (NO_ROOM, {"kv_gib": -12.0}, "raise gpu_memory_utilization, or choose"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB.", {}, OOM_VALUES),
        ("RuntimeError: CUDA error: out of memory", {}, OOM_VALUES),
        (
            "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests.",
            {},
            "set max_num_seqs to 512, or lower gpu_memory_utilization",
        ),
        (TOO_LONG, {}, "raise gpu_memory_utilization, or set max_model_len to 32768"),
        (
            TOO_LONG.replace("36.0", "6.0"),
            {},
            "raise gpu_memory_utilization to 0.67, or set max_model_len to 196608",
        ),
        (
            "ValueError: Cannot auto-fit max_model_len: not enough GPU memory available",
            {},
            "raise gpu_memory_utilization to 0.65, or choose a smaller model",
        ),
    ],
)
def test_the_value_to_try_is_said(line: str, settings: dict[str, Any], hint: str) -> None:
    found = diagnose(["Traceback (most recent call last):", line], FAILED, replace(SETTINGS, **settings))
    assert found.hint.startswith(hint)


def test_no_value_below_one_is_proposed() -> None:
    found = diagnose(["RuntimeError: CUDA error: out of memory"], FAILED, replace(SETTINGS, max_num_seqs=1))
    assert "lower max_num_seqs" in found.hint


@pytest.mark.parametrize(
    ("tail", "ending"),
    [
        ([], ExitStatus(signal=signal.SIGKILL)),
        (["EngineDeadError: EngineCore encountered an issue."], ExitStatus(code=0)),
        (["ERROR Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down"], FAILED),
    ],
    ids=["leader", "core", "worker"],
)
def test_an_out_of_memory_kill_is_the_cause_where_the_cgroup_counted_one(
    tail: list[str], ending: ExitStatus
) -> None:
    killed = diagnose(tail, ending, replace(SETTINGS, oom_kill=True))
    assert killed.cause.startswith("the host's memory ran out")
    assert killed.retry == "yes"
    assert "oom_kill" not in diagnose(tail, ending, SETTINGS).cause


@pytest.mark.parametrize(
    ("tail", "ending"),
    [([], ExitStatus(signal=signal.SIGKILL)), (log("core_killed_while_busy"), ExitStatus(code=0))],
    ids=["leader", "core"],
)
def test_a_kill_by_hand_is_not_blamed_on_memory(tail: Sequence[str], ending: ExitStatus) -> None:
    """Nor is memory excluded where the kernel does not say."""
    killed = diagnose(tail, ending, replace(SETTINGS, oom_kill=False))
    assert "the kernel has killed nothing for memory" in killed.cause
    assert "ran out" not in killed.cause
    assert "journalctl" not in killed.hint
    assert killed.retry == "yes"
    assert "ran out of memory" in diagnose(tail, ending, SETTINGS).cause


def test_an_error_in_the_log_counts_before_a_kill_in_the_cgroup() -> None:
    found = diagnose([NO_ROOM], FAILED, replace(SETTINGS, oom_kill=True))
    assert "does not even hold" in found.cause
    found = diagnose([], ExitStatus(signal=signal.SIGSEGV), replace(SETTINGS, oom_kill=True))
    assert "native code" in found.cause
