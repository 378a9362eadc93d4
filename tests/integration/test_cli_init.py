"""`memoria init` as a person calls it, on a box with a stub GPU of 100 GiB or with none."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.hub import serving
from tests.integration.daemon import Box
from tests.stub_nvml import StubProcess
from tests.unit.checkpoints import LLAMA_8B, QWEN3_EMBEDDING

OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:1"}
EMBEDDER, WRITER = "./models/embedder", "./models/writer"


@pytest.fixture
def models(box: Box) -> Box:
    """Without a memoria.yaml. The embedder is one by its sentence-transformers modules alone."""
    for name, config in (("embedder", QWEN3_EMBEDDING), ("writer", LLAMA_8B)):
        named = {
            **config,
            "architectures": ["Qwen3ForCausalLM" if name == "embedder" else "LlamaForCausalLM"],
        }
        (box.folder / "models" / name / "config.json").write_text(json.dumps(named))
    (box.folder / "models" / "embedder" / "modules.json").write_text("[]")
    return box


def init(box: Box, *arguments: str, **env: str | None) -> subprocess.CompletedProcess[str]:
    return box.call("init", *arguments, **{**OFFLINE, **env})


def check(box: Box, **env: str | None) -> str:
    """Of what was written: vLLM is the box's own, the ports are free ones."""
    text = box.file.read_text()
    port = f"127.0.0.1:{box.ports.main}"
    box.file.write_text(text.replace("listen: 127.0.0.1:8200", f"vllm: ./vllm\nlisten: {port}"))
    called = box.call("check", **{**OFFLINE, **env})
    box.file.write_text(text)
    assert called.returncode == 0, called.stderr
    return called.stdout


def test_two_models_are_a_file_that_check_takes(models: Box) -> None:
    called = init(models, EMBEDDER, WRITER)
    assert (called.returncode, called.stderr) == (0, "")
    assert "ok: every engine fits" in called.stdout
    assert called.stdout.endswith(
        "memoria.yaml is written; next: memoria setup && memoria check && memoria run\n"
    )
    written = yaml.safe_load(models.file.read_text())
    assert written["gpu_limit"] == 0.9
    assert written["engines"] == {
        "embedding": {
            "model": EMBEDDER,
            "runner": "pooling",
            "gpu_memory_utilization": "auto",
            "want": {"context": 8192, "concurrency": 4},
        },
        "generation": {
            "model": WRITER,
            "runner": "generate",
            "gpu_memory_utilization": "auto",
            "want": {"context": 32768, "concurrency": 8, "weight": 1},
        },
    }
    assert "ok: ready to run" in check(models)


def test_a_small_gpu_gets_smaller_wishes_and_two_of_a_kind_get_their_models_names(models: Box) -> None:
    called = init(models, "--gpu", "40GiB", WRITER, "./models/writer/../writer", EMBEDDER)
    assert called.returncode == 0, called.stderr
    engines = yaml.safe_load(models.file.read_text())["engines"]
    assert list(engines) == ["writer", "writer-2", "embedding"]
    assert engines["writer"]["want"]["context"] < 32768
    assert engines["writer-2"]["served_model_name"] == "writer-2"
    planned = models.call("plan", "--gpu", "40GiB", **OFFLINE)
    assert planned.returncode == 0, planned.stdout + planned.stderr


def test_without_a_gpu_the_file_is_for_the_cpu(models: Box) -> None:
    called = init(models, EMBEDDER, LD_LIBRARY_PATH=None)
    assert called.returncode == 0, called.stderr
    assert "memoria setup --cpu" in called.stdout
    written = yaml.safe_load(models.file.read_text())
    assert written["device"] == "cpu"
    assert "weight" not in written["engines"]["embedding"]["want"]
    check(models, LD_LIBRARY_PATH=None)


def test_a_file_that_is_there_is_never_overwritten(models: Box) -> None:
    models.file.write_text("mine")
    called = init(models, EMBEDDER)
    assert (called.returncode, models.file.read_text()) == (2, "mine")
    assert "error: memoria.yaml is there already\nhint: name another file with --config" in called.stderr
    models.file.unlink()
    models.file.symlink_to("nowhere")
    assert init(models, EMBEDDER).returncode == 2
    other = init(models, EMBEDDER, "--config", "other.yaml")
    assert "next: memoria setup && memoria check -c other.yaml" in other.stdout


def test_what_others_hold_is_left_to_them(models: Box) -> None:
    models.use_gpu(processes=[StubProcess(4711, 60)])
    assert init(models, WRITER).returncode == 0
    check(models)
    models.file.unlink()
    models.use_gpu(processes=[StubProcess(4711, 90)])
    called = init(models, WRITER)
    assert (called.returncode, models.file.exists()) == (75, False)
    assert "pid 4711" in called.stderr


def test_models_that_do_not_fit_or_are_not_there_leave_no_file(models: Box) -> None:
    called = init(models, WRITER, "--gpu", "12GiB")
    assert (called.returncode, models.file.exists()) == (78, False)
    assert "error: generation needs" in called.stderr
    assert "memoria.yaml:" not in called.stderr  # there is none
    called = init(models, "./models/none", "./models/nothing")
    assert (called.returncode, models.file.exists()) == (78, False)
    assert called.stderr.count("error: no model at") == 2
    called = init(models, "org/name")
    assert (called.returncode, models.file.exists()) == (69, False)
    assert "the hub cannot be reached" in called.stderr
    with serving() as hub:
        called = init(models, "org/gone", HF_ENDPOINT=hub.address)
        assert called.returncode == 78
        assert "model `org/gone` is not on the hub" in called.stderr


def test_the_hub_says_what_a_model_is(models: Box) -> None:
    with serving() as hub:
        hub.files["main", "config.json"] = json.dumps(QWEN3_EMBEDDING).encode()
        hub.files["main", "modules.json"] = b"[]"
        called = init(models, "org/name", HF_ENDPOINT=hub.address, HF_HOME=str(models.folder / "hf"))
        assert called.returncode == 0, called.stderr
    (engine,) = yaml.safe_load(models.file.read_text())["engines"].values()
    assert engine["runner"] == "pooling"


def test_a_model_that_cannot_be_planned_gets_a_share(models: Box) -> None:
    speech = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}
    (models.folder / "models" / "second" / "config.json").write_text(json.dumps(speech))
    called = init(models, "./models/second", EMBEDDER)
    assert called.returncode == 0, called.stderr
    engines = yaml.safe_load(models.file.read_text())["engines"]
    assert engines["generation"] == {
        "model": "./models/second",
        "runner": "generate",
        "gpu_memory_utilization": 0.45,
    }
    check(models)


COMPOSE = """\
services:
  vllm-embedding:
    image: vllm/vllm-openai:latest
    command: --model /models/embedder --task embed --gpu-memory-utilization {fraction} --port 8100
    ports: ["{embedding}:8100"]
    volumes: ["./models:/models"]
    restart: unless-stopped
  vllm-generation:
    image: vllm/vllm-openai:latest
    command: >
      --model /models/writer --gpu-memory-utilization {fraction} --max-model-len 8192 --max-num-seqs 64
      --api-key ${{KEY:-none}}
    ports: ["{generation}:8000"]
    volumes: ["./models:/models"]
"""


def write_compose(box: Box, fraction: str) -> None:
    (box.folder / "compose.yml").write_text(
        COMPOSE.format(fraction=fraction, embedding=box.ports.embedding, generation=box.ports.generation)
    )


def test_a_compose_file_becomes_one_that_check_takes(models: Box) -> None:
    write_compose(models, "0.4")
    called = init(models, "--from", "compose.yml")
    assert called.returncode == 0, called.stderr
    assert "compose.yml:7  vllm-embedding  `restart`: memoria restarts" in called.stdout
    assert "compose.yml:10  vllm-generation  `--api-key`: clients' keys" in called.stdout
    written = yaml.safe_load(models.file.read_text())
    assert "gpu_limit" not in written
    assert written["engines"] == {
        "embedding": {
            "model": EMBEDDER,
            "runner": "pooling",
            "gpu_memory_utilization": 0.4,
            "port": models.ports.embedding,
        },
        "generation": {
            "model": WRITER,
            "runner": "generate",
            "gpu_memory_utilization": 0.4,
            "max_model_len": 8192,
            "max_num_seqs": 64,
            "port": models.ports.generation,
        },
    }
    check(models)


def test_fractions_that_do_not_fit_together_are_chosen_anew(models: Box) -> None:
    """Of a stack that still runs: its memory is about to be free."""
    write_compose(models, "0.9")
    models.use_gpu(processes=[StubProcess(4711, 90)])
    called = init(models, "--from", "compose.yml")
    assert called.returncode == 0, called.stderr
    assert "its fraction of 0.9: together they do not fit" in called.stdout
    assert "warning: the engines need" in called.stderr
    assert "pid 4711" in called.stderr
    models.use_gpu()
    check(models)


def test_a_command_line_keeps_its_clients_address(models: Box) -> None:
    line = f"vllm serve {WRITER} --port 9123 --max-model-len 8192 --served-model-name chat"
    called = init(models, "--json", "--from", line)
    said = json.loads(called.stdout)
    assert (called.returncode, said["device"], said["file"]) == (0, "cuda", str(models.file))
    assert [one["what"] for one in said["left_out"]] == ["ports open to other machines (9123)"]
    assert said["plan"]["devices"][0]["engines"][0]["name"] == "generation"
    assert yaml.safe_load(models.file.read_text())["listen"] == "127.0.0.1:9123"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "name a model, or what to translate"),
        (("--from", "no.yml"), 2, "there is no file no.yml"),
        (("--from", "echo vllm"), 2, "`--from` has no command that starts vLLM with a model"),
        (("--gpu", "Voodoo", WRITER), 78, "no GPU named `Voodoo`"),
        (("--config", "no/where.yaml", WRITER), 2, "there is no folder no"),
        (("--from", "models"), 78, "models is a folder"),
        (("--from", f"vllm serve {WRITER} --max-num-seqs many"), 78, "max_num_seqs"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(
    models: Box, arguments: tuple[str, ...], code: int, said: str
) -> None:
    called = init(models, *arguments)
    assert (called.returncode, called.stdout, models.file.exists()) == (code, "", False)
    assert said in called.stderr
    assert "Traceback" not in called.stderr


def test_a_folder_that_cannot_be_written(models: Box, tmp_path: Path) -> None:
    called = init(models, EMBEDDER, "--config", "/proc/memoria.yaml")
    assert called.returncode == 78
    assert "cannot write /proc/memoria.yaml" in called.stderr
