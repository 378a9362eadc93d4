"""The command line and the environment of one start of one engine.

Flag names are those of `python -m vllm.entrypoints.openai.api_server --help=all` (0.32), variables those of
`vllm/envs.py`. Nothing that costs decode speed is ever added.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from memoria.config.model import Config, DeviceKind, EngineConfig
from memoria.vllm.facts import EngineAddress, TcpAddress, UnixAddress
from memoria.vllm.flags import arguments
from memoria.vllm.install.facts import VllmInstall

# The passenger's entry point in the group `vllm.general_plugins`.
PLUGIN_NAME = "memoria"

# Variables that an engine must not inherit. systemd's and Python's are meant for the daemon; VLLM_API_KEY
# would lock memoria itself out of /v1; the rest configured the Docker predecessor's router, and vLLM warns
# about every VLLM_* name that it does not know.
_SYSTEMD = (
    *("CREDENTIALS_DIRECTORY", "FDSTORE", "INVOCATION_ID", "JOURNAL_STREAM", "MAINPID", "MANAGERPID"),
    *("NOTIFY_SOCKET", "SYSTEMD_EXEC_PID", "CACHE_DIRECTORY", "CONFIGURATION_DIRECTORY", "LOGS_DIRECTORY"),
    *("RUNTIME_DIRECTORY", "STATE_DIRECTORY"),
)
_PYTHON = ("PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")
_VLLM = ("VLLM_API_KEY", "VLLM_SERVER_DEV_MODE")
_PREDECESSOR = (
    *("HEALTH_CHECK_TIMEOUT", "HTTP_TIMEOUT", "LOG_FORMAT", "LOG_LEVEL", "MAX_LOG_LEN"),
    *("MODEL_EMBED_NAME", "MODEL_GEN_NAME", "ROUTER_HOST", "ROUTER_PORT"),
)
_NOT_INHERITED = frozenset({*_SYSTEMD, *_PYTHON, *_VLLM, *_PREDECESSOR})
_NOT_INHERITED_PREFIXES = (
    "LISTEN_",
    "MEMORIA_",
    "MEMORY_PRESSURE_",
    "VLLM_EMBED_",
    "VLLM_GEN_",
    "WATCHDOG_",
)

# The daemon's own environment may override these.
_DEFAULTS = {"DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}

# Only an engine's own `env` may override these.
_ENGINE = {
    "PYTHONUNBUFFERED": "1",
    # the API server must not give up on a core that waits at the gate: memoria's own timeouts.start applies
    "VLLM_ENGINE_READY_TIMEOUT_S": str(7 * 24 * 3600),
    # uvicorn's 5 s would close connections that the proxy keeps for its next request
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
    "VLLM_LOGGING_COLOR": "0",
    # a forked EngineCore inherits `plugins_loaded` and never calls the passenger (vllm/plugins/__init__.py)
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}

# vLLM's access log has query strings and a line per request; memoria keeps its own.
_DEFAULT_ARGS: Mapping[str, Any] = {"disable_uvicorn_access_log": True}

_VERSION = re.compile(r"(\d+)\.(\d+)")
# `store_true` flags have no `--no-` form: False means leaving them out. Where vLLM's options are not known.
_SWITCHES = frozenset({"aggregate_engine_logging", "disable_log_stats", "grpc", "headless"})


@dataclass(frozen=True, slots=True)
class StartFacts:
    """What one start adds to the configuration.

    `start_id` is unique and usable as a file name; `gate_path` is the supervisor's socket for passengers;
    `plugin_dir` is the folder for PYTHONPATH (None: no passenger); `environ` is the daemon's environment;
    `device_uuid` and `device_index` name the GPU as CUDA_VISIBLE_DEVICES accepts it; a slice has no index.
    `mps`: variables of a client of CUDA MPS.
    """

    start_id: str
    socket_dir: str
    gate_path: str | None
    supervisor_pid: int
    plugin_dir: str | None
    environ: Mapping[str, str] = field(repr=False)
    device_uuid: str | None = None
    device_index: int | None = None
    mps: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """All that is needed to spawn an engine. `env` is complete: nothing else is inherited. It may contain
    secrets (HF_TOKEN), so it is never shown."""

    engine: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    address: EngineAddress
    start_id: str


def build_spec(config: Config, engine: EngineConfig, install: VllmInstall, start: StartFacts) -> EngineSpec:
    """`--gpu-memory-utilization` is passed on a CPU too: there it is the share of the host's memory."""
    address = _address(engine, start)
    return EngineSpec(
        engine=engine.name,
        argv=tuple(_argv(engine, install, address)),
        env=_environment(config.device, engine, install, start),
        address=address,
        start_id=start.start_id,
    )


def _address(engine: EngineConfig, start: StartFacts) -> EngineAddress:
    if engine.transport == "uds":
        return UnixAddress(f"{start.socket_dir}/{start.start_id}.sock")
    if engine.port is None:
        raise ValueError(f"{engine.name}: transport tcp without a port")
    return TcpAddress("127.0.0.1", engine.port)


def _argv(engine: EngineConfig, install: VllmInstall, address: EngineAddress) -> Iterator[str]:
    yield from install.command
    yield from (engine.model,) if install.form == "serve" else ("--model", engine.model)
    yield from ("--runner", engine.runner)
    yield from ("--served-model-name", *engine.served_model_name)
    yield from ("--gpu-memory-utilization", format(engine.gpu_memory_utilization, "f"))
    match address:
        case UnixAddress(path):
            yield from ("--uds", path)
        case TcpAddress(host, port):
            yield from ("--host", host, "--port", str(port))
    yield "--enable-request-id-headers"
    options = install.options
    for name, value in {**_DEFAULT_ARGS, **engine.vllm_args, **_sleep_mode(engine)}.items():
        if options is None:
            yield from _flag(name, value)
        elif name in engine.vllm_args or name in options:
            yield from arguments(options.find(name), value)


def _sleep_mode(engine: EngineConfig) -> dict[str, Any]:
    return {"enable_sleep_mode": True} if engine.sleep_level else {}


def _flag(name: str, value: Any) -> Iterator[str]:
    # only the part before a dot is the flag's name, the rest is a key inside it (FlexibleArgumentParser)
    head, dot, key = name.partition(".")
    flag = head.replace("_", "-") + dot + key
    if value is None or value in ("", []):
        return
    if value is False:
        if name not in _SWITCHES:
            yield f"--no-{flag}"
    elif value is True:
        yield f"--{flag}"
    elif isinstance(value, list | tuple):
        yield from (f"--{flag}", *(_text(item) for item in value))
    elif (text := _text(value)).startswith("-"):
        yield f"--{flag}={text}"
    else:
        yield from (f"--{flag}", text)


def _text(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, separators=(",", ":"))
    return str(value)


def _environment(
    device: DeviceKind, engine: EngineConfig, install: VllmInstall, start: StartFacts
) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in start.environ.items()
        if name not in _NOT_INHERITED and not name.startswith(_NOT_INHERITED_PREFIXES)
    }
    own = {name: value for name, value in engine.env.items() if not name.startswith("MEMORIA_")}
    env = _DEFAULTS | inherited | _ENGINE | _device(device, install, start) | _path(install, inherited) | own
    env.update(start.mps)
    if start.plugin_dir is not None:
        env["PYTHONPATH"] = _joined(start.plugin_dir, env.get("PYTHONPATH"))
        if "VLLM_PLUGINS" in env:
            env["VLLM_PLUGINS"] = _with_passenger(env["VLLM_PLUGINS"])
    if engine.sleep_level:  # its routes for it, on a socket that only memoria reaches
        env["VLLM_SERVER_DEV_MODE"] = "1"
    if start.gate_path is not None:
        env["MEMORIA_GATE"] = start.gate_path
    env["MEMORIA_ENGINE"] = engine.name
    env["MEMORIA_START"] = start.start_id
    env["MEMORIA_SUPERVISOR_PID"] = str(start.supervisor_pid)
    return env


def reads_uuids(version: str | None) -> bool:
    """Whether that vLLM takes UUIDs in CUDA_VISIBLE_DEVICES: from 0.24 on; before, `int()` fails
    (`device_id_to_physical_device_id` in vllm/platforms/interface.py). Unknown versions are taken for new."""
    numbers = _VERSION.match(version or "")
    return numbers is None or (int(numbers[1]), int(numbers[2])) >= (0, 24)


def _device(device: DeviceKind, install: VllmInstall, start: StartFacts) -> dict[str, str]:
    if device == "cpu" or start.device_uuid is None:
        return {}
    name = start.device_uuid
    if start.device_index is not None and not reads_uuids(install.version):
        name = str(start.device_index)
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": name}


def _path(install: VllmInstall, inherited: Mapping[str, str]) -> dict[str, str]:
    """FlashInfer compiles with the `ninja` beside vLLM's Python, which only an activated environment has on
    PATH."""
    program = PurePath(install.command[0])
    if not program.is_absolute():
        return {}
    return {"PATH": _joined(str(program.parent), inherited.get("PATH"))}


def _joined(first: str, rest: str | None) -> str:
    return f"{first}{os.pathsep}{rest}" if rest else first


def _with_passenger(allowed: str) -> str:
    names = [name for name in allowed.split(",") if name]
    return ",".join(names if PLUGIN_NAME in names else [*names, PLUGIN_NAME])
