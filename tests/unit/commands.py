"""One engine and one start of it, for the tests of what is called and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from memoria.config.model import Address, Config, EngineConfig, Limits, Logging, Restart, Timeouts
from memoria.vllm.command import EngineSpec, StartFacts, build_spec
from memoria.vllm.install.facts import VllmInstall

SERVE = VllmInstall(("/opt/vllm/bin/vllm", "serve"), "serve", "0.33.0", "cuda", Path("/opt/vllm"))
MODULE = VllmInstall(
    ("/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server"), "module", "0.32.0", "cpu", None
)
ENGINE = EngineConfig(
    name="generation",
    model="Qwen/Qwen3-4B",
    runner="generate",
    served_model_name=("Qwen/Qwen3-4B", "chat"),
    gpu=0,
    gpu_memory_utilization=Decimal("0.60"),
    port=8101,
    transport="uds",
    vllm_args={},
    env={},
)
CONFIG = Config(
    path=None,
    listen=Address("127.0.0.1", 8200),
    device="cuda",
    gpu_limit=Decimal("0.95"),
    vllm="auto",
    timeouts=Timeouts(),
    restart=Restart(),
    limits=Limits(),
    logging=Logging(),
    runtime_dir=Path("/run/memoria"),
    engines=(ENGINE,),
)
START = StartFacts(
    start_id="g7",
    socket_dir="/run/memoria",
    gate_path="/run/memoria/gate.sock",
    supervisor_pid=41,
    plugin_dir="/lib/plugin",
    environ={"PATH": "/usr/bin", "HOME": "/home"},
    device_uuid="GPU-1",
)


def spec(
    args: Mapping[str, Any] | None = None,
    *,
    engine: EngineConfig = ENGINE,
    install: VllmInstall = SERVE,
    config: Config = CONFIG,
    environ: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    start: StartFacts = START,
) -> EngineSpec:
    engine = replace(engine, vllm_args=args or engine.vllm_args, env=env or engine.env)
    start = replace(start, environ=START.environ if environ is None else environ)
    return build_spec(config, engine, install, start)
