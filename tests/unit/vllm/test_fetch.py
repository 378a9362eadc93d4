"""Which files of the hub an engine loads, whether they are here, and how far they are."""

from __future__ import annotations

import json
from pathlib import Path
from string import Formatter

import pytest

from memoria.vllm.facts import FetchProgress
from memoria.vllm.fetch.fetcher import Meter, is_complete
from memoria.vllm.fetch.launch import FAILURES, fetch_error
from memoria.vllm.fetch.repository import (
    INDEX,
    WEIGHTS,
    Repository,
    files_to_load,
    is_here,
    repositories,
)

AUTO = WEIGHTS["auto"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin", "onnx/model.onnx"], ["model.safetensors"]),
        (["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"], ["pytorch_model.bin"]),
        (["model.pt"], ["model.pt"]),
        (["consolidated.safetensors", "model.safetensors"], ["consolidated.safetensors"]),
        (["original/consolidated.00.pth", "model.safetensors"], ["model.safetensors"]),
        (["fp16/model.safetensors", "model.safetensors"], ["model.safetensors"]),
        (
            ["2_Dense/model.safetensors", "model.safetensors"],
            ["2_Dense/model.safetensors", "model.safetensors"],
        ),
        (["model.gguf"], []),
    ],
)
def test_the_weights_are_those_that_vllm_looks_for_first(names: list[str], weights: list[str]) -> None:
    assert files_to_load(["config.json", *names], AUTO) == (["config.json"], weights)


def test_of_several_safetensors_the_index_names_those_that_are_loaded() -> None:
    names = ["a.safetensors", "b.safetensors", "adapter.safetensors", "model.safetensors.index.json"]
    _, weights = files_to_load(
        names, AUTO, {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}
    )
    assert weights == ["a.safetensors", "b.safetensors"]


def test_small_files_are_configuration_tokenizer_and_code() -> None:
    wanted = [
        "1_Pooling/config.json",
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "modeling_own.py",
        "tokenizer.model",
    ]
    others = [
        "README.md",
        "LICENSE",
        ".gitattributes",
        "onnx/config.json",
        "picture.png",
        "model.safetensors",
    ]
    assert files_to_load([*wanted, *others], ())[0] == wanted


@pytest.mark.parametrize(
    ("model", "args", "found"),
    [
        ("org/name", {}, [("org/name", AUTO)]),
        ("org/name", {"load_format": "dummy"}, [("org/name", ())]),
        ("org/name", {"load_format": "runai_streamer"}, []),
        ("org/name", {"load_format": "gguf"}, []),
        ("/models/name", {}, []),
        ("s3://bucket/name", {}, []),
        ("org/name:Q4_K_M", {}, []),
        ("org/name", {"tokenizer": "org/other"}, [("org/name", AUTO), ("org/other", ())]),
        (
            "org/name",
            {"speculative_config": {"model": "org/draft", "num_speculative_tokens": 3}},
            [("org/name", AUTO), ("org/draft", AUTO)],
        ),
        (
            "org/name",
            {"speculative_config": '{"model": "org/draft"}'},
            [("org/name", AUTO), ("org/draft", AUTO)],
        ),
        ("org/name", {"speculative_config": {"method": "ngram"}}, [("org/name", AUTO)]),
    ],
)
def test_an_engines_repositories(
    model: str, args: dict[str, object], found: list[tuple[str, tuple[str, ...]]]
) -> None:
    assert [(one.model, one.weights) for one in repositories(model, args, {"HF_HOME": "/h"})] == found


def test_weights_go_into_a_folder_of_their_own_and_what_transformers_reads_into_the_hubs() -> None:
    args = {"download_dir": "/big", "revision": "v2"}
    assert repositories("org/name", args, {"HF_HOME": "/h"}) == (
        Repository("org/name", "v2", AUTO, "/big"),
        Repository("org/name", "v2", (), "/h/hub"),
    )


def test_modelscope_is_left_to_vllm() -> None:
    assert repositories("org/name", {}, {"VLLM_USE_MODELSCOPE": "True"}) == ()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """In the cache, with its configuration only."""
    made = Repository("org/name", None, AUTO, str(tmp_path))
    (made.folder / "refs").mkdir(parents=True)
    (made.folder / "refs" / "main").write_text(COMMIT)
    snapshot(made).mkdir(parents=True)
    (snapshot(made) / "config.json").write_text("{}")
    return made


def snapshot(repository: Repository) -> Path:
    return repository.folder / "snapshots" / COMMIT


def test_a_configuration_alone_is_no_model(repository: Repository) -> None:
    assert not is_here(repository)
    assert is_here(Repository("org/name", None, (), repository.cache))
    (snapshot(repository) / "model.safetensors").write_text("")
    assert is_here(repository)


def test_every_file_that_the_index_names_must_be_there(repository: Repository) -> None:
    (snapshot(repository) / INDEX).write_text(
        json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    )
    (snapshot(repository) / "a.safetensors").write_text("")
    assert not is_here(repository)
    (snapshot(repository) / "b.safetensors").write_text("")
    assert is_here(repository)


def test_a_part_that_was_cut_is_no_model(repository: Repository) -> None:
    (snapshot(repository) / "model.safetensors").write_text("")
    (repository.folder / "blobs").mkdir()
    (repository.folder / "blobs" / "abc.incomplete").write_text("")
    assert not is_here(repository)


def test_another_revision_is_not_here(repository: Repository) -> None:
    (snapshot(repository) / "model.safetensors").write_text("")
    assert not is_here(Repository("org/name", "v2", AUTO, repository.cache))
    assert is_here(Repository("org/name", COMMIT, AUTO, repository.cache))


def test_nothing_is_fetched_where_downloads_are_off(tmp_path: Path) -> None:
    wanted = repositories("org/name", {}, {"HF_HOME": str(tmp_path)})
    assert not is_complete(wanted, {})
    assert is_complete(wanted, {"HF_HUB_OFFLINE": "1"})


def test_the_rate_is_that_of_the_last_seconds_without_what_was_there() -> None:
    meter = Meter()
    meter.read({"total": 1000}, 0.0)
    assert meter.read({"resumed": 400}, 0.0) == FetchProgress(400, 1000)
    assert meter.read({"done": 50}, 0.5) == FetchProgress(450, 1000)
    assert meter.read({"done": 100}, 2.0) == FetchProgress(500, 1000, 50.0)
    meter.read({"done": 150}, 20.0)
    assert meter.read({"done": 350}, 24.0) == FetchProgress(750, 1000, 50.0)
    assert meter.read({"done": 5000}, 25.0).done_bytes == 1000


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (FetchProgress(0, 2**30), "0.0 of 1.0 GiB"),
        (FetchProgress(2**29, 2**32, 2**26), "0.5 of 4.0 GiB, 64 MiB/s, 56 s left"),
        (FetchProgress(2**20, 5 * 2**20, 2**19), "1.0 of 5.0 MiB, 0.5 MiB/s, 8 s left"),
    ],
)
def test_progress_for_people(progress: FetchProgress, text: str) -> None:
    assert str(progress) == text


@pytest.mark.parametrize("slug", FAILURES)
def test_every_failure_has_its_texts(slug: str) -> None:
    values = {
        "model": "org/name",
        "revision": "v2",
        "need": 2**31,
        "free": 2**30,
        "folder": "/f",
        "status": 503,
    }
    error = fetch_error(
        slug, {**values, "text": "why", "patterns": "*.bin"}, {"HF_ENDPOINT": "http://mirror/"}
    )
    named = {field for part in FAILURES[slug][:2] for _, field, _, _ in Formatter().parse(part) if field}
    shown = error.diagnosis.cause + error.diagnosis.hint
    assert "{" not in shown
    assert all(str(values[field]) in shown for field in named & {"model", "folder", "status"})
    assert "http://mirror/org/name" in shown if "endpoint" in named else True


def test_a_full_disk_is_told_in_sizes() -> None:
    values = {"model": "org/name", "need": 9 * 2**30, "free": 2**30, "folder": "/models"}
    cause = fetch_error("disk", values, {}).diagnosis.cause
    assert cause == "no room for `org/name`: 9.0 GiB to come, 1.0 GiB free in /models"
