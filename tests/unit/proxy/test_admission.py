from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from memoria.config.model import Hold, Runner
from memoria.proxy.admission.admission import Admission, Lease, Load, Waiting
from memoria.proxy.errors import Refusal
from memoria.proxy.router import Candidate
from memoria.vllm.facts import UnixAddress

ADDRESS = UnixAddress("/run/a.sock")
STARTING = Refusal(503, "engine `a` is starting", "engine_not_ready", retry_after=10, ready_in=0.0)
FAILED = Refusal(503, "engine `a` is failed", "engine_not_ready", retry_after=30)


class Entrance:
    works_until = 0.0

    def __init__(self, router: Router) -> None:
        self._router, self.address = router, ADDRESS

    def enter(self) -> None:
        self._router.entered += 1

    def leave(self) -> None:
        self._router.entered -= 1


class Router:
    """One engine `a`, ready unless there is a `refusal`, and `b`, always ready."""

    def __init__(self) -> None:
        self.refusal: Refusal | None = None
        self.entered = 0

    def candidates(self, runner: Runner | None, port: int) -> tuple[Candidate, ...]:
        return (Candidate("a", ("a",)), Candidate("b", ("b",)))

    def look_for_models(self, done: Callable[[], None]) -> bool:
        return False

    def entrance(self, engine: str) -> Entrance:
        if engine == "a" and self.refusal is not None:
            raise self.refusal
        return Entrance(self)


class Bench:
    """An `Admission`, and what its callbacks said."""

    def __init__(self, limit: int = 1, hold: Hold | None = None) -> None:
        self.router = Router()
        self.admission = Admission(self.router, {"a": limit, "b": 1}, hold or Hold())
        self.granted: list[str] = []
        self.places: dict[str, Lease] = {}
        self.refused: dict[str, Refusal] = {}

    def take(self, engine: str = "a") -> Lease:
        place = self.admission.try_admit(engine)
        assert place is not None
        return place

    def wait(self, name: str, client: str | None = None, body_bytes: int = 0, engine: str = "a") -> Waiting:
        def granted(place: Lease) -> None:
            self.granted.append(name)
            self.places[name] = place

        def refused(refusal: Refusal) -> None:
            self.refused[name] = refusal

        return self.admission.wait(engine, client or name, body_bytes, granted=granted, refused=refused)


async def turn() -> None:
    """Whatever was put off with call_soon has run."""
    await asyncio.sleep(0)


def test_a_free_engine_is_had_at_once_and_its_lease_is_held() -> None:
    bench = Bench(limit=2)
    place = bench.take()
    assert place.address == ADDRESS
    assert bench.router.entered == 1
    assert bench.admission.load("a") == Load(in_flight=1, limit=2, waiting=0)
    place.release()
    place.release()
    assert bench.router.entered == 0
    assert bench.admission.load("a").in_flight == 0


def test_a_full_engine_is_waited_for_while_another_is_free() -> None:
    bench = Bench()
    bench.take("a")
    assert bench.admission.try_admit("a") is None
    assert bench.admission.try_admit("b") is not None


async def test_a_place_that_gets_free_goes_to_the_next_one_at_once() -> None:
    bench = Bench()
    place = bench.take()
    bench.wait("first")
    bench.wait("second")
    place.release()
    assert bench.granted == ["first"]
    bench.places["first"].release()
    assert bench.granted == ["first", "second"]
    bench.places["second"].release()
    assert bench.admission.load("a") == Load(0, 1, 0)


async def test_nobody_overtakes_those_who_wait() -> None:
    bench = Bench(limit=1)
    bench.router.refusal = STARTING
    bench.wait("first")
    bench.router.refusal = None
    assert bench.admission.try_admit("a") is None


async def test_clients_take_turns() -> None:
    bench = Bench()
    place = bench.take()
    for name in ("g1", "g2", "g3", "s1"):
        bench.wait(name, client=name[0])
    for _ in range(4):
        place.release()
        place = bench.places[bench.granted[-1]]
    assert bench.granted == ["g1", "s1", "g2", "g3"]


async def test_a_place_that_got_free_before_one_waits_for_it_is_given() -> None:
    bench = Bench()
    place = bench.take()
    assert bench.admission.try_admit("a") is None
    place.release()
    bench.wait("late")
    assert bench.granted == []
    await turn()
    assert bench.granted == ["late"]


async def test_an_engine_that_starts_is_waited_for() -> None:
    bench = Bench(limit=2)
    bench.router.refusal = STARTING
    assert bench.admission.try_admit("a") is None
    for name in ("first", "second", "third"):
        bench.wait(name)
    bench.admission.changed("a")
    await turn()
    assert bench.granted == []
    bench.router.refusal = None
    bench.admission.changed("a")
    assert bench.granted == ["first", "second"]


async def test_who_waits_for_an_engine_that_fails_is_refused_with_its_reason() -> None:
    bench = Bench()
    bench.router.refusal = STARTING
    bench.wait("first")
    bench.wait("second")
    bench.router.refusal = FAILED
    bench.admission.changed("a")
    assert set(bench.refused) == {"first", "second"}
    assert bench.refused["first"] is FAILED


def test_an_engine_that_does_not_come_back_is_not_waited_for() -> None:
    bench = Bench()
    bench.router.refusal = FAILED
    with pytest.raises(Refusal) as caught:
        bench.admission.try_admit("a")
    assert caught.value is FAILED


async def test_a_backoff_that_is_longer_than_the_hold_is_not_waited_for() -> None:
    bench = Bench(hold=Hold(seconds=30))
    bench.router.refusal = Refusal(503, "engine `a` is backoff", "engine_not_ready", ready_in=29)
    assert bench.admission.try_admit("a") is None
    bench.router.refusal = Refusal(503, "engine `a` is backoff", "engine_not_ready", ready_in=31)
    with pytest.raises(Refusal):
        bench.admission.try_admit("a")


async def test_a_wait_ends_with_the_hold_as_busy_or_as_not_ready() -> None:
    bench = Bench(hold=Hold(seconds=0.01))
    bench.take()
    bench.wait("busy")
    while "busy" not in bench.refused:
        await turn()
    refusal = bench.refused["busy"]
    assert (refusal.answer.status, refusal.answer.code) == (429, "engine_busy")
    assert refusal.answer.headers == ((b"retry-after", b"1"),)
    bench.router.refusal = STARTING
    bench.wait("starting")
    while "starting" not in bench.refused:
        await turn()
    assert bench.refused["starting"] is STARTING
    assert bench.admission.load("a") == Load(1, 1, 0)


@pytest.mark.parametrize(
    ("hold", "waiting"),
    [
        (Hold(requests=2), 2),
        (Hold(bytes=20), 2),
        (Hold(seconds=0), 0),
        (Hold(requests=0), 0),
        (Hold(bytes=0), 0),
    ],
)
async def test_what_waits_is_bounded_in_number_bytes_and_time(hold: Hold, waiting: int) -> None:
    bench = Bench(hold=hold)
    bench.take()
    for number in range(waiting):
        bench.wait(f"held {number}", body_bytes=10)
    with pytest.raises(Refusal) as caught:
        bench.wait("one too many", body_bytes=10)
    assert (caught.value.answer.status, caught.value.answer.code) == (429, "engine_busy")


@pytest.mark.parametrize("hold", [Hold(requests=4), Hold(bytes=40)], ids=["requests", "bytes"])
async def test_a_client_below_its_share_finds_room_where_another_has_taken_all(hold: Hold) -> None:
    bench = Bench(hold=hold)
    bench.take()
    for number in range(4):
        bench.wait(f"greedy {number}", client="greedy", body_bytes=10)
    with pytest.raises(Refusal):
        bench.wait("greedy 4", client="greedy", body_bytes=10)
    modest = [bench.wait(f"modest {number}", client="modest", body_bytes=10) for number in range(2)]
    with pytest.raises(Refusal):
        bench.wait("modest 2", client="modest", body_bytes=10)
    modest[0].cancel()
    bench.wait("modest 3", client="modest", body_bytes=10)


async def test_the_bounds_are_shared_by_all_engines_and_given_back() -> None:
    bench = Bench(hold=Hold(requests=2, bytes=20))
    bench.take("a")
    held = bench.take("b")
    bench.wait("first", body_bytes=10)
    waiting = bench.wait("other", body_bytes=10, engine="b")
    with pytest.raises(Refusal):
        bench.wait("third")
    waiting.cancel()
    bench.wait("third", body_bytes=10, engine="b")
    held.release()
    bench.wait("fourth", body_bytes=10, engine="a")


async def test_a_full_room_before_an_engine_that_starts_is_not_called_busy() -> None:
    bench = Bench(hold=Hold(requests=0))
    bench.router.refusal = STARTING
    with pytest.raises(Refusal) as caught:
        bench.wait("first")
    assert caught.value is STARTING


async def test_who_left_is_not_called_and_takes_no_place() -> None:
    bench = Bench()
    place = bench.take()
    gone = bench.wait("gone")
    bench.wait("next")
    gone.cancel()
    gone.cancel()
    place.release()
    assert (bench.granted, bench.refused) == (["next"], {})


async def test_a_wait_that_is_over_can_be_cancelled_without_harm() -> None:
    bench = Bench()
    place = bench.take()
    waiting = bench.wait("first")
    bench.wait("second")
    place.release()
    waiting.cancel()
    assert bench.admission.load("a") == Load(1, 1, 1)


async def test_a_place_released_while_it_is_given_goes_on_to_the_next_one() -> None:
    bench = Bench()
    place = bench.take()
    passed: list[int] = []

    def pass_on(place: Lease) -> None:
        passed.append(len(passed))
        place.release()

    for number in range(200):
        bench.admission.wait("a", number, 0, granted=pass_on, refused=lambda _: None)
    place.release()
    assert len(passed) == 200  # and no stack of two hundred calls
    assert bench.admission.load("a") == Load(0, 1, 0)


async def test_a_cap_holds_back_new_requests_and_lets_those_in_flight_end() -> None:
    bench = Bench(limit=3)
    places = [bench.take() for _ in range(3)]
    bench.admission.cap("a", 1)
    bench.wait("first")
    bench.wait("second")
    places[0].release()
    places[1].release()
    assert bench.granted == []
    assert bench.admission.load("a") == Load(1, 1, 2)
    places[2].release()
    assert bench.granted == ["first"]
    bench.admission.cap("a", None)
    assert bench.granted == ["first", "second"]
    bench.admission.cap("a", 9)
    assert bench.admission.load("a").limit == 3


async def test_when_memoria_stops_nobody_waits_any_more() -> None:
    bench = Bench()
    bench.take()
    bench.wait("first")
    bench.admission.close()
    assert bench.refused["first"].answer.code == "stopping"
    with pytest.raises(Refusal, match="memoria is stopping"):
        bench.wait("second")
