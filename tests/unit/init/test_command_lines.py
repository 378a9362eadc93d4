"""Pasted command lines, as people have them in terminals, scripts and units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memoria.config.load import load
from memoria.errors import UsageError
from memoria.init.draft import Draft, DraftEngine, Published, engine_name, render
from memoria.init.serve_line import Translator
from memoria.init.sources import read_source, settle_names
from tests.unit.commands import SERVE, spec
from tests.unit.vllm.serve_lines import LINES, VERSIONS, original, recorded
from tests.unit.vllm.test_serve_lines import parsed, sized

ENVIRON: Mapping[str, str] = {"HOME": "/home/user", "MODEL": "org/from-a-variable"}
MODULE = "python3 -m vllm.entrypoints.openai.api_server"


def translated(
    line: str, folder: Path, translator: Translator | None = None
) -> tuple[list[DraftEngine], dict[str, str]]:
    """The engines, and the reasons by what was left out."""
    translator = translator or Translator(ENVIRON)
    engines, _ = read_source(line, folder, ENVIRON, translator)
    return engines, {one.what: one.why for one in translator.left_out}


def keys(line: str, folder: Path = Path("/w")) -> dict[str, Any]:
    (engine,), _ = translated(line, folder)
    return {"model": engine.model, **engine.keys, **engine.args}


@pytest.mark.parametrize("version", [None, *VERSIONS])
@pytest.mark.parametrize("line", LINES, ids=lambda line: line[11:60])
def test_a_published_line_starts_the_same_vllm(line: str, version: str | None, tmp_path: Path) -> None:
    """Whether the installed vLLM's options are known, or there is none yet."""
    options = recorded(version) if version else None
    engines, _ = translated(line, tmp_path, Translator(ENVIRON, options))
    draft = Draft(engines, title="A test.")
    settle_names(draft, tmp_path)
    engines[0].keys.setdefault("gpu_memory_utilization", "auto")
    file = tmp_path / "memoria.yaml"
    file.write_text(render(draft))
    config = load(file, ENVIRON)
    known = options or recorded(VERSIONS[-1])
    made = spec(config=config, engine=config.engines[0], install=replace(SERVE, options=known))
    # one GPU is what an engine has
    wanted = parsed(version or VERSIONS[-1], original(line)) | {"tensor_parallel_size": None}
    assert sized(parsed(version or VERSIONS[-1], ["--model", *made.argv[2:]])) == sized(wanted)


@pytest.mark.parametrize(
    "line",
    [
        "vllm serve org/m --max-model-len 8192 --enforce-eager",
        "vllm serve --enforce-eager --max-model-len=8192 org/m",
        "vllm serve --model org/m --max_model_len 8192 --enforce_eager",
        "/opt/venv/bin/vllm serve org/m \\\n  --max-model-len 8192 \\\n  --enforce-eager",
        "vllm serve org/m \\  # the model\n  --max-model-len 8192 \\   \n  --enforce-eager\n",
        "$ vllm serve org/m\n    --max-model-len 8192\n    --enforce-eager",
        f"{MODULE} --model org/m --max-model-len 8192 --enforce-eager",
        f"cd /srv && nohup {MODULE} --model 'org/m' --max-model-len \"8192\" --enforce-eager > log 2>&1 &",
        "export NAME=org/m\nvllm serve $NAME --max-model-len ${LENGTH:-8192} --enforce-eager | tee log",
        "docker run --gpus all vllm/vllm-openai:latest --model org/m --max-model-len 8192 --enforce-eager",
        "sudo docker run -d --rm --gpus=all --ipc host -p 8000:8000 vllm/vllm-openai serve org/m "
        "--max-model-len 8192 --enforce-eager",
        "podman run --entrypoint vllm -it quay.io/x/vllm:1 serve org/m --max-model-len 8192 --enforce-eager",
        "docker run --entrypoint bash vllm/vllm-openai -c 'exec vllm serve org/m --max-model-len 8192 "
        "--enforce-eager'",
    ],
)
def test_one_server_however_it_is_written(line: str) -> None:
    assert keys(line) == {"model": "org/m", "max_model_len": 8192, "enforce_eager": True}


def test_a_variable_of_the_environment_is_filled_in() -> None:
    assert keys("vllm serve $MODEL")["model"] == "org/from-a-variable"


def test_what_quotes_hold_is_left_alone() -> None:
    found = keys("""vllm serve org/m --hf-overrides '{"a": "b; c > d & e # f"}' --seed 7 > log""")
    assert (found["hf-overrides"], found["seed"]) == ({"a": "b; c > d & e # f"}, 7)


def test_values_keep_their_spelling() -> None:
    found = keys("vllm serve org/m --revision 0123 --tokenizer-revision 1e5 --max-logprobs -1")
    assert found == {"model": "org/m", "revision": "0123", "tokenizer-revision": "1e5", "max-logprobs": -1}
    text = render(Draft([DraftEngine("a", "org/m", args={"x": "0123", "y": "$HOME", "z": "yes"})]))
    assert "x: '0123'" in text
    assert "y: $$HOME" in text
    assert "z: 'yes'" in text


def test_two_commands_are_two_engines_with_names_of_their_own(tmp_path: Path) -> None:
    line = "vllm serve org/m --port 8001 &\nCUDA_VISIBLE_DEVICES=1 vllm serve org/m --port 8002 &"
    engines, left_out = translated(line, tmp_path)
    draft = Draft(engines)
    settle_names(draft, tmp_path)
    assert [engine.published for engine in engines] == [Published("", 8001), Published("", 8002)]
    assert [engine.keys.get("gpu") for engine in engines] == [None, 1]
    assert engines[1].keys["served_model_name"] == "org/m-2"
    assert draft.left_out[0].why == "two engines have it: this one is `org/m-2`"
    assert left_out == {}


def test_what_has_no_counterpart_is_named_with_the_reason(tmp_path: Path) -> None:
    line = (
        "numactl HF_TOKEN=secret VLLM_API_KEY=secret NCCL_DEBUG=WARN vllm serve org/m -tp 4 --api-key secret "
        "--swap-space 4 --disable-log-requests --task embed --host 0.0.0.0 --uvicorn-log-level warning "
        "--pooler-config '{\"normalize\": true}'"
    )
    (engine,), left_out = translated(line, tmp_path)
    assert engine.keys == {"runner": "pooling", "pooler_config": {"use_activation": True}}
    assert (engine.args, engine.env) == ({}, {"NCCL_DEBUG": "WARN"})
    assert left_out == {
        "`numactl`": "engines are started by memoria alone",
        "`--tensor-parallel-size`": "an engine lives on one GPU: choose it with `gpu`",
        "`--api-key`": "clients' keys are lines of a file: `keys: FILE`",
        "`--swap-space`": "leave it out: preempted requests are computed again",
        "`--disable-log-requests`": "leave it out: vLLM logs no requests by default",
        "`HF_TOKEN`": "set it in the environment, or in a `.env` beside the file: engines get it from there",
        "`VLLM_API_KEY`": "clients' keys are lines of a file: `keys: FILE`",
    }
    assert "secret" not in render(Draft([engine])) + str(left_out)


def test_flags_that_the_installed_vllm_lacks_are_left_out(tmp_path: Path) -> None:
    translator = Translator(ENVIRON, recorded("0.33.0"))
    (engine,), left_out = translated("vllm serve org/m --no-such-flag 3 --seed 4", tmp_path, translator)
    assert engine.args == {"seed": 4}
    assert "vLLM 0.33.0 has no flag `no_such_flag`" in left_out["`--no-such-flag`"]


def test_paths_in_a_container_become_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    line = (
        "docker run -v ./models:/models:ro -v /data/hf:/home/vllm/.cache/huggingface -v named:/cache "
        "-e VLLM_CACHE_ROOT=/cache --gpus '\"device=2,3\"' -p 127.0.0.1:9000:8000 vllm/vllm-openai:v0.10.1 "
        "--model /models/writer --chat-template /models/t.jinja --lora-modules a=/models/a "
        "--reasoning-parser-plugin /app/x.py"
    )
    (engine,), left_out = translated(line, tmp_path)
    assert engine.model == f"{tmp_path}/models/writer"
    assert engine.args == {
        "chat-template": f"{tmp_path}/models/t.jinja",
        "lora-modules": [f"a={tmp_path}/models/a"],
    }
    assert engine.env == {"HF_HOME": "/data/hf"}
    assert (engine.keys, engine.published) == ({"gpu": 2}, Published("127.0.0.1", 9000))
    assert left_out == {
        "`--reasoning-parser-plugin`": "`/app/x.py` is a file within the container: copy it, and name it "
        "under `args`",
        "GPUs 3": "an engine lives on one GPU, here 2",
        "`VLLM_CACHE_ROOT`": "`/cache` is a folder within the container",
    }


def test_a_folder_is_a_path_from_the_file_on(tmp_path: Path) -> None:
    (tmp_path / "models" / "writer").mkdir(parents=True)
    (engine,), _ = translated("vllm serve models/writer", tmp_path)
    settle_names(Draft([engine]), tmp_path)
    assert engine.model == "./models/writer"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ls -l", "`--from` has no command that starts vLLM with a model"),
        ("vllm serve --port 8000", "`--from` has no command that starts vLLM with a model"),
        ("vllm bench serve", "`--from` has no command that starts vLLM with a model"),
        ("docker run --rm alpine echo hi", "`--from` has no command that starts vLLM with a model"),
        ("docker run --rm", "`docker run` names no image"),
        ("vllm serve 'org/m", "the command line cannot be read: no closing quotation"),
        ("vllm serve $(cat model)", "a command line with a command in it (`$(...)`) cannot be translated"),
        ("vllm serve $NOWHERE", "the command line needs NOWHERE, which is not set"),
        ("vllm serve ${NO!}", "the command line cannot be read: `${NO!}` is not a form of `${NAME}`"),
        ("compose.yml", "there is no file compose.yml"),
    ],
)
def test_a_line_without_vllm_is_refused_with_the_reason(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        translated(line, tmp_path)
    assert caught.value.problems[0].what == said
    assert caught.value.problems[0].hint


def test_a_name_is_one_that_the_file_takes() -> None:
    assert engine_name("Qwen3-4B-Thinking-2507-FP8.Instruct_x", ()) == "qwen3-4b-thinking-2507-fp8-inst"
    assert engine_name("vllm", {"vllm"}) == "vllm-2"
    assert engine_name("a" * 40, {"a" * 31}) == "a" * 29 + "-2"
    assert engine_name("Router", ()) == "router-engine"
    assert engine_name("日本", ()) == "engine"
