"""Room for bodies that must be whole before their request can be admitted: their model decides, or an engine
has filters. They are counted apart from requests that wait.

Where there is no room a client is not read from until there is: backpressure, no refusal. While more than the
limit is here, a client goes on up to its share, the limit divided by the clients that upload; beyond it one
upload at a time goes on, in turns of a few seconds, so that bodies get complete and leave. So one client
cannot keep the others out, and there are twice the limit and one body at most.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Hashable

from memoria.config.model import Hold
from memoria.proxy import errors

TURN_S = 2.0


class Uploads:
    def __init__(self, hold: Hold, turn_s: float = TURN_S) -> None:
        self.hold, self._turn_s = hold, turn_s
        self._total = 0
        self._held: Counter[Hashable] = Counter()  # bytes by client
        self._paused: dict[Kept, None] = {}
        self._turn: Kept | None = None  # may go on beyond its share
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Uploads {self._total}/{self.hold.bytes} paused={len(self._paused)}>"

    def begin(self, client: Hashable, pause: Callable[[], None], resume: Callable[[], None]) -> Kept:
        """`pause` is called from `grow` where there is no room for more, `resume` when there is again."""
        return Kept(self, client, pause, resume)

    def _grow(self, kept: Kept, more: int) -> None:
        self._held[kept.client] += more
        self._total += more
        if kept is self._turn or self._has_room(kept) or kept in self._paused:
            return
        if not self.hold.seconds and self._turn is not None:
            raise errors.hold_full(self.hold.bytes)
        kept.paused_at = time.monotonic()
        self._paused[kept] = None
        kept.pause()
        if self._turn is None:
            self._next_turn()

    def _end(self, kept: Kept) -> None:
        self._total -= kept.size
        self._held[kept.client] -= kept.size
        if not self._held[kept.client]:
            del self._held[kept.client]
        self._paused.pop(kept, None)
        for other in [*self._paused]:
            if self._has_room(other):
                self._let(other)
        if kept is self._turn:
            self._turn = None
            self._next_turn()

    def _has_room(self, kept: Kept) -> bool:
        return self._total <= self.hold.bytes or self._held[kept.client] * len(self._held) <= self.hold.bytes

    def _next_turn(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._turn is None or self._total <= 2 * self.hold.bytes:
            self._turn = min(self._paused, key=lambda k: (k.turns, self._held[k.client]), default=None)
            if self._turn is not None:
                self._turn.turns += 1
                self._let(self._turn)
        if self._turn is not None:
            self._timer = asyncio.get_running_loop().call_later(self._turn_s, self._next_turn)

    def _let(self, kept: Kept) -> None:
        del self._paused[kept]
        kept.paused_at = None
        kept.resume()


class Kept:
    """What is here of one body. `paused_at`: `time.monotonic()` since when it must not grow."""

    __slots__ = ("_uploads", "client", "pause", "paused_at", "resume", "size", "turns")

    def __init__(
        self, uploads: Uploads, client: Hashable, pause: Callable[[], None], resume: Callable[[], None]
    ) -> None:
        self._uploads, self.client, self.pause, self.resume = uploads, client, pause, resume
        self.size = self.turns = 0
        self.paused_at: float | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether others are paused while this may go on."""
        return self.paused_at is None and bool(self._uploads._paused)

    @property
    def is_paused(self) -> bool:
        return self.paused_at is not None

    def is_paused_for_long(self, now: float) -> bool:
        """For as long as a request may wait."""
        return self.paused_at is not None and now - self.paused_at >= self._uploads.hold.seconds

    def grow(self, size: int) -> None:
        """There is this much of it now. Raises `Refusal` if there is no room, and no request may wait."""
        more, self.size = size - self.size, size
        self._uploads._grow(self, more)

    def end(self) -> None:
        """It has left, or was given up (again: no effect)."""
        self._uploads._end(self)
        self.size, self.paused_at = 0, None
