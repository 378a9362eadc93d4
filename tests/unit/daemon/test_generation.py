"""What a configuration comes to for the HTTP side, before anything is bound."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from memoria.config.model import Address, Config, Filters, Guard
from memoria.daemon.generation import Generation, build_generation
from memoria.plan.plan import make_plan
from memoria.preflight.preflight import Deployment
from memoria.proxy.access.keys import Keys
from memoria.proxy.router import Candidate
from tests.unit.commands import CONFIG, ENGINE, SERVE
from tests.unit.plans import gpu

EMBEDDER = replace(ENGINE, name="embedding", runner="pooling", served_model_name=("e",), port=8100)
OPEN = replace(ENGINE, name="open", served_model_name=("o",), port=None)
ENGINES = replace(CONFIG, engines=(EMBEDDER, ENGINE, OPEN))


def generation(config: Config) -> Generation:
    plan = make_plan(config, {engine.gpu: gpu() for engine in config.engines})
    return build_generation(Deployment(config, plan, SERVE), Keys())


def test_all_engines_of_a_runner_are_behind_the_main_port() -> None:
    candidates = generation(ENGINES).candidates
    both = (Candidate("generation", ENGINE.served_model_name), Candidate("open", ("o",)))
    assert candidates["generate", 8200] == both
    assert candidates["pooling", 8200] == (Candidate("embedding", ("e",)),)
    assert candidates[None, 8200] == (Candidate("embedding", ("e",)), *both)


def test_behind_an_engines_own_port_it_is_alone() -> None:
    candidates = generation(ENGINES).candidates
    assert candidates["pooling", 8100] == candidates[None, 8100] == (Candidate("embedding", ("e",)),)
    assert candidates["generate", 8100] == ()
    assert {port for _, port in candidates} == {8200, 8100, 8101}


def test_the_policy_names_the_engines_that_it_is_for() -> None:
    filtered = replace(ENGINE, filters=Filters(strip=("logprobs",)))
    guard = Guard(protect="generation", inter_token_ms=20)
    built = generation(replace(CONFIG, engines=(EMBEDDER, filtered), guard=guard))
    assert built.policy.filters == {"generation": filtered.filters}
    assert built.policy.protected is not None
    assert built.policy.protected.engine == "generation"
    assert built.guarding is not None
    assert built.guarding.neighbours == ("embedding",)
    assert built.max_requests == {"embedding": EMBEDDER.max_requests, "generation": ENGINE.max_requests}


def test_without_a_guard_nothing_is_protected() -> None:
    built = generation(CONFIG)
    assert (built.guarding, built.policy.protected, built.policy.filters) == (None, None, {})


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("fd00::1", "[fd00::1]"),
        ("box.example", "box.example"),
    ],
)
def test_the_url_is_one_that_this_machine_can_open(host: str, shown: str) -> None:
    assert generation(replace(CONFIG, listen=Address(host, 8200))).url == f"http://{shown}:8200"


def test_no_part_of_it_can_be_replaced() -> None:
    built = generation(CONFIG)
    with pytest.raises(FrozenInstanceError):
        built.policy = built.policy  # type: ignore[misc] # what the test is about
