"""Safetensors headers and the hub's cache, as files in a folder."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from memoria.errors import UnavailableError
from memoria.plan.checkpoint import (
    INDEX,
    Choice,
    HeaderError,
    NotCachedError,
    Tensor,
    cached_snapshot,
    identity,
    read_header,
    read_model,
)
from memoria.preflight.outcomes import choice_of


def write_weights(path: Path, tensors: dict[str, tuple[str, list[int], int]], *, cut: int = 0) -> None:
    """Tensors by name: dtype, shape, bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end - cut))


def write_model(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(files.get("config", {"model_type": "llama"})))
    write_weights(folder / "model.safetensors", {"a.weight": ("BF16", [2, 3], 12), "b": ("F8_E4M3", [4], 4)})
    return folder


def test_a_header_is_read_without_the_weights(tmp_path: Path) -> None:
    files = read_model(str(write_model(tmp_path / "model")), {})
    assert files.tensors == (Tensor("a.weight", "BF16", (2, 3)), Tensor("b", "F8_E4M3", (4,)))
    assert files.stored_bytes == 16


def test_packed_four_bit_elements_count_half_a_byte() -> None:
    assert Tensor("x", "F4", (3, 3)).stored_bytes == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "too short"),
        (struct.pack("<Q", 2**40) + b"{}", "no safetensors"),
        (struct.pack("<Q", 4) + b"{nop", "damaged"),
        (struct.pack("<Q", 2) + b"[]", "damaged"),
    ],
    ids=["empty", "huge", "json", "list"],
)
def test_a_damaged_header_is_reported(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(HeaderError, match=said):
        read_header(tmp_path / "model.safetensors")


def test_a_download_that_was_cut_off_is_reported(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    write_weights(folder / "model.safetensors", {"a": ("F32", [8], 32)}, cut=5)
    with pytest.raises(UnavailableError, match="cut off"):
        read_model(str(folder), {})


def test_the_index_names_the_files_that_count(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    write_weights(folder / "other.safetensors", {"c": ("F32", [8], 32)})
    index = {"metadata": {"total_size": 16}, "weight_map": {"a.weight": "model.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))
    files = read_model(str(folder), {})
    assert [tensor.name for tensor in files.tensors] == ["a.weight", "b"]
    assert files.index_bytes == 16


def test_a_missing_shard_is_named_and_leaves_the_configuration(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    files = read_model(str(folder), {})
    assert (files.tensors, files.missing) == ((), ())
    (folder / INDEX).write_text(
        json.dumps({"weight_map": {"a": "gone.safetensors", "b": "model.safetensors"}})
    )
    files = read_model(str(folder), {})
    assert (files.tensors, files.missing) == ((), ("gone.safetensors",))


def test_the_cache_is_searched_as_the_hub_lays_it_out(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    write_model(repository / "snapshots" / "old")
    main = write_model(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert cached_snapshot("org/name", tmp_path) == main
    (repository / "refs" / "v2").write_text("old")
    assert cached_snapshot("org/name", tmp_path, "v2") == repository / "snapshots" / "old"
    assert cached_snapshot("org/name", tmp_path, "abc") == main
    assert cached_snapshot("org/name", tmp_path, "v3") is None


def test_a_revision_that_is_not_here_is_not_another_one(tmp_path: Path) -> None:
    write_model(tmp_path / "models--org--name" / "snapshots" / "abc")
    with pytest.raises(NotCachedError):
        read_model("org/name", {"HF_HUB_CACHE": str(tmp_path)}, Choice(revision="v2"))


def test_the_weights_may_be_in_the_engines_own_cache(tmp_path: Path) -> None:
    here = write_model(tmp_path / "hub" / "models--org--name" / "snapshots" / "abc")
    (here / "model.safetensors").unlink()
    environ, choice = {"HF_HUB_CACHE": str(tmp_path / "hub")}, Choice(download_dir=str(tmp_path / "own"))
    assert read_model("org/name", environ, choice).tensors == ()
    before = identity("org/name", environ, choice)
    write_model(tmp_path / "own" / "models--org--name" / "snapshots" / "abc")
    assert len(read_model("org/name", environ, choice).tensors) == 2
    assert identity("org/name", environ, choice) != before


def test_overrides_replace_parts_of_the_configuration(tmp_path: Path) -> None:
    folder = write_model(
        tmp_path, config={"model_type": "llama", "rope_scaling": {"factor": 2, "type": "yarn"}}
    )
    choice = choice_of({"hf_overrides": '{"rope_scaling": {"factor": 4}, "max_position_embeddings": 8}'})
    config = read_model(str(folder), {}, choice).config
    assert config == {
        "model_type": "llama",
        "rope_scaling": {"factor": 4, "type": "yarn"},
        "max_position_embeddings": 8,
    }
    assert choice_of({"hf_overrides": "no JSON"}) == choice_of({}) == Choice()


def test_a_model_that_is_nowhere_is_reported_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(NotCachedError) as caught:
        read_model("org/name", {"HF_HUB_CACHE": str(tmp_path)})
    (problem,) = caught.value.problems
    assert "org/name" in problem.what
    assert problem.hint == "fetch it: `memoria pull`"


def test_a_folder_without_a_configuration_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no config\.json"):
        read_model(str(tmp_path), {})
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UnavailableError, match="not a JSON object"):
        read_model(str(tmp_path), {})


def test_lengths_beside_the_configuration_are_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1e30}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512}))
    files = read_model(str(folder), {})
    assert (files.tokenizer_length, files.encoder_length) == (None, 512)
