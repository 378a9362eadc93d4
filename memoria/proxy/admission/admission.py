"""Admission: how many requests an engine gets at once, and which queued request is next.

A request is queued while its engine is busy, or about to be ready (it starts, or restarts). All queues share
the bounds of `Hold`. Beyond these, and after `Hold.seconds`, the answer is a `Refusal`: 503 where the engine
is not ready, 429 where it is busy. OpenAI's clients retry both; to a load balancer in front, a 503 says that
this memoria is broken, and a 429 that it is busy.

Nothing is polled: a freed place is granted at once, and `changed` reports an engine's new state.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from memoria.config.model import Hold
from memoria.proxy import errors
from memoria.proxy.admission.uploads import Uploads
from memoria.proxy.errors import Refusal
from memoria.proxy.router import Entrance, Router
from memoria.vllm.facts import EngineAddress

DOUBT_S = 0.25  # longer than the supervisor needs to see an engine end


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of one engine. `limit`: how many may be in flight now."""

    in_flight: int
    limit: int
    waiting: int


class Lease:
    """A request's place at its engine, until `release` (again: no effect)."""

    __slots__ = ("_admission", "_engine", "_entrance", "address")

    def __init__(self, admission: Admission, engine: _Engine) -> None:
        """Raises `Refusal` where the engine takes no request now."""
        entrance = admission._router.entrance(engine.name)
        if engine.doubted is not None and entrance.address == engine.doubted:
            raise errors.engine_doubted(engine.name)
        self._admission, self._engine = admission, engine
        self._entrance: Entrance | None = entrance
        self.address = entrance.address
        entrance.enter()
        engine.in_flight += 1
        if engine.in_flight > engine.peak:  # noqa: PLR1730 - max() would be a call more for every request
            engine.peak = engine.in_flight

    @property
    def works_until(self) -> float:
        """As of its entrance."""
        return 0.0 if self._entrance is None else self._entrance.works_until

    @property
    def is_wanted(self) -> bool:
        """Whether requests are queued for a place at this engine."""
        return self._engine.queue.length > 0

    def release(self) -> None:
        entrance, self._entrance = self._entrance, None
        if entrance is not None:
            entrance.leave()
            engine = self._engine
            engine.in_flight -= 1
            if engine.queue.length:
                self._admission._give(engine)


class Waiting:
    """A queued request. Ends with one call of `granted` or of `refused`, or with `cancel`, after which
    neither is called."""

    __slots__ = (
        *("_admission", "body_bytes", "client", "engine", "granted", "refused", "since", "timer"),
        *("told_at", "streams"),
    )

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
        self.timer: asyncio.TimerHandle | None = None  # None once the wait is over
        self.since = self.told_at = time.monotonic()
        self.streams: bool | None = None  # whether the answer is to be a stream; None: not looked at yet

    @property
    def timing(self) -> bytes:
        """As a value of Server-Timing (W3C): milliseconds."""
        return b"hold;dur=%d" % round((time.monotonic() - self.since) * 1000)

    @property
    def reason(self) -> bytes:
        return b"waiting for %b, for %d s" % (self.engine.name.encode(), time.monotonic() - self.since)

    def cancel(self) -> None:
        self._admission._forget(self)


class _Engine:
    """`limit`: most requests in flight, the lower of the configured number and `cap`. `doubted`: an address
    that may be closed by now. `peak`: most in flight since `take_peak`."""

    __slots__ = ("doubted", "giving", "in_flight", "limit", "most", "name", "peak", "queue")

    def __init__(self, name: str, most: int) -> None:
        self.name = name
        self.most = self.limit = most
        self.in_flight = self.peak = 0
        self.queue: FairQueue[Waiting] = FairQueue()
        self.giving = False
        self.doubted: EngineAddress | None = None


class Admission:
    """`limits`: most requests in flight by engine, at least 1. All calls belong on one event loop."""

    def __init__(self, router: Router, limits: Mapping[str, int], hold: Hold) -> None:
        self._router, self.hold = router, hold
        self.uploads = Uploads(hold)
        self._engines = {name: _Engine(name, most) for name, most in limits.items()}
        self._waiting: Counter[Hashable] = Counter()  # requests by client
        self._kept_bytes: Counter[Hashable] = Counter()  # of their bodies
        self._closed = False

    def __repr__(self) -> str:
        loads = ", ".join(f"{e.name} {e.in_flight}/{e.limit}+{len(e.queue)}" for e in self._engines.values())
        return f"<Admission {loads}>"

    def adopt(self, limits: Mapping[str, int], hold: Hold) -> None:
        """Replaces limits, bounds, and engines: what is queued for a removed engine is refused."""
        self.hold = hold
        self.uploads.hold = hold
        for name, most in limits.items():
            about = self._engines.setdefault(name, _Engine(name, most))
            about.most = about.limit = most
        for name in self._engines.keys() - limits.keys():
            self._give(self._engines.pop(name))
        for about in self._engines.values():
            self._give(about)

    def load(self, engine: str) -> Load:
        about = self._engines[engine]
        return Load(about.in_flight, about.limit, len(about.queue))

    def take_peak(self, engine: str) -> int:
        """The most requests in flight at once since the last call."""
        about = self._engines[engine]
        peak, about.peak = about.peak, about.in_flight
        return peak

    def try_admit(self, engine: str) -> Lease | None:
        """A place, or None where there is none now (`wait` for one). Raises `Refusal` where waiting is
        useless."""
        about = self._engines.get(engine) or self._about(engine)
        if about.queue.length or about.in_flight >= about.limit:
            return None
        try:
            return Lease(self, about)
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
        """Queues a request: round robin over clients, the oldest of each first. `body_bytes`: what this
        request keeps in memory meanwhile. Neither callback is called before this returns, and neither may
        raise.

        Raises `Refusal` when too much is queued already, or where waiting is useless."""
        about = self._about(engine)
        refusal = self._refusal(about)
        if not (self._has_room(client, body_bytes) and self._helps_to_wait(refusal)):
            raise refusal
        loop = asyncio.get_running_loop()
        waiting = Waiting(self, about, client, body_bytes, granted=granted, refused=refused)
        waiting.timer = loop.call_later(self.hold.seconds, self._expire, waiting)
        about.queue.add(client, waiting)
        self._waiting[client] += 1
        self._kept_bytes[client] += body_bytes
        loop.call_soon(self._give, about)  # the caller may have done something since `try_admit`
        return waiting

    def changed(self, engine: str) -> None:
        """Reports a new state of the engine: its queue is served, or refused."""
        if (about := self._engines.get(engine)) is not None:
            self._give(about)

    def doubt(self, engine: str, address: EngineAddress) -> None:
        """Reports that the engine hung up or refuses connections: it may have ended, which `changed` will
        report in a moment. Until then, or for `DOUBT_S`, its requests are queued (not where none may be)."""
        about = self._engines.get(engine)
        if about is not None and self.hold.seconds > 0 and about.doubted != address:
            about.doubted = address
            asyncio.get_running_loop().call_later(DOUBT_S, self._trust, about, address)

    def _trust(self, about: _Engine, address: EngineAddress) -> None:
        if about.doubted == address:
            about.doubted = None
            self._give(about)

    def cap(self, engine: str, limit: int | None) -> None:
        """Limits requests in flight to `limit` (at least 1) from now on; None: as configured. Those already
        in flight stay."""
        about = self._engines[engine]
        about.limit = about.most if limit is None else min(about.most, limit)
        self._give(about)

    def close(self) -> None:
        """Refuses all queued requests, now and later: memoria stops."""
        self._closed = True
        for about in self._engines.values():
            self._give(about)

    def _about(self, engine: str) -> _Engine:
        try:
            return self._engines[engine]
        except KeyError:  # resolved before a reload removed it
            raise errors.engine_gone(engine) from None

    def _give(self, about: _Engine) -> None:
        """Grants free places to queued requests, or refuses them where there will be none."""
        if about.giving:  # called from a callback below; the loop goes on anyway
            return
        about.giving = True
        try:
            while about.queue:
                if self._closed:
                    self._next(about).refused(errors.stopping())
                    continue
                if about.in_flight >= about.limit:
                    return
                try:
                    lease = Lease(self, about)
                except Refusal as refusal:
                    if self._helps_to_wait(refusal):
                        return
                    self._next(about).refused(refusal)
                else:
                    self._next(about).granted(lease)
        finally:
            about.giving = False

    def _next(self, about: _Engine) -> Waiting:
        waiting = about.queue.take()
        self._over(waiting)
        return waiting

    def _forget(self, waiting: Waiting) -> None:
        if waiting.timer is not None:
            waiting.engine.queue.remove(waiting.client, waiting)
            self._over(waiting)

    def _over(self, waiting: Waiting) -> None:
        if waiting.timer is not None:
            waiting.timer.cancel()
            waiting.timer = None
        client = waiting.client
        self._waiting[client] -= 1
        self._kept_bytes[client] -= waiting.body_bytes
        if not self._waiting[client]:
            del self._waiting[client], self._kept_bytes[client]

    def _expire(self, waiting: Waiting) -> None:
        self._forget(waiting)
        waiting.refused(self._refusal(waiting.engine))

    def _refusal(self, about: _Engine) -> Refusal:
        """Why a request cannot have this engine now."""
        if self._closed:
            return errors.stopping()
        try:
            entrance = self._router.entrance(about.name)
        except Refusal as refusal:
            return refusal
        if entrance.address == about.doubted:
            return errors.engine_doubted(about.name)
        return errors.engine_busy(about.name, about.in_flight, len(about.queue))

    def _has_room(self, client: Hashable, body_bytes: int) -> bool:
        """Within the bounds of `Hold`; beyond them, within the client's share of them."""
        hold, waiting, kept = self.hold, self._waiting, self._kept_bytes
        if waiting.total() < hold.requests and kept.total() + body_bytes <= hold.bytes:
            return True
        clients = len(waiting) + (client not in waiting)
        return (waiting[client] + 1) * clients <= hold.requests and (
            kept[client] + body_bytes
        ) * clients <= hold.bytes

    def _helps_to_wait(self, refusal: Refusal) -> bool:
        return refusal.ready_in is not None and refusal.ready_in < self.hold.seconds


Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Round robin over clients, first in first out within each: a client that sends much delays itself, not
    the others. An item may be queued once."""

    def __init__(self) -> None:
        self._clients: dict[Hashable, deque[Item]] = {}  # the next to be served first; no queue is empty
        self.length = 0  # items of all clients

    def __len__(self) -> int:
        return self.length

    def add(self, client: Hashable, item: Item) -> None:
        self._clients.setdefault(client, deque()).append(item)
        self.length += 1

    def take(self) -> Item:
        """Removes the next item. Raises `IndexError` when the queue is empty."""
        if not self.length:
            raise IndexError("the queue is empty")
        client = next(iter(self._clients))
        queue = self._clients.pop(client)
        item = queue.popleft()
        self.length -= 1
        if queue:
            self._clients[client] = queue  # behind all others
        return item

    def remove(self, client: Hashable, item: Item) -> None:
        """Raises `KeyError` or `ValueError` for an item that is not queued."""
        queue = self._clients[client]
        queue.remove(item)
        self.length -= 1
        if not queue:
            del self._clients[client]
