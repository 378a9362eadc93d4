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
    Decision,
    Event,
    Exit,
    History,
    ImpossibleTransition,
    RestartPolicy,
    State,
    accepts,
    next_state,
    resolve_request,
)

SETTINGS = Restart(initial=2.0, cap=300.0, reset=600.0, attempts=5)
CRASH = Exit(None, "exited 1")

exits = st.builds(
    Exit,
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


def policy(history: History | None = None, jitter: float = 0.0) -> RestartPolicy:
    return RestartPolicy(SETTINGS, lambda: jitter, history)


def crashes(*many: Exit, history: History | None = None, jitter: float = 0.0) -> list[Decision]:
    """The decisions on a sequence of crashes, up to the first that gives up."""
    decided, one = policy(history, jitter), []
    for crash in many:
        one.append(decided.decide(crash))
        if one[-1].event is Event.GIVE_UP:
            break
    return one


def delay(crash: Exit, history: History | None = None, jitter: float = 0.0) -> float | None:
    """Until the next start after one crash; None when it is given up."""
    decision = policy(history, jitter).decide(crash)
    return decision.delay if decision.event is Event.RETRY else None


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


@pytest.mark.parametrize("state", State)
def test_a_bug_in_a_states_work_leads_on_where_the_state_does_not_rest(state: State) -> None:
    on_bug = FACTS[state].on_bug
    if FACTS[state].at_rest:
        assert on_bug is None
    else:
        assert on_bug is not None
        assert (state, on_bug) in TRANSITIONS


@pytest.mark.parametrize("event", Event)
def test_only_a_request_is_resolved_to_another_event(event: Event) -> None:
    changed = {resolve_request(state, event) for state in State} - {event}
    assert event.is_request or not changed


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
    assert any(resolve_request(state, event) is used for state, used in TRANSITIONS)


@pytest.mark.parametrize("state", State)
def test_a_restart_is_a_stop_or_a_start_whichever_changes_something(state: State) -> None:
    wish, at_once = resolve_request(state, Event.RESTART), resolve_request(state, Event.RESTART_NOW)
    if state in (State.STOPPED, State.BACKOFF, State.FAILED, State.DORMANT):
        assert wish is at_once is Event.START
        assert accepts(state, wish)
    elif state in (State.QUEUED, State.FETCHING):
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
    decisions = crashes(*[Exit(1.0, "exited 1")] * 10)
    assert [decision.delay for decision in decisions] == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


@given(st.lists(exits, max_size=60), jitters)
def test_a_delay_is_never_above_the_cap_and_a_fifth(many: list[Exit], jitter: float) -> None:
    for decision in crashes(*many, jitter=jitter):
        assert decision.event is Event.GIVE_UP or 0 < decision.delay <= SETTINGS.cap * 1.2


@given(st.lists(exits, max_size=60), jitters)
def test_an_engine_that_was_once_ready_is_retried_for_ever(many: list[Exit], jitter: float) -> None:
    decisions = crashes(*many, history=History(ever_ready=True), jitter=jitter)
    assert len(decisions) == len(many)
    assert all(decision.event is Event.RETRY for decision in decisions)


@given(exits, st.integers(0, 40), st.integers(0, 4), st.booleans())
def test_a_spoiled_start_changes_nothing(crash: Exit, count: int, unready: int, ever: bool) -> None:
    decided = policy(before := History(count, unready, ever))
    decision = decided.decide(replace(crash, ready_seconds=None, spoiled=True))
    assert decided.history == before
    assert decision.event is Event.RETRY


def test_an_engine_that_never_gets_ready_is_given_up_after_its_attempts() -> None:
    decisions = crashes(*[CRASH] * 9)
    assert [decision.delay for decision in decisions[:-1]] == [2, 4, 8, 16]
    assert decisions[-1] == Decision(Event.GIVE_UP, reason="exited 1; never ready in 5 starts")


def test_spoiled_starts_are_not_among_the_attempts() -> None:
    spoiled = Exit(None, "no room", "no", spoiled=True)
    decisions = crashes(CRASH, spoiled, CRASH, spoiled, CRASH, CRASH, spoiled, CRASH, CRASH)
    assert len(decisions) == 8
    assert decisions[-1].event is Event.GIVE_UP


def test_a_configuration_error_is_given_up_at_once_before_the_first_ready() -> None:
    (decision,) = crashes(Exit(None, "unknown model", "no"))
    assert decision == Decision(Event.GIVE_UP, reason="unknown model; trying again would not help")


def test_a_configuration_error_after_a_ready_is_retried() -> None:
    assert delay(Exit(None, "unknown model", "no"), History(ever_ready=True)) == 2
    assert delay(Exit(5.0, "unknown model", "no")) == 2


def test_a_long_time_of_ready_begins_the_delays_anew() -> None:
    assert delay(Exit(600.0, "exited 1"), History(7, 0, True)) == 2
    assert delay(Exit(599.9, "exited 1"), History(7, 0, True)) == 256


def test_a_time_of_ready_gives_all_attempts_back() -> None:
    decisions = crashes(CRASH, CRASH, CRASH, CRASH, Exit(1.0, "exited 1"), *[CRASH] * 20)
    assert len(decisions) == 25


def test_jitter_is_a_fifth_both_ways() -> None:
    assert delay(CRASH, jitter=1) == pytest.approx(2.4)
    assert delay(CRASH, jitter=-1) == pytest.approx(1.6)


def test_an_engine_that_is_not_wanted_rests_and_one_that_was_to_end_starts_at_once() -> None:
    assert policy().decide(CRASH, wanted=False) == Decision(Event.REST)
    assert policy().decide(None) == Decision(Event.REQUEUE)
    assert policy().decide(None, wanted=False) == Decision(Event.REST)


def test_only_the_first_crash_has_no_delay_with_a_standby_at_the_gate() -> None:
    decided = policy()
    waits = [decided.decide(Exit(1.0, "exited 1"), standby_waits=True).event for _ in range(2)]
    assert waits == [Event.REQUEUE, Event.RETRY]


def test_a_request_of_a_person_gives_all_attempts_back_but_keeps_that_it_was_ready() -> None:
    decided = policy(History(7, 3, True))
    decided.pardon()
    assert decided.history == History(ever_ready=True)


# ------------------------------------------------------------------ on demand


@pytest.mark.parametrize("state", [State.STOPPED, State.FAILED])
def test_a_start_of_an_engine_on_demand_offers_it(state: State) -> None:
    for request in (Event.START, Event.RESTART, Event.RESTART_NOW):
        event = resolve_request(state, request, on_demand=True)
        assert next_state(state, event) is State.DORMANT
    assert resolve_request(State.READY, Event.RESTART, on_demand=True) is Event.STOP


@given(st.lists(exits, max_size=8), jitters)
def test_an_engine_on_demand_comes_back_after_the_same_delays_but_not_by_itself(
    many: list[Exit], jitter: float
) -> None:
    resident, on_demand = policy(jitter=jitter), policy(jitter=jitter)
    for crash in many:
        usual, decision = resident.decide(crash), on_demand.decide(crash, on_demand=True)
        expected = Event.LIE_DORMANT if usual.event is Event.RETRY else usual.event
        assert decision == replace(usual, event=expected)


def test_what_made_room_waits_for_a_request_and_what_was_restarted_does_not() -> None:
    assert policy().decide(None, on_demand=True, made_room=True) == Decision(Event.LIE_DORMANT)
    assert policy().decide(None, on_demand=True) == Decision(Event.REQUEUE)
    assert policy().decide(None, made_room=True) == Decision(Event.REQUEUE)  # resident since a reload
    assert policy().decide(None, wanted=False, on_demand=True, made_room=True) == Decision(Event.REST)


def test_a_standby_takes_over_a_crash_on_demand_without_a_delay() -> None:
    decision = policy().decide(CRASH, on_demand=True, standby_waits=True)
    assert decision == Decision(Event.LIE_DORMANT, 0.0, CRASH.cause)
