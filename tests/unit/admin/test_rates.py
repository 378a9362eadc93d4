"""Requests per second and time to the first byte, of the last minute."""

from __future__ import annotations

import pytest

from memoria.admin.telemetry.rates import KEPT, SPEED_WINDOW, WINDOW, Rate, Rates, Speed
from memoria.proxy.exchange.record import RequestRecord
from tests.fakes import FakeClock

NOTHING = Rate(0.0, None, None, None, None)


def record(
    *,
    engine: str | None = "generation",
    first_byte_s: float | None = 0.5,
    status: int = 200,
    streamed: bool = True,
) -> RequestRecord:
    return RequestRecord(
        request_id="1",
        engine=engine,
        route="/v1/completions",
        status=status,
        response_bytes=1,
        first_byte_s=first_byte_s,
        duration_s=1.0,
        complete=True,
        replays=0,
        streamed=streamed,
    )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rates(clock: FakeClock) -> Rates:
    return Rates(clock)


def test_of_what_nobody_asked_the_rate_is_none_and_times_are_not_known(rates: Rates) -> None:
    assert rates.rate("generation") == NOTHING


def test_a_rate_is_of_the_whole_window(rates: Rates, clock: FakeClock) -> None:
    clock.now += 1000
    for _ in range(30):
        rates.add_request(record())
        clock.now += 1
    assert rates.rate("generation").requests_per_second == pytest.approx(30 / WINDOW)


def test_a_young_daemon_divides_by_its_age(rates: Rates, clock: FakeClock) -> None:
    for _ in range(20):
        rates.add_request(record())
    clock.now += 10
    assert rates.rate("generation").requests_per_second == pytest.approx(2.0)


def test_under_load_the_window_gets_shorter_and_the_rate_stays_right(rates: Rates, clock: FakeClock) -> None:
    for _ in range(KEPT * 2):
        rates.add_request(record())
        clock.now += 0.01
    assert rates.rate("generation").requests_per_second == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("per_second", [2_000, 20_000, 100_000])
def test_no_load_is_too_high_to_be_speeds(rates: Rates, clock: FakeClock, per_second: int) -> None:
    for _ in range(KEPT * 2):
        clock.now += 1 / per_second
        rates.add_request(record())
    assert rates.rate("generation").requests_per_second == pytest.approx(per_second, rel=0.01)


def test_the_first_moment_makes_no_rate_without_end(rates: Rates) -> None:
    rates.add_request(record())
    assert rates.rate("generation").requests_per_second == 1


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_errors_count_as_requests_but_not_for_the_times(rates: Rates, clock: FakeClock, status: int) -> None:
    clock.now += 10
    rates.add_request(record(first_byte_s=2.0, status=status))
    assert rates.rate("generation") == Rate(0.1, None, None, None, None)
    rates.add_request(record(first_byte_s=0.5))
    assert rates.rate("generation") == Rate(0.2, 0.5, 0.5, 1.0, 1.0)


def test_only_a_stream_has_a_time_to_its_first_token(rates: Rates, clock: FakeClock) -> None:
    clock.now += 10
    rates.add_request(record(streamed=False))
    assert rates.rate("generation") == Rate(0.1, None, None, 1.0, 1.0)


def test_what_is_older_than_the_window_is_forgotten(rates: Rates, clock: FakeClock) -> None:
    rates.add_request(record())
    clock.now += WINDOW + 1
    assert rates.rate("generation") == NOTHING


def test_the_slowest_twentieth_is_speeds(rates: Rates) -> None:
    for tenths in range(100):
        rates.add_request(record(first_byte_s=tenths / 10))
    assert rates.rate("generation").ttft_p95 == pytest.approx(9.5)


def test_a_request_that_was_refused_does_not_count(rates: Rates) -> None:
    rates.add_request(record(first_byte_s=None))
    assert rates.rate("generation") == NOTHING


def test_engines_are_counted_apart_and_what_reached_none_not_at_all(rates: Rates) -> None:
    rates.add_request(record(engine="embedding"))
    rates.add_request(record(engine=None))
    assert rates.rate("generation") == NOTHING
    assert rates.rate("embedding") != NOTHING


def test_a_counter_that_was_not_read_once_goes_on_growing(clock: FakeClock) -> None:
    speed = Speed(clock)
    speeds = []
    for total in (0, 100, None, 300):
        speeds.append(speed.per_second(total))
        clock.now += 1
    assert speeds == [None, 100, None, 100]


def test_a_counter_that_began_anew_has_no_speed_at_first(clock: FakeClock) -> None:
    speed = Speed(clock)
    speeds = []
    for total in (500, 600, None, 20, 70):
        speeds.append(speed.per_second(total))
        clock.now += 1
    assert speeds == [None, 100, None, None, 50]
    clock.now += SPEED_WINDOW
    assert speed.per_second(1000) is None
