"""The headline, on a real GPU: two engines in their fractions, and what becomes of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu import parts
from tests.gpu.box import GpuBox

Report = dict[str, Any]


def test_each_engine_stays_within_its_fraction_and_a_context(gpu_box: GpuBox, report: Report) -> None:
    found = report["memory"] = parts.memory(gpu_box)
    for engine in found["engines"].values():
        assert engine["used"] is not None
        assert engine["outside_the_fraction"] <= 2**30
        assert engine["kv_tokens"] > 0
    before, between, both, after = found["free"]
    assert before > between > both
    assert abs(before - after) <= parts.CLOSE_BYTES


def test_started_one_by_one_no_engine_loses_kv_cache_to_the_other(gpu_box: GpuBox, report: Report) -> None:
    found = report["race"] = parts.race(gpu_box)
    for name, tokens in found["by_memoria"].items():
        by_hand = found["at_once_by_hand"][name].get("kv_tokens") or 0
        assert tokens >= by_hand * 0.98, "all at once was better"


def test_what_was_planned_is_what_each_engine_says(gpu_box: GpuBox, report: Report) -> None:
    found = report["planned"] = parts.planned(gpu_box)
    assert set(found) == {"embedding", "generation"}
    for terms in found.values():
        for term in ("weights_bytes", "kv_tokens"):
            assert terms[term]["planned"] > 0
            assert terms[term]["actual"] > 0
            # A stub says what it likes; beyond this memoria itself tells of it.
            assert gpu_box.dry or abs(terms[term]["error"]) <= 0.05, (term, terms)


def test_what_the_fit_check_accepts_vllm_starts_with(gpu_box: GpuBox, report: Report) -> None:
    found = report["boundary"] = parts.boundary(gpu_box)
    assert found["vllm_starts_with_it"]


def test_a_killed_engine_gives_its_memory_back_and_its_neighbour_feels_nothing(
    gpu_box: GpuBox, report: Report
) -> None:
    gpu_box.want()
    daemon = gpu_box.ready()
    kills = report["kills"] = []
    for name in ("embedding", "generation"):
        for victim in ("leader", "core"):
            kills.append(parts.kill(gpu_box, daemon, name, victim))
    daemon.stop()
    for kill in kills:
        assert kill["neighbour_pid_kept"], kill
        assert kill["neighbour_failures"] == 0, kill
        assert kill["neighbour_answers"] > 0, kill
        assert kill["restarts"] == 1, kill
    assert gpu_box.survivors() == []


def test_both_engines_are_loaded_alone_and_together(gpu_box: GpuBox, report: Report) -> None:
    phases = report["together"] = parts.together(gpu_box)
    assert [phase["failures"] for phase in phases] == [0, 0, 0]
    alone = phases[1]["generation"]["between_tokens"]["p50"]
    report["together_guarded"] = parts.together(gpu_box, guard_ms=round(alone * 1000 * 1.5, 3))


def test_cuda_mps(gpu_box: GpuBox, report: Report) -> None:
    phases = report["together_with_mps"] = parts.with_mps(gpu_box)
    if phases is None:
        pytest.skip("no nvidia-cuda-mps-control here")
    assert [phase["failures"] for phase in phases] == [0, 0, 0]


def test_swapping_is_timed(gpu_box: GpuBox, report: Report) -> None:
    found = report["swap"] = parts.swap(gpu_box)
    assert found["swap"] > 0
