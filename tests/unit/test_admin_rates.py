"""Requests per second and time to the first byte, of the last minute."""

from __future__ import annotations

import pytest

from memoria.admin.rates import KEPT, WINDOW, Rate, Rates
from memoria.proxy.exchange import Exchange
from tests.fakes import FakeClock

NOTHING = Rate(None, None)


def exchange(*, engine: str | None = "generation", first_byte_s: float | None = 0.5) -> Exchange:
    return Exchange(
        request_id="1",
        engine=engine,
        route="/v1/completions",
        status=200,
        response_bytes=1,
        first_byte_s=first_byte_s,
        duration_s=1.0,
        complete=True,
        replays=0,
    )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rates(clock: FakeClock) -> Rates:
    return Rates(clock)


def test_what_nobody_asked_is_not_known(rates: Rates) -> None:
    assert rates.of("generation") == NOTHING


def test_a_rate_is_of_the_whole_window(rates: Rates, clock: FakeClock) -> None:
    clock.now += 1000
    for _ in range(30):
        rates.add(exchange())
        clock.now += 1
    assert rates.of("generation").requests_per_second == pytest.approx(30 / WINDOW)


def test_a_young_daemon_divides_by_its_age(rates: Rates, clock: FakeClock) -> None:
    for _ in range(20):
        rates.add(exchange())
    clock.now += 10
    assert rates.of("generation").requests_per_second == pytest.approx(2.0)


def test_under_load_the_window_gets_shorter_and_the_rate_stays_right(rates: Rates, clock: FakeClock) -> None:
    for _ in range(KEPT * 2):
        rates.add(exchange())
        clock.now += 0.01
    assert rates.of("generation").requests_per_second == pytest.approx(100, rel=0.01)


def test_what_is_older_than_the_window_is_forgotten(rates: Rates, clock: FakeClock) -> None:
    rates.add(exchange())
    clock.now += WINDOW + 1
    assert rates.of("generation") == NOTHING


def test_the_slowest_twentieth_is_told(rates: Rates) -> None:
    for tenths in range(100):
        rates.add(exchange(first_byte_s=tenths / 10))
    assert rates.of("generation").ttft_p95 == pytest.approx(9.5)


def test_a_request_that_was_refused_does_not_count(rates: Rates) -> None:
    rates.add(exchange(first_byte_s=None))
    assert rates.of("generation") == NOTHING


def test_engines_are_counted_apart_and_what_reached_none_not_at_all(rates: Rates) -> None:
    rates.add(exchange(engine="embedding"))
    rates.add(exchange(engine=None))
    assert rates.of("generation") == NOTHING
    assert rates.of("embedding") != NOTHING
