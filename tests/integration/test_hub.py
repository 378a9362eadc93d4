"""A model's sizes from a hub: a small one on the loopback, with what the metadata calls need."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memoria.config.load import load
from memoria.config.model import Config
from memoria.errors import Problem
from memoria.plan.checkpoint import INDEX, SHIPPED, Choice, ModelFiles, read_model
from memoria.plan.shipped import CONFIGS
from memoria.preflight.outcomes import read_models
from memoria.vllm.fetch.metadata import Question, ask_hub
from tests.hub import Hub, serving
from tests.unit.checkpoints import LLAMA_8B
from tests.unit.plan.test_checkpoint import write_weights
from tests.unit.plans import config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    weights = tmp_path / "model.safetensors"
    write_weights(weights, {"model.layers.0.mlp.up_proj.weight": ("BF16", [1024, 1024], 2 * 2**20)})
    with serving() as server:
        for revision in ("main", "v2"):
            server.files[revision, "config.json"] = json.dumps(LLAMA_8B).encode()
            server.files[revision, "model.safetensors"] = weights.read_bytes()
        yield server


@pytest.fixture
def environ(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """An engine's own, which the package has not seen when it was imported."""
    return {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret"}


ANY = Choice()


def ask(environ: dict[str, str], choice: Choice = ANY, model: str = "org/name") -> ModelFiles:
    known, unknown = ask_hub({"engine": Question(model, choice, environ)}, seconds=30)
    assert (set(known), unknown) == ({"engine"}, {})
    return known["engine"]


def refusal(environ: dict[str, str], choice: Choice = ANY, *, seconds: float = 30.0) -> Problem:
    known, unknown = ask_hub({"engine": Question("org/name", choice, environ)}, seconds=seconds)
    assert known == {}
    return unknown["engine"]


def test_headers_come_from_the_hub_without_the_weights(hub: Hub, environ: dict[str, str]) -> None:
    files = ask(environ)
    assert files.config == LLAMA_8B
    assert [(tensor.name, tensor.shape) for tensor in files.tensors] == [
        ("model.layers.0.mlp.up_proj.weight", (1024, 1024))
    ]
    assert hub.sent < 200_000
    assert {token for token in hub.tokens if token} == {"Bearer hf_secret"}
    assert (Path(environ["HF_HOME"]) / "hub" / "models--org--name").is_dir()


def test_lengths_beside_the_configuration_are_fetched(hub: Hub, environ: dict[str, str]) -> None:
    hub.files["main", "tokenizer_config.json"] = b'{"model_max_length": 512}'
    hub.files["main", "sentence_bert_config.json"] = b'{"max_seq_length": 256}'
    files = ask(environ)
    assert (files.tokenizer_length, files.encoder_length) == (512, 256)


def test_shards_are_all_read(hub: Hub, environ: dict[str, str]) -> None:
    content = hub.files.pop(("main", "model.safetensors"))
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = {
        "metadata": {"total_size": 4 * 2**20},
        "weight_map": {f"{n}": name for n, name in enumerate(shards)},
    }
    hub.files["main", INDEX] = json.dumps(index).encode()
    for name in shards:
        hub.files["main", name] = content
    assert len(ask(environ).tensors) == 2


def test_weights_of_another_format_leave_the_configuration(hub: Hub, environ: dict[str, str]) -> None:
    del hub.files["main", "model.safetensors"]
    files = ask(environ)
    assert (files.tensors, files.config) == ((), LLAMA_8B)


def test_the_engines_revision_is_requested(hub: Hub, environ: dict[str, str]) -> None:
    hub.files.pop(("main", "config.json"))
    hub.files.pop(("main", "model.safetensors"))
    assert ask(environ, Choice(revision="v2")).config == LLAMA_8B
    assert "has no revision" in refusal(environ).what or "is not on the hub" in refusal(environ).what


def test_overrides_count(environ: dict[str, str]) -> None:
    assert ask(environ, Choice(overrides={"num_hidden_layers": 2})).config["num_hidden_layers"] == 2


def test_a_hub_that_refuses_is_explained(hub: Hub, environ: dict[str, str]) -> None:
    hub.refusal = (401, "GatedRepo")
    assert refusal(environ).what == "model `org/name` is gated: its licence must be accepted on its page"


def test_a_hub_that_does_not_answer_is_given_up(hub: Hub, environ: dict[str, str]) -> None:
    hub.answering.clear()
    began = time.monotonic()
    assert refusal(environ, seconds=1.5).what == "the hub cannot be reached: no answer within 1.5 s"
    assert time.monotonic() - began < 5


def test_headers_that_come_too_late_leave_the_configuration(hub: Hub, environ: dict[str, str]) -> None:
    hub.silent = "safetensors"
    known, _ = ask_hub({"engine": Question("org/name", Choice(), environ)}, seconds=8)
    assert (known["engine"].config, known["engine"].tensors) == (LLAMA_8B, ())


def engines(*models: str, env: dict[str, str]) -> Config:
    planned = config(dict.fromkeys(("a", "b")[: len(models)], "0.4"))
    made = [replace(e, model=m, env=env) for e, m in zip(planned.engines, models, strict=True)]
    return replace(planned, engines=tuple(made))


def test_what_the_cache_lacks_the_hub_says_and_else_what_is_shipped(
    hub: Hub, environ: dict[str, str]
) -> None:
    default = next(iter(CONFIGS))
    files, unknown = read_models(engines("org/name", default, env=environ), {})
    assert (files["a"].source, files["b"].source, unknown) == ("the hub", SHIPPED, {})
    files, unknown = read_models(engines("org/other", env=environ), {})
    assert (files, list(unknown)) == ({}, ["a"])
    assert unknown["a"].what == "model `org/other` is not on the hub, or it is private"


def test_an_engine_that_is_offline_sends_no_request(hub: Hub, environ: dict[str, str]) -> None:
    _, unknown = read_models(engines("org/name", env={**environ, "HF_HUB_OFFLINE": "1"}), {})
    assert "is not in the local cache" in unknown["a"].what
    assert hub.requests == []


def test_what_the_cache_has_is_requested_again_only_for_its_weights(
    hub: Hub, environ: dict[str, str]
) -> None:
    ask(environ)
    hub.requests.clear()
    assert read_model("org/name", environ).config == LLAMA_8B
    assert hub.requests == []
    files, _ = read_models(engines("org/name", env=environ), {})
    assert len(files["a"].tensors) == 1


def test_the_default_file_is_planned_without_cache_and_network(tmp_path: Path) -> None:
    planned = load(ROOT / "memoria.yaml", {"HOME": str(tmp_path)})
    environ = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:1"}
    files, unknown = read_models(planned, environ)
    assert unknown == {}
    assert {one.source for one in files.values()} == {SHIPPED}


def test_the_draft_model_is_asked_for_too(environ: dict[str, str]) -> None:
    planned = engines("org/name", env=environ)
    args = {"speculative_config": {"method": "draft_model", "model": "org/name", "num_speculative_tokens": 3}}
    files, _ = read_models(replace(planned, engines=(replace(planned.engines[0], vllm_args=args),)), {})
    assert files["a"].draft is not None
    assert files["a"].draft.config == LLAMA_8B
