from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from memoria.daemon.engine_router import EngineRouter
from memoria.engine.lifecycle import State
from memoria.engine.snapshot import EngineSnapshot
from memoria.engine.traffic import Traffic
from memoria.proxy.errors import Refusal
from memoria.supervisor.model_names import ModelNames
from memoria.vllm.facts import UnixAddress
from tests.unit.commands import CONFIG

NAME = CONFIG.engines[0].name


def router(state: State, **facts: Any) -> EngineRouter:
    snapshot = EngineSnapshot(NAME, state, since=time.time(), address=UnixAddress("/run/a.sock"), **facts)
    actors = {NAME: SimpleNamespace(snapshot=snapshot, traffic=Traffic())}
    supervisor: Any = SimpleNamespace(actors=actors)
    return EngineRouter(supervisor, dict, ModelNames(supervisor))


def refusal(state: State, **facts: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        router(state, **facts).entrance(NAME)
    return caught.value


def test_a_ready_engine_admits() -> None:
    assert router(State.READY).entrance(NAME).address == UnixAddress("/run/a.sock")


@pytest.mark.parametrize(
    "state", [State.QUEUED, State.STARTING, State.DRAINING, State.STOPPING, State.RELEASING, State.BACKOFF]
)
def test_an_engine_that_comes_back_by_itself_may_be_waited_for(state: State) -> None:
    assert refusal(state).ready_in == 0.0


@pytest.mark.parametrize("state", [State.STOPPED, State.HELD, State.FAILED])
def test_an_engine_that_needs_help_may_not(state: State) -> None:
    assert refusal(state).ready_in is None


def test_a_request_for_an_engine_on_demand_makes_it_wanted() -> None:
    wanted: list[str] = []

    def want(name: str) -> float:
        wanted.append(name)
        return 41.6

    dormant = router(State.DORMANT, on_demand=True)
    dormant._supervisor.on_demand = SimpleNamespace(want=want)  # type: ignore[assignment]
    with pytest.raises(Refusal) as caught:
        dormant.entrance(NAME)
    assert wanted == [NAME]
    assert caught.value.ready_in == 0.0
    assert caught.value.answer.headers == ((b"retry-after", b"42"),)


def test_a_backoff_says_how_long_it_is() -> None:
    seconds = refusal(State.BACKOFF, retry_at=time.time() + 100).ready_in
    assert seconds is not None
    assert 90 < seconds <= 100
    assert refusal(State.BACKOFF, retry_at=time.time() - 100).ready_in == 0.0
