"""Five minutes of every engine's figures."""

from __future__ import annotations

from dataclasses import replace

from memoria.admin.status.history import EVERY, KEPT, History
from memoria.admin.status.status import Status
from tests.unit.status_examples import AT, EMBEDDING, HEALTHY


def status(after: float, requests: int, kv_usage: float | None = 0.5) -> Status:
    engine = replace(EMBEDDING, requests=requests, kv_usage=kv_usage)
    return replace(HEALTHY, at=AT + after, engines=(engine,))


def test_it_holds_five_minutes() -> None:
    assert EVERY * KEPT == 300
    history = History()
    for number in range(KEPT + 10):
        history.add_sample(status(number * EVERY, number))
    samples = history.samples_after(0)
    assert [sample.number for sample in samples] == list(range(11, KEPT + 11))
    assert samples[-1].at - samples[0].at == 300 - EVERY


def test_requests_are_those_since_the_sample_before() -> None:
    history = History()
    for after, requests in ((0, 100), (5, 150), (15, 160)):
        history.add_sample(status(after, requests))
    rates = [sample.engines["embedding"].requests_per_second for sample in history.samples_after(0)]
    assert rates == [None, 10.0, 1.0]


def test_what_is_not_known_and_what_began_anew_has_no_figure() -> None:
    history = History()
    history.add_sample(status(0, 100))
    history.add_sample(status(5, 3, kv_usage=None))
    figures = history.samples_after(1)[0].engines["embedding"]
    assert (figures.requests_per_second, figures.kv_usage) == (None, None)


def test_only_what_came_after_a_sample_is_told() -> None:
    history = History()
    for number in range(4):
        history.add_sample(status(number * EVERY, number))
    assert [sample.number for sample in history.samples_after(2)] == [3, 4]
    assert history.samples_after(2)[0].engines["embedding"].requests_per_second == 0.2
