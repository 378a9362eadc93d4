from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from memoria.vllm.facts import TcpAddress, UnixAddress
from tests.unit.commands import CONFIG, ENGINE, MODULE, SERVE, START, spec


def flags(args: Mapping[str, Any]) -> list[str]:
    argv = spec(args).argv
    return list(argv[argv.index("--disable-uvicorn-access-log") + 1 :])


def test_vllm_serve_takes_the_model_by_position() -> None:
    assert spec().argv == (
        "/opt/vllm/bin/vllm",
        "serve",
        "Qwen/Qwen3-4B",
        "--runner",
        "generate",
        "--served-model-name",
        "Qwen/Qwen3-4B",
        "chat",
        "--gpu-memory-utilization",
        "0.60",
        "--uds",
        "/run/memoria/g7.sock",
        "--enable-request-id-headers",
        "--disable-uvicorn-access-log",
    )


def test_the_module_form_takes_the_model_by_flag() -> None:
    assert spec(install=MODULE).argv[2:5] == (
        "vllm.entrypoints.openai.api_server",
        "--model",
        "Qwen/Qwen3-4B",
    )


def test_a_generating_engine_is_never_slowed_by_eager_mode() -> None:
    assert "--enforce-eager" not in spec().argv


def test_each_start_has_a_socket_of_its_own() -> None:
    first, second = spec(), spec(start=replace(START, start_id="g8"))
    assert first.address == UnixAddress("/run/memoria/g7.sock")
    assert second.address == UnixAddress("/run/memoria/g8.sock")
    assert second.start_id == "g8"


def test_tcp_listens_on_loopback_only() -> None:
    tcp = spec(engine=replace(ENGINE, transport="tcp"))
    assert tcp.address == TcpAddress("127.0.0.1", 8101)
    assert "--uds" not in tcp.argv
    assert tcp.argv[tcp.argv.index("--host") :][:4] == ("--host", "127.0.0.1", "--port", "8101")


def test_tcp_without_a_port_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="without a port"):
        spec(engine=replace(ENGINE, transport="tcp", port=None))


def test_a_tiny_fraction_is_written_without_an_exponent() -> None:
    assert "0.0000001" in spec(engine=replace(ENGINE, gpu_memory_utilization=Decimal("1E-7"))).argv


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"max_num_seqs": 128}, ["--max-num-seqs", "128"]),
        ({"enforce_eager": True}, ["--enforce-eager"]),
        ({"enable_prefix_caching": False}, ["--no-enable-prefix-caching"]),
        ({"disable_log_stats": False}, []),
        ({"dtype": None, "quantization": "", "lora_modules": []}, []),
        ({"pooler_config": {"pooling_type": "MEAN"}}, ["--pooler-config", '{"pooling_type":"MEAN"}']),
        ({"pooler_config": '{"use_activation":true}'}, ["--pooler-config", '{"use_activation":true}']),
        ({"cudagraph_capture_sizes": [1, 2, 4]}, ["--cudagraph-capture-sizes", "1", "2", "4"]),
        ({"seed": 0}, ["--seed", "0"]),
        ({"chat_template": "-x"}, ["--chat-template=-x"]),
        ({"compilation_config.max_capture_size": 8}, ["--compilation-config.max_capture_size", "8"]),
    ],
    ids=str,
)
def test_every_kind_of_value_becomes_what_vllms_parser_reads(
    args: dict[str, Any], expected: list[str]
) -> None:
    assert flags(args) == expected


def test_a_list_of_mappings_is_one_json_text_each() -> None:
    flag, *values = flags({"lora_modules": [{"name": "a", "path": "/a"}, {"name": "b", "path": "/b"}]})
    assert flag == "--lora-modules"
    assert [json.loads(value)["name"] for value in values] == ["a", "b"]


def test_the_user_may_have_vllms_access_log_back() -> None:
    argv = spec({"disable_uvicorn_access_log": False}).argv
    assert "--no-disable-uvicorn-access-log" in argv
    assert "--disable-uvicorn-access-log" not in argv


def test_the_passenger_finds_its_supervisor() -> None:
    env = spec().env
    assert env["PYTHONPATH"] == "/lib/plugin"
    assert {name: value for name, value in env.items() if name.startswith("MEMORIA_")} == {
        "MEMORIA_ENGINE": "generation",
        "MEMORIA_START": "g7",
        "MEMORIA_GATE": "/run/memoria/gate.sock",
        "MEMORIA_SUPERVISOR_PID": "41",
    }
    assert env["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_without_a_passenger_nothing_points_at_one() -> None:
    env = spec(start=replace(START, gate_path=None, plugin_dir=None)).env
    assert "PYTHONPATH" not in env
    assert "MEMORIA_GATE" not in env
    assert env["MEMORIA_START"] == "g7"


def test_an_engine_sees_one_gpu_by_its_uuid() -> None:
    env = spec(environ={"CUDA_VISIBLE_DEVICES": "3"}).env
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-1"


@pytest.mark.parametrize(
    ("version", "index", "visible"),
    [
        ("0.23.1", 3, "3"),
        ("0.11.0rc2+cu128", 3, "3"),
        ("0.24.0", 3, "GPU-1"),
        ("1.0", 3, "GPU-1"),
        (None, 3, "GPU-1"),
        ("0.23.1", None, "GPU-1"),
    ],
)
def test_an_older_vllm_gets_the_index_of_its_gpu(
    version: str | None, index: int | None, visible: str
) -> None:
    """`int()` of a UUID fails there; a slice has no index."""
    made = spec(install=replace(SERVE, version=version), start=replace(START, device_index=index))
    assert made.env["CUDA_VISIBLE_DEVICES"] == visible


def test_a_cpu_engine_gets_nothing_about_gpus() -> None:
    env = spec(config=replace(CONFIG, device="cpu")).env
    assert not [name for name in env if name.startswith("CUDA_")]


@pytest.mark.parametrize(
    "name",
    [
        "VLLM_EMBED_GPU_MEMORY",
        "VLLM_GEN_PORT",
        "MODEL_EMBED_NAME",
        "ROUTER_PORT",
        "HTTP_TIMEOUT",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "LISTEN_FDS",
        "JOURNAL_STREAM",
        "CREDENTIALS_DIRECTORY",
        "MEMORIA_HOME",
        "VLLM_API_KEY",
        "VLLM_SERVER_DEV_MODE",
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
        "PYTHONDONTWRITEBYTECODE",
    ],
)
def test_what_is_addressed_to_the_daemon_stays_with_it(name: str) -> None:
    assert name not in spec(environ={name: "1"}, start=replace(START, plugin_dir=None)).env


def test_the_rest_of_the_environment_is_passed_on() -> None:
    environ = {"HOME": "/home", "HF_TOKEN": "t", "VLLM_CACHE_ROOT": "/cache", "DO_NOT_TRACK": "0"}
    env = spec(environ=environ).env
    assert environ.items() <= env.items()
    assert env["VLLM_NO_USAGE_STATS"] == "1"


def test_the_tools_beside_vllm_are_found_first() -> None:
    assert spec().env["PATH"] == "/opt/vllm/bin:/usr/bin"


def test_an_engines_own_environment_wins_over_memorias_defaults() -> None:
    env = spec(env={"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "900", "HOME": "/data", "PYTHONPATH": "/my"}).env
    assert env["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] == "900"
    assert env["HOME"] == "/data"
    assert env["PYTHONPATH"] == "/lib/plugin:/my"


def test_an_engines_own_environment_cannot_cut_it_from_its_supervisor() -> None:
    env = spec(env={"MEMORIA_GATE": "/elsewhere", "MEMORIA_DEBUG": "1"}).env
    assert env["MEMORIA_GATE"] == "/run/memoria/gate.sock"
    assert "MEMORIA_DEBUG" not in env


@pytest.mark.parametrize(
    ("allowed", "expected"), [("lora", "lora,memoria"), ("a,memoria", "a,memoria"), ("", "memoria")]
)
def test_restricted_plugins_still_let_the_passenger_in(allowed: str, expected: str) -> None:
    assert spec(env={"VLLM_PLUGINS": allowed}).env["VLLM_PLUGINS"] == expected


def test_unrestricted_plugins_stay_unrestricted() -> None:
    assert "VLLM_PLUGINS" not in spec().env


def test_secrets_are_not_in_the_spec_as_printed() -> None:
    assert "hf_secret" not in repr(spec(environ={"HF_TOKEN": "hf_secret"}))
