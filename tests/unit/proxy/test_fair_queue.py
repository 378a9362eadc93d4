from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoria.proxy.admission.admission import FairQueue


def drained(turns: FairQueue[str]) -> list[str]:
    return [turns.take() for _ in range(len(turns))]


def test_clients_take_turns_and_each_keeps_its_order() -> None:
    turns: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        turns.add(item[0], item)
    assert drained(turns) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_who_comes_later_waits_for_one_item_of_each_client_not_for_all() -> None:
    turns: FairQueue[str] = FairQueue()
    for number in range(100):
        turns.add("greedy", f"g{number}")
    turns.add("late", "l0")
    assert [turns.take(), turns.take()] == ["g0", "l0"]


def test_what_was_removed_is_not_taken() -> None:
    turns: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "b1"):
        turns.add(item[0], item)
    turns.remove("a", "a1")
    turns.remove("b", "b1")
    assert drained(turns) == ["a2"]
    assert not turns


def test_nothing_can_be_taken_from_nothing() -> None:
    turns: FairQueue[str] = FairQueue()
    with pytest.raises(IndexError):
        turns.take()
    with pytest.raises(KeyError):
        turns.remove("a", "a1")


@given(st.lists(st.sampled_from("abcd")))
def test_everybody_gets_one_before_anybody_gets_two_more(clients: list[str]) -> None:
    turns: FairQueue[tuple[str, int]] = FairQueue()
    for number, client in enumerate(clients):
        turns.add(client, (client, number))
    taken = [turns.take() for _ in range(len(clients))]
    assert sorted(number for _, number in taken) == list(range(len(clients)))
    for client in set(clients):
        own = [number for name, number in taken if name == client]
        assert own == sorted(own)
        places = [place for place, (name, _) in enumerate(taken) if name == client]
        for first, second in pairwise(places):
            between = [name for name, _ in taken[first + 1 : second]]
            assert len(between) == len(set(between))
