"""The transition table walked, and the restart policy."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoria.admin.api import openapi
from memoria.config.model import Restart
from memoria.engine.lifecycle import (
    FACTS,
    TRANSITIONS,
    Ending,
    Event,
    History,
    ImpossibleTransition,
    State,
    Verdict,
    accepts,
    after_crash,
    meant,
    next_state,
)

POLICY = Restart(initial=2.0, cap=300.0, reset=600.0, attempts=5)
CRASH = Ending(None, "exited 1")

endings = st.builds(
    Ending,
    ready_seconds=st.none() | st.floats(0, 10_000),
    cause=st.just("exited 1"),
    retryable=st.sampled_from(["yes", "no", "limited"]),
    spoiled=st.booleans(),
)
jitters = st.floats(-1, 1)


def reachable(start: State) -> set[State]:
    found, new = {start}, [start]
    while new:
        state = new.pop()
        for after in {then for (before, _), then in TRANSITIONS.items() if before is state} - found:
            found.add(after)
            new.append(after)
    return found


def crashes(*many: Ending, history: History | None = None, jitter: float = 0.0) -> list[Verdict]:
    """The verdicts on a sequence of endings, up to the first that gives up."""
    history, verdicts = history or History(), []
    for ending in many:
        verdicts.append(after_crash(POLICY, history, ending, jitter))
        history = verdicts[-1].history
        if verdicts[-1].delay is None:
            break
    return verdicts


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_a_pair_is_either_in_the_table_or_impossible(state: State, event: Event) -> None:
    if accepts(state, event):
        assert next_state(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(ImpossibleTransition, match=f"^{state.value}: {event.value}$"):
            next_state(state, event)


def test_every_state_has_its_facts() -> None:
    assert list(FACTS) == list(State)
    for facts in FACTS.values():
        assert facts.has_process or not (facts.serves or facts.frees_memory)
        assert not (facts.at_rest and (facts.has_process or facts.comes_back))
        assert facts.settles or not facts.at_rest
    assert len({facts.sentence for facts in FACTS.values()}) == len(State)


def test_the_description_of_the_api_lists_every_state() -> None:
    engine = json.loads(openapi.document())["components"]["schemas"]["EngineStatus"]["properties"]
    assert engine["state"]["enum"] == list(State)


def test_every_state_can_be_reached() -> None:
    assert reachable(State.STOPPED) == set(State)


@pytest.mark.parametrize("state", State)
def test_every_state_can_come_to_rest(state: State) -> None:
    assert State.STOPPED in reachable(state)


@pytest.mark.parametrize("event", Event)
def test_every_event_has_a_use(event: Event) -> None:
    assert any(meant(state, event) is used for state, used in TRANSITIONS)


@pytest.mark.parametrize("state", State)
def test_a_restart_is_a_stop_or_a_start_whichever_changes_something(state: State) -> None:
    wish, at_once = meant(state, Event.RESTART), meant(state, Event.RESTART_NOW)
    if state in (State.STOPPED, State.BACKOFF, State.FAILED):
        assert wish is at_once is Event.START
        assert accepts(state, wish)
    elif state is State.QUEUED:
        assert not accepts(state, wish)
    else:
        assert (wish, at_once) == (Event.STOP, Event.KILL)


@pytest.mark.parametrize("state", sorted(set(State) - {State.STOPPED, State.RELEASING, State.HELD}))
def test_a_kill_is_heard_in_every_state_that_it_can_end(state: State) -> None:
    assert accepts(state, Event.KILL)


@pytest.mark.parametrize("state", [State.STARTING, State.READY, State.DRAINING, State.STOPPING])
def test_the_memory_is_waited_for_after_every_exit(state: State) -> None:
    assert next_state(state, Event.EXITED) is State.RELEASING


def test_only_a_released_engine_starts_again() -> None:
    assert {before for (before, _), after in TRANSITIONS.items() if after is State.BACKOFF} == {
        State.RELEASING,
        State.HELD,
    }


def test_delays_double_up_to_the_cap() -> None:
    verdicts = crashes(*[Ending(1.0, "exited 1")] * 10)
    assert [verdict.delay for verdict in verdicts] == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


@given(st.lists(endings, max_size=60), jitters)
def test_a_delay_is_never_above_the_cap_and_a_fifth(many: list[Ending], jitter: float) -> None:
    for verdict in crashes(*many, jitter=jitter):
        assert verdict.delay is None or 0 < verdict.delay <= POLICY.cap * 1.2


@given(st.lists(endings, max_size=60), jitters)
def test_an_engine_that_was_once_ready_is_retried_for_ever(many: list[Ending], jitter: float) -> None:
    verdicts = crashes(*many, history=History(ever_ready=True), jitter=jitter)
    assert len(verdicts) == len(many)
    assert all(verdict.delay is not None for verdict in verdicts)


@given(endings, st.integers(0, 40), st.integers(0, 4), st.booleans())
def test_a_spoiled_start_changes_nothing(ending: Ending, count: int, unready: int, ever: bool) -> None:
    before = History(count, unready, ever)
    verdict = after_crash(POLICY, before, replace(ending, ready_seconds=None, spoiled=True), 0)
    assert verdict.history == before
    assert verdict.delay is not None


def test_an_engine_that_never_gets_ready_is_given_up_after_its_attempts() -> None:
    verdicts = crashes(*[CRASH] * 9)
    assert [verdict.delay for verdict in verdicts] == [2, 4, 8, 16, None]
    assert verdicts[-1].reason == "exited 1; never ready in 5 starts"


def test_spoiled_starts_are_not_among_the_attempts() -> None:
    spoiled = Ending(None, "no room", "no", spoiled=True)
    verdicts = crashes(CRASH, spoiled, CRASH, spoiled, CRASH, CRASH, spoiled, CRASH, CRASH)
    assert len(verdicts) == 8
    assert verdicts[-1].delay is None


def test_a_configuration_error_is_given_up_at_once_before_the_first_ready() -> None:
    verdict = after_crash(POLICY, History(), Ending(None, "unknown model", "no"), 0)
    assert verdict.delay is None
    assert verdict.reason == "unknown model; trying again would not help"


def test_a_configuration_error_after_a_ready_is_retried() -> None:
    assert after_crash(POLICY, History(ever_ready=True), Ending(None, "unknown model", "no"), 0).delay == 2
    assert after_crash(POLICY, History(), Ending(5.0, "unknown model", "no"), 0).delay == 2


def test_a_long_time_of_ready_begins_the_delays_anew() -> None:
    assert after_crash(POLICY, History(7, 0, True), Ending(600.0, "exited 1"), 0).delay == 2
    assert after_crash(POLICY, History(7, 0, True), Ending(599.9, "exited 1"), 0).delay == 256


def test_a_time_of_ready_gives_all_attempts_back() -> None:
    verdicts = crashes(CRASH, CRASH, CRASH, CRASH, Ending(1.0, "exited 1"), *[CRASH] * 20)
    assert len(verdicts) == 25


def test_jitter_is_a_fifth_both_ways() -> None:
    assert after_crash(POLICY, History(), CRASH, 1).delay == pytest.approx(2.4)
    assert after_crash(POLICY, History(), CRASH, -1).delay == pytest.approx(1.6)
