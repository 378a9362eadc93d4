"""Weights by their headers against the parameters of real vLLM 0.32 (from `tests.vllm.tiny_weights`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memoria.plan.checkpoint import ModelFiles, Tensor
from memoria.plan.footprint.footprint import measure
from memoria.plan.footprint.settings import Machine
from memoria.text import GIB

RECORDS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "data" / "weights.json").read_text()
)


@pytest.mark.parametrize("name", RECORDS)
def test_weights_are_planned_to_the_byte(name: str) -> None:
    record = RECORDS[name]
    tensors = tuple(Tensor(name, dtype, tuple(shape)) for name, dtype, shape in record["tensors"])
    files = ModelFiles(name, "here", record["config"], tensors)
    footprint = measure(files, {}, Machine(24 * GIB, "2 CPUs", on_cpu=True), pooling=record["pooling"])
    assert footprint.weights.exact
    assert footprint.weights.total_bytes == record["loaded_bytes"]


def test_every_record_names_the_vllm_that_said_it() -> None:
    assert {record["vllm"] for record in RECORDS.values()} == {"0.32.0"}
