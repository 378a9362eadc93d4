"""The layout of the KV cache against what real vLLM 0.32 logged (written by `tests.vllm.tiny_models`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoria.plan.budgets import kv_cache_bytes
from memoria.plan.footprint.footprint import measure
from memoria.plan.footprint.kv_cache import Attention, Demand, KvCache, State, lay_out
from memoria.plan.footprint.settings import Machine
from memoria.plan.outcome import fitted
from memoria.text import GIB
from tests.demo_models import MAX_LENGTH
from tests.unit.checkpoints import model_files

RECORDS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "data" / "kv_cache.json").read_text()
)
CPU = Machine(24 * GIB, "2 CPUs", on_cpu=True)


@pytest.mark.parametrize("name", RECORDS)
def test_tokens_and_concurrency_are_those_that_vllm_logged(name: str) -> None:
    record = RECORDS[name]
    files = model_files(record["config"], tokenizer_length=MAX_LENGTH)
    footprint = measure(files, record["flags"], CPU, pooling=record["pooling"])
    available = kv_cache_bytes(record["flags"])
    assert available is not None
    cache = fitted(footprint, available)
    capacity = cache.capacity(available)
    assert capacity.tokens == record.get("tokens", 0)
    assert round(capacity.concurrency, 2) == record.get("concurrency", 0.0)
    if "max_model_len" in record:
        assert cache.demand.max_model_len == record["max_model_len"]


def test_every_record_names_the_vllm_that_said_it() -> None:
    assert {record["vllm"] for record in RECORDS.values()} == {"0.32.0"}


def test_twelve_architectures_and_more_were_measured() -> None:
    assert len({record["config"]["architectures"][0] for record in RECORDS.values()}) >= 12


attention = st.builds(
    Attention,
    token_bytes=st.sampled_from([64, 128, 256]),
    block_size=st.just(16),
    window=st.sampled_from([None, None, 64, 1000]),
)
layers = st.lists(
    st.one_of(attention, st.builds(State, state_bytes=st.integers(1, 5000))), min_size=1, max_size=12
)
demands = st.builds(Demand, max_model_len=st.integers(1, 5000), in_flight=st.integers(1, 3000))
caches = st.builds(lay_out, layers, demands)


@given(caches, st.integers(0, 10**8), st.integers(0, 10**6))
def test_more_memory_never_holds_less(cache: KvCache, size: int, more: int) -> None:
    assert cache.capacity(size + more).tokens >= cache.capacity(size).tokens


@given(caches, st.floats(0.1, 20), st.integers(0, 50_000))
def test_the_size_for_a_wish_is_the_smallest_that_grants_it(
    cache: KvCache, concurrency: float, tokens: int
) -> None:
    size = cache.bytes_for(concurrency=concurrency, tokens=tokens)
    granted = cache.capacity(size)
    assert granted.concurrency >= concurrency
    assert granted.tokens >= tokens
    assert size >= cache.least_bytes
    less = cache.capacity(size - cache.block_bytes)
    assert size == cache.least_bytes or less.concurrency < concurrency or less.tokens < tokens


@given(caches, st.integers(0, 10**7))
def test_the_longest_context_starts_and_one_more_token_does_not(cache: KvCache, size: int) -> None:
    from dataclasses import replace

    length = cache.longest(size)
    for tried, fits in ((length, True), (length + 1, False)):
        if 1 <= tried <= cache.demand.max_model_len:
            shorter = replace(cache, demand=replace(cache.demand, max_model_len=tried))
            assert (shorter.least_bytes <= size) is fits


def test_windows_beside_full_attention_are_shared_out_in_equal_groups() -> None:
    full, window = Attention(128, 16), Attention(128, 16, window=64)
    cache = lay_out([window] * 5 + [full] + [window] * 2, Demand(2048, 512))
    assert sorted(group.count for group in cache.groups) == [1] * 8
    assert cache.block_bytes == 128 * 16


def test_kinds_of_about_the_same_count_make_one_group_each() -> None:
    full, window = Attention(128, 16), Attention(128, 16, window=64)
    cache = lay_out([window] * 12 + [full] * 13, Demand(2048, 512))
    assert [group.count for group in cache.groups] == [12, 13]
    assert cache.block_bytes == 13 * 128 * 16
