"""How many requests an engine is given at once, and who goes next where several wait.

A request waits while its engine is busy, or is about to be there again (it starts, or restarts). All that
wait share the bounds of `Hold`. Past these, and after `Hold.seconds`, the answer is a `Refusal`: 503 where
the engine is not there, 429 where it is and has enough to do. OpenAI's clients try both again; to a balancer
in front, a 503 says that this memoria is broken, and a 429 that it is busy.

Nothing is polled: a place that gets free is given away at once, and `changed` tells what an engine does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from memoria.config.model import Hold
from memoria.engine.address import EngineAddress
from memoria.proxy.admission.fair_queue import FairQueue
from memoria.proxy.router import Entrance, Refusal, Router

RETRY_BUSY = 1  # seconds; places get free all the time
RETRY_STOPPING = 10
DOUBT_S = 0.25  # a supervisor sees the end of an engine sooner


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of one engine. `limit`: what it may have in flight now."""

    in_flight: int
    limit: int
    waiting: int


class Lease:
    """An admitted request, until `release`. To release it twice does nothing."""

    __slots__ = ("_admission", "_engine", "_entrance", "address")

    def __init__(self, admission: Admission, engine: _Engine, entrance: Entrance) -> None:
        self._admission, self._engine = admission, engine
        self._entrance: Entrance | None = entrance
        self.address = entrance.address
        entrance.enter()

    @property
    def is_wanted(self) -> bool:
        """Others wait for one like it."""
        return self._engine.turns.length > 0

    def release(self) -> None:
        entrance, self._entrance = self._entrance, None
        if entrance is not None:
            entrance.leave()
            engine = self._engine
            engine.in_flight -= 1
            if engine.turns.length:
                self._admission._give(engine)


class Waiting:
    """A request that waits. Ends with one call of `granted` or of `refused`, or with `cancel`, after which
    neither is called."""

    __slots__ = ("_admission", "body_bytes", "client", "engine", "granted", "refused", "timer")

    def __init__(
        self,
        admission: Admission,
        engine: _Engine,
        client: Hashable,
        body_bytes: int,
        *,
        granted: Callable[[Lease], None],
        refused: Callable[[Refusal], None],
    ) -> None:
        self._admission = admission
        self.engine, self.client, self.body_bytes = engine, client, body_bytes
        self.granted, self.refused = granted, refused
        self.timer: asyncio.TimerHandle | None = None  # None again when the wait is over

    def cancel(self) -> None:
        self._admission._forget(self)


class _Engine:
    """`limit`: requests in flight at most, the lower of what is configured and what `cap` says. `doubted`:
    an address where it may listen no longer. `peak`: most in flight since it was asked for."""

    __slots__ = ("doubted", "giving", "in_flight", "limit", "most", "name", "peak", "turns")

    def __init__(self, name: str, most: int) -> None:
        self.name = name
        self.most = self.limit = most
        self.in_flight = self.peak = 0
        self.turns: FairQueue[Waiting] = FairQueue()
        self.giving = False
        self.doubted: EngineAddress | None = None


class Admission:
    """`limits`: most requests in flight of every engine, 1 at least. All calls belong on one event loop."""

    def __init__(self, router: Router, limits: Mapping[str, int], hold: Hold) -> None:
        self._router, self._hold = router, hold
        self._engines = {name: _Engine(name, most) for name, most in limits.items()}
        self._waiting = self._kept_bytes = 0
        self._closed = False

    def __repr__(self) -> str:
        loads = ", ".join(f"{e.name} {e.in_flight}/{e.limit}+{len(e.turns)}" for e in self._engines.values())
        return f"<Admission {loads}>"

    def adopt(self, limits: Mapping[str, int], hold: Hold) -> None:
        """Other limits and bounds, and other engines: what waits for one that is gone is refused."""
        self._hold = hold
        for name, most in limits.items():
            about = self._engines.setdefault(name, _Engine(name, most))
            about.most = about.limit = most
        for name in self._engines.keys() - limits.keys():
            self._give(self._engines.pop(name))
        for about in self._engines.values():
            self._give(about)

    def load(self, engine: str) -> Load:
        about = self._engines[engine]
        return Load(about.in_flight, about.limit, len(about.turns))

    def take_peak(self, engine: str) -> int:
        """The most requests in flight at once since the last call."""
        about = self._engines[engine]
        peak, about.peak = about.peak, about.in_flight
        return peak

    def try_admit(self, engine: str) -> Lease | None:
        """None: there is no place now, `wait` for one. Raises `Refusal` where waiting would not help."""
        about = self._engines.get(engine) or self._about(engine)
        if about.turns.length or about.in_flight >= about.limit:
            return None
        try:
            return self._admit(about)
        except Refusal as refusal:
            if self._helps_to_wait(refusal):
                return None
            raise

    def wait(
        self,
        engine: str,
        client: Hashable,
        body_bytes: int,
        *,
        granted: Callable[[Lease], None],
        refused: Callable[[Refusal], None],
    ) -> Waiting:
        """Clients take turns, each with its oldest request first. `body_bytes`: what is kept in memory for
        this request meanwhile. Neither callback is called before this returns, and neither may raise.

        Raises `Refusal` when too much waits already, or where waiting would not help."""
        about = self._about(engine)
        refusal = self._refusal(about)
        if (
            self._waiting >= self._hold.requests
            or self._kept_bytes + body_bytes > self._hold.bytes
            or not self._helps_to_wait(refusal)
        ):
            raise refusal
        loop = asyncio.get_running_loop()
        waiting = Waiting(self, about, client, body_bytes, granted=granted, refused=refused)
        waiting.timer = loop.call_later(self._hold.seconds, self._expire, waiting)
        about.turns.add(client, waiting)
        self._waiting += 1
        self._kept_bytes += body_bytes
        loop.call_soon(self._give, about)  # the caller may have done something since `try_admit`
        return waiting

    def gather(self, more: int, before: int) -> None:
        """Of a body that must be whole before its request can be admitted, `more` bytes are kept beside those
        `before`. Raises `Refusal` when too much waits already; a body alone is as large as bodies may be."""
        if self._kept_bytes > before and self._kept_bytes + more > self._hold.bytes:
            raise _full(self._hold.bytes)
        self._kept_bytes += more

    def scatter(self, gathered: int) -> None:
        """So many bytes are not kept for that any longer."""
        self._kept_bytes -= gathered

    def changed(self, engine: str) -> None:
        """The engine's state is another one: what waits for it may go on, or is refused."""
        if (about := self._engines.get(engine)) is not None:
            self._give(about)

    def doubt(self, engine: str, address: EngineAddress) -> None:
        """The engine hung up, or does not accept connections there: it may have ended, and `changed` tells in
        a moment. Until then, or for `DOUBT_S`, its requests wait; where none may wait, nothing is doubted."""
        about = self._engines.get(engine)
        if about is not None and self._hold.seconds > 0 and about.doubted != address:
            about.doubted = address
            asyncio.get_running_loop().call_later(DOUBT_S, self._trust, about, address)

    def _trust(self, about: _Engine, address: EngineAddress) -> None:
        if about.doubted == address:
            about.doubted = None
            self._give(about)

    def cap(self, engine: str, limit: int | None) -> None:
        """At most `limit` requests (1 at least) in flight from now on; None: as configured. What is in
        flight already stays."""
        about = self._engines[engine]
        about.limit = about.most if limit is None else min(about.most, limit)
        self._give(about)

    def close(self) -> None:
        """memoria stops: everybody who waits is refused, now and later."""
        self._closed = True
        for about in self._engines.values():
            self._give(about)

    def _about(self, engine: str) -> _Engine:
        try:
            return self._engines[engine]
        except KeyError:  # it was resolved before, while the body was read
            raise _gone(engine) from None

    def _admit(self, about: _Engine) -> Lease:
        entrance = self._router.entrance(about.name)
        if about.doubted is not None and entrance.address == about.doubted:
            raise _silent(about)
        place = Lease(self, about, entrance)
        about.in_flight += 1
        if about.in_flight > about.peak:  # noqa: PLR1730 - max() would be a call more for every request
            about.peak = about.in_flight
        return place

    def _give(self, about: _Engine) -> None:
        """Places to those who wait, as long as there are any; refusals, where there will be none."""
        if about.giving:  # called by a callback below, and the loop goes on anyway
            return
        about.giving = True
        try:
            while about.turns:
                if self._closed:
                    self._next(about).refused(_stopping())
                    continue
                if about.in_flight >= about.limit:
                    return
                try:
                    place = self._admit(about)
                except Refusal as refusal:
                    if self._helps_to_wait(refusal):
                        return
                    self._next(about).refused(refusal)
                else:
                    self._next(about).granted(place)
        finally:
            about.giving = False

    def _next(self, about: _Engine) -> Waiting:
        waiting = about.turns.take()
        self._over(waiting)
        return waiting

    def _forget(self, waiting: Waiting) -> None:
        if waiting.timer is not None:
            waiting.engine.turns.remove(waiting.client, waiting)
            self._over(waiting)

    def _over(self, waiting: Waiting) -> None:
        if waiting.timer is not None:
            waiting.timer.cancel()
            waiting.timer = None
        self._waiting -= 1
        self._kept_bytes -= waiting.body_bytes

    def _expire(self, waiting: Waiting) -> None:
        self._forget(waiting)
        waiting.refused(self._refusal(waiting.engine))

    def _refusal(self, about: _Engine) -> Refusal:
        """What keeps a request from this engine now."""
        if self._closed:
            return _stopping()
        try:
            entrance = self._router.entrance(about.name)
        except Refusal as refusal:
            return refusal
        return _silent(about) if entrance.address == about.doubted else _busy(about)

    def _helps_to_wait(self, refusal: Refusal) -> bool:
        return refusal.ready_in is not None and refusal.ready_in < self._hold.seconds


def _busy(about: _Engine) -> Refusal:
    message = (
        f"engine `{about.name}` is busy: {about.in_flight} requests in flight, {len(about.turns)} waiting"
    )
    return Refusal(429, message, "engine_busy", retry_after=RETRY_BUSY, ready_in=0.0)


def _full(most: int) -> Refusal:
    message = f"{most} bytes of request bodies wait already (hold.bytes)"
    return Refusal(429, message, "hold_full", retry_after=RETRY_BUSY, ready_in=0.0)


def _silent(about: _Engine) -> Refusal:
    message = f"engine `{about.name}` does not accept connections"
    return Refusal(503, message, "engine_not_ready", retry_after=RETRY_BUSY, ready_in=0.0)


def _gone(engine: str) -> Refusal:
    return Refusal(503, f"engine `{engine}` is no longer in the configuration", "engine_gone", retry_after=1)


def _stopping() -> Refusal:
    return Refusal(503, "memoria is stopping", "stopping", retry_after=RETRY_STOPPING)
