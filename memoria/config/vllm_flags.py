"""vLLM's flags under `args` and variables under `env`: which are refused, and what to use instead.

Works on the tree as read, before validation, so that every problem keeps its line. vLLM's parser also accepts
any unique prefix of a flag (argparse's `allow_abbrev`), so prefixes of a refused name are refused, too.
"""

from __future__ import annotations

import json
import re
from typing import Any

from memoria.config.dropped_flags import SUCCESSORS
from memoria.config.model import ConfigPath
from memoria.config.report import Report
from memoria.config.schema import VLLM_KEYS
from memoria.config.yaml import Node, Scalar

_FLAG = re.compile(r"[a-z][a-z0-9_.]*", re.IGNORECASE)
_INTEGER = re.compile(r"-\d+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_OWN_KEY = "it has a key of its own: write `{key}` beside `args`"
_ADDRESS = "clients talk to `listen`, or to the engine's `port`; memoria alone talks to vLLM"
_ONE_GPU = "an engine lives on one GPU: choose it with `gpu`"
_LOG = "memoria follows an engine's start in its log"
REFUSED_FLAGS = {
    "model": _OWN_KEY.format(key="model"),
    "model_tag": _OWN_KEY.format(key="model"),
    "runner": _OWN_KEY.format(key="runner"),
    "served_model_name": _OWN_KEY.format(key="served_model_name"),
    "gpu_memory_utilization": _OWN_KEY.format(key="gpu_memory_utilization"),
    "device_memory_utilization": _OWN_KEY.format(key="gpu_memory_utilization"),
    "trust_remote_code": _OWN_KEY.format(key="trust_remote_code"),
    "port": _OWN_KEY.format(key="port"),
    "device_ids": _OWN_KEY.format(key="gpu"),
    "host": _ADDRESS,
    "uds": _ADDRESS,
    "grpc_port": _ADDRESS,
    "root_path": _ADDRESS,
    "enable_ssl_refresh": _ADDRESS,
    **dict.fromkeys(
        ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers"), _ADDRESS
    ),
    "api_key": "an engine needs no key, as memoria alone talks to it",
    "hf_token": 'every user can read command lines: write `env: {HF_TOKEN: "${HF_TOKEN}"}`',
    "enable_request_id_headers": "memoria always sets it",
    "config": "write its flags under `args`",
    "headless": _ONE_GPU,
    "tensor_parallel_size": _ONE_GPU,
    "pipeline_parallel_size": _ONE_GPU,
    **dict.fromkeys(("nnodes", "node_rank", "master_addr", "master_port"), _ONE_GPU),
    **dict.fromkeys(("uvicorn_log_level", "log_level", "log_config_file", "logging_config"), _LOG),
}
# Values of refused flags that change nothing.
HARMLESS = {
    **dict.fromkeys(("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "nnodes"), 1),
    "node_rank": 0,
    "headless": False,
}
_REFUSED_VARIABLES = {
    "CUDA_VISIBLE_DEVICES": "choose the GPU with `gpu`",
    "CUDA_DEVICE_ORDER": "memoria counts GPUs as `nvidia-smi` does",
    "VLLM_API_KEY": "an engine needs no key, as memoria alone talks to it",
    "VLLM_SERVER_DEV_MODE": "it opens routes that control the engine",
}
_REFUSED_PREFIXES = {
    "MEMORIA_": "these names are memoria's own",
    "LISTEN_": "systemd's variables are for memoria alone",
    "NOTIFY_": "systemd's variables are for memoria alone",
    "WATCHDOG_": "systemd's variables are for memoria alone",
}


def sort_flags(engine: dict[str, Node], path: ConfigPath, report: Report) -> None:
    """Normalizes the names under `args` in place (`--max-num-seqs`, `max-num-seqs` -> `max_num_seqs`), and
    moves flags that have a key of their own to that key."""
    args = engine.get("args")
    if not isinstance(args, dict):
        return
    sorted_args: dict[str, Node] = {}
    for written, value in args.items():
        here = (*path, "args", written)
        flag = written.removeprefix("--").replace("-", "_")
        target, home = (engine, (*path, flag)) if flag in VLLM_KEYS else (sorted_args, (*path, "args", flag))
        harmless = isinstance(value, Scalar) and flag in HARMLESS and value.value == HARMLESS[flag]
        if (not harmless and _refuse(written, flag, here, report)) or _refuse_value(value, here, report):
            continue
        if target.get(flag) is not None:
            report.error(f"`{flag}` is given twice", here, also=(home,), hint="keep one of them")
            continue
        target[flag] = value
        report.move(here, home)
    engine["args"] = sorted_args


def refusal(flag: str) -> str | None:
    """What to do instead of a flag of vLLM's that is not for `args`, by its name with underscores."""
    name = flag.removeprefix("no_").partition(".")[0]
    if name.startswith("data_parallel"):
        return _ONE_GPU
    if name in SUCCESSORS:  # and, by chance, the beginning of another
        return None
    return next((hint for refused, hint in REFUSED_FLAGS.items() if refused.startswith(name)), None)


def _refuse(written: str, flag: str, here: ConfigPath, report: Report) -> bool:
    if not _FLAG.fullmatch(flag):
        report.error(
            f"`{written}` is not the name of a vLLM flag", here, hint="flags are named as in --max-num-seqs"
        )
        return True
    if (hint := refusal(flag)) is None:
        return False
    report.error(f"`{written}` is not for `args`", here, hint=hint)
    return True


def _refuse_value(value: Node, here: ConfigPath, report: Report) -> bool:
    """Only items of a list stand alone on the command line; another value is written as `--flag=value`."""
    items = value if isinstance(value, list) else ()
    if any(
        isinstance(item, Scalar) and item.startswith("-") and not _INTEGER.fullmatch(item) for item in items
    ):
        report.error(
            "vLLM would take an item of this list for a flag", here, hint="items do not begin with `-`"
        )
        return True
    return False


def check_variables(engine: dict[str, Node], path: ConfigPath, report: Report) -> None:
    env = engine.get("env")
    for name in env if isinstance(env, dict) else ():
        here = (*path, "env", name)
        if not _VARIABLE.fullmatch(name):
            report.error(
                f"`{name}` is not the name of a variable", here, hint="letters, digits and underscores"
            )
        elif hint := variable_refusal(name):
            report.error(f"`{name}` is not for `env`", here, hint=hint)


def variable_refusal(name: str) -> str | None:
    """What to do instead of a variable that is not for an engine's `env`."""
    if name in _REFUSED_VARIABLES:
        return _REFUSED_VARIABLES[name]
    return next((hint for prefix, hint in _REFUSED_PREFIXES.items() if name.startswith(prefix)), None)


def read_pooler(engine: dict[str, Any], path: ConfigPath, report: Report) -> None:
    """Parses JSON text, and replaces the key that vLLM renamed, in place.

    `normalize` became `use_activation` (vllm/config/pooler.py). It is refused in the file, and translated in
    text from a variable, so that the predecessor's `.env` keeps working.
    """
    pooler = engine.get("pooler_config")
    here = (*path, "pooler_config")
    from_variable = isinstance(pooler, Scalar) and bool(pooler.variables)
    if isinstance(pooler, Scalar):
        try:
            pooler = json.loads(pooler)
        except (ValueError, RecursionError):
            return
        if not isinstance(pooler, dict):
            return
        engine["pooler_config"] = pooler
    if not isinstance(pooler, dict):
        return
    if "normalize" in pooler:
        renamed = "vLLM renamed `normalize` to `use_activation`"
        if from_variable:
            pooler.setdefault("use_activation", pooler.pop("normalize"))
            report.warning(renamed, here, hint="it was translated; rename it when you can")
        else:
            report.error(renamed, (*here, "normalize"), hint="rename it")
    for key in ("pooling_type", "seq_pooling_type", "tok_pooling_type"):
        if pooler.get(key) is not None:
            report.warning(
                f"`{key}` overrides the model's own pooling",
                here,
                hint="a model answers badly with a pooling that it was not trained for; leave it out",
            )
