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
    assert engine.sleep_level == 0
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


def test_requests_wait_long_enough_by_default(folder: ConfigFolder) -> None:
    assert folder.load(file("on_demand: true")).hold.seconds == 30 + 30 + 30
    assert folder.load(file("on_demand: true", "swap: {turn: 900}")).hold.seconds == 600
    assert folder.load(file("ttl: 0")).hold.seconds == 30


def test_a_hold_shorter_than_a_turn_is_worth_a_word(folder: ConfigFolder) -> None:
    config = folder.load(file("on_demand: true", "hold: {seconds: 10}"))
    (warning,) = config.warnings
    assert (config.hold.seconds, warning.what[:24]) == (10, "requests wait for 10 s, ")
    assert not folder.load(file("on_demand: true", "hold: {seconds: 0}")).warnings
    assert not folder.load(file("on_demand: true")).warnings


@pytest.mark.parametrize(("level", "number"), [("none", 0), ("1", 1), ("2", 2)])
def test_levels_of_sleep(folder: ConfigFolder, level: str, number: int) -> None:
    assert folder.load(file(f"on_demand: true, sleep_level: {level}")).engine("a").sleep_level == number


@pytest.mark.parametrize("level", ["0", "3", "deep", "1.0"])
def test_levels_that_are_not_there_are_refused(folder: ConfigFolder, level: str) -> None:
    problem = folder.problem(file(f"on_demand: true, sleep_level: {level}"))
    assert problem.what == f"`sleep_level` must be `1`, `2` or `none`, not `{level}`"


@pytest.mark.parametrize(
    ("keys", "top", "what"),
    [
        ("sleep_level: 1", "device: cpu", "`sleep_level: 1` needs a GPU"),
        ("sleep_level: 1, args: {load_format: ipc_cache}", "", "weights that another process holds"),
        ("sleep_level: 1, args: {enable_sleep_mode: false}", "", "needs vLLM's sleep mode"),
        ("sleep_level: 2, args: {load_format: dummy}", "", "no weights to read again"),
        ("sleep_level: 2, args: {enable_lora: true}", "", "loses adapters"),
        ("sleep_level: 2, args: {lora_modules: x=org/y}", "", "loses adapters"),
        (
            "sleep_level: 2, args: {speculative_config: {method: ngram}}",
            "",
            "loses the draft model's weights",
        ),
    ],
)
def test_what_does_not_sleep(folder: ConfigFolder, keys: str, top: str, what: str) -> None:
    problem = folder.problem(file(f"on_demand: true, {keys}", top))
    assert what in problem.what
    assert len(problem.where) == 2
    assert problem.hint


@pytest.mark.parametrize("keys", ["enable_lora: true", "speculative_config: {method: ngram}"])
def test_level_1_keeps_adapters_and_a_draft(folder: ConfigFolder, keys: str) -> None:
    assert (
        folder.load(file(f"on_demand: true, sleep_level: 1, args: {{{keys}}}")).engine("a").sleep_level == 1
    )


def test_a_resident_does_not_sleep(folder: ConfigFolder) -> None:
    assert folder.problem(file("sleep_level: 1")).what == "`sleep_level` has no effect: a is resident"


def test_host_memory_for_sleeping_weights(folder: ConfigFolder) -> None:
    swap = folder.load(file("on_demand: true", "swap: {host_memory: 64GiB, verify: false}")).swap
    assert (swap.host_memory, swap.verify) == (64 << 30, False)
    assert folder.load(file("on_demand: true", "swap: {host_memory: auto}")).swap.host_memory is None
    assert "host_memory" in folder.problem(file("on_demand: true", "swap: {host_memory: 64}")).what
