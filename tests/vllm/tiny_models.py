"""Tiny models of many architectures (`tiny_configs`), with the demo's tokenizer and no weights, and what real
vLLM says of them.

`python -m tests.vllm.tiny_models PYTHON` starts real vLLM for each and writes tests/data/kv_cache.json, which
the planner's unit tests compare with. PYTHON is that of the CPU build's environment; names of models after it
choose some. Exits with 1 where a model does not start.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.demo_models import tokenizer, tokenizer_config
from tests.ports import free_ports
from tests.vllm.tiny_configs import MODELS

RECORDS = Path(__file__).parents[1] / "data" / "kv_cache.json"
_KV = re.compile(
    r"KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x"
)
COMMON: Mapping[str, Any] = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 64_000_000}


def write_model(folder: Path, config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config()))


def flags(own: Mapping[str, Any]) -> dict[str, Any]:
    return {**COMMON, **{name: value for name, value in own.items() if name != "runner"}}


@contextmanager
def started(python: str, folder: Path, own: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """vLLM's API server with its log as standard output; killed at the end with all its processes."""
    arguments = []
    for name, value in flags(own).items():
        arguments += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    (port,) = free_ports(1)
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder),
        "--load-format",
        "dummy",
    ]
    command += [
        "--runner",
        own.get("runner", "generate"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *arguments,
    ]
    process = subprocess.Popen(
        command,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            "PATH": f"{Path(python).parent}:/usr/bin:/bin",
            "HOME": str(Path.home()),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        },
    )
    try:
        yield process
    finally:
        # Its engine core outlives it otherwise, and keeps its memory.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def logged(process: subprocess.Popen[str]) -> tuple[dict[str, Any], list[str]]:
    """The KV cache that vLLM logs until it listens; empty for a model without one. The log beside it."""
    log: list[str] = []
    said: dict[str, Any] = {}
    assert process.stdout is not None
    for line in process.stdout:
        log.append(line.rstrip())
        if match := _KV.search(line):
            tokens, length, concurrency = (text.replace(",", "") for text in match.groups())
            said = {"tokens": int(tokens), "max_model_len": int(length), "concurrency": float(concurrency)}
        if "Application startup complete" in line:
            return said, log
    raise AssertionError("vLLM did not start:\n" + "\n".join(log[-60:]))


def version_of(python: str) -> str:
    """Of the vLLM in PYTHON's environment."""
    command = [python, "-c", "from vllm.version import __version__; print(__version__)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


def main(python: str, names: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no engine is left behind
    version = version_of(python)
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    failed = []
    with tempfile.TemporaryDirectory() as place:
        for name in names or MODELS:
            config, own = MODELS[name]
            write_model(Path(place, name), config)
            with started(python, Path(place, name), own) as process:
                try:
                    said, _ = logged(process)
                except AssertionError as error:
                    print(name, error, flush=True)
                    failed.append(name)
                    continue
            record = {"config": config, "flags": flags(own), "pooling": "runner" in own, "vllm": version}
            records[name] = {**record, **said}
            RECORDS.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
            print(name, said, flush=True)
    if failed:
        print("not started:", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
