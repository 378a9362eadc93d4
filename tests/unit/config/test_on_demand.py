"""Keys of engines on demand, and what does not go together with them."""

from __future__ import annotations

import pytest

from memoria.config.model import Swap
from tests.unit.config_files import ENGINE, ConfigFolder, folder

__all__ = ["folder"]


def file(keys: str, top: str = "") -> str:
    return f"{top}\nengines: {{a: {{{ENGINE}, {keys}}}, b: {{{ENGINE}, runner: pooling}}}}\n"


def test_keys_and_their_defaults(folder: ConfigFolder) -> None:
    config = folder.load(file("on_demand: true"))
    engine = config.engine("a")
    assert (engine.on_demand, engine.ttl, engine.preload, engine.priority) == (True, 0, False, 0)
    assert engine.sleep_level == "none"
    assert not config.engine("b").on_demand
    assert config.swap == Swap(turn=30, patience=60, min_awake=10)
    text = file(
        "on_demand: true, ttl: 600, sleep_level: none, preload: true, priority: 2", "swap: {turn: 12}"
    )
    engine = folder.load(text).engine("a")
    assert (engine.ttl, engine.preload, engine.priority) == (600, True, 2)


@pytest.mark.parametrize("key", ["ttl: 9", "preload: true", "priority: 1"])
def test_a_key_of_an_engine_on_demand_has_no_effect_on_a_resident(folder: ConfigFolder, key: str) -> None:
    problem = folder.problem(file(key))
    assert problem.what == f"`{key.partition(':')[0]}` has no effect: a is resident"
    assert problem.hint == "write `on_demand: true`, or remove it"


@pytest.mark.parametrize(
    ("keys", "top", "what"),
    [
        ("on_demand: true, transport: tcp, port: 8111", "", "cannot have `transport: tcp`"),
        ("on_demand: true", "guard: {protect: a, inter_token_ms: 50}", "the latency guard protects a"),
        ("on_demand: true", "swap: {turn: 5}", "a turn of 5 s ends before `min_awake` (10 s)"),
    ],
)
def test_what_does_not_go_together(folder: ConfigFolder, keys: str, top: str, what: str) -> None:
    problem = folder.problem(file(keys, top))
    assert what in problem.what
    assert len(problem.where) == 2
    assert problem.hint


def test_its_memory_is_written_not_left_to_the_plan(folder: ConfigFolder) -> None:
    engine = ENGINE.replace("gpu_memory_utilization: 0.5", "gpu_memory_utilization: auto")
    assert engine != ENGINE
    problem = folder.problem(f"engines: {{a: {{{engine}, on_demand: true}}}}\n")
    assert problem.what == "an engine on demand needs a fraction or a size of its own"


@pytest.mark.parametrize("level", ["1", "2", "deep"])
def test_levels_that_are_not_there_are_refused(folder: ConfigFolder, level: str) -> None:
    problem = folder.problem(file(f"on_demand: true, sleep_level: {level}"))
    assert "sleep_level" in problem.what
