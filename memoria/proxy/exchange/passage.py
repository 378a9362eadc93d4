"""One request's way to a place at its engine: which engine it is, whether there is a place, and the wait for
one."""

from __future__ import annotations

from typing import Protocol

from memoria.config.model import Filters
from memoria.proxy import errors
from memoria.proxy.admission.admission import Lease, Waiting
from memoria.proxy.downstream.watch import Standstill
from memoria.proxy.errors import Answer, Rejection
from memoria.proxy.exchange.relay import Relay
from memoria.proxy.exchange.upload import Upload
from memoria.proxy.http.request import RequestHead
from memoria.proxy.router import Refusal
from memoria.proxy.routing import filters

GRACE_S = 5.0  # for an upload's next `Upload.LARGE` bytes, while others wait for its place


class Waiter(Protocol):
    """Whoever wants the place. After a wait one of these is called, unless the passage was left before."""

    def on_place(self) -> None: ...

    def refuse(self, answer: Answer) -> None: ...


class Passage:
    """`engine` is None until it is known, `place` None until there is one."""

    engine: str | None = None
    place: Lease | None = None
    _filters: Filters | None = None
    _waiting: Waiting | None = None
    _waiter: Waiter | None = None
    _slow: Standstill | None = None  # the upload, while others wait
    _gathered = 0  # bytes of a body that must be whole first, as admission counts them

    def __init__(self, relay: Relay, head: RequestHead, upload: Upload, client: str) -> None:
        """`client` is whoever takes turns with others: a key's name, or an address."""
        self._relay, self._head, self._upload, self._client = relay, head, upload, client

    @property
    def waits(self) -> bool:
        return self._waiting is not None

    def holds_up_others(self, now: float) -> bool:
        """By an upload that comes too slowly, if at all, with a place that they wait for. Asked now and then;
        `now` is `time.monotonic()`."""
        if self.place is None or not self.place.is_wanted:
            self._slow = None
            return False
        self._slow = self._slow or Standstill()
        return self._slow.lasts(now, self._upload.size // Upload.LARGE) >= GRACE_S

    def seek(self, port: int, waiter: Waiter) -> bool:
        """Goes as far as what is here of the body allows. True: there is a place, and all that is needed of
        the body to go on. Raises `Rejection`.

        A place is for an engine's work. So a body is all here before it takes one, unless it is large: then
        it is passed on while it comes, and not kept."""
        upload = self._upload
        if self.engine is None:
            head = self._head
            assert head.route is not None
            engine = self._relay.resolve(head, head.route, port, upload)
            if engine is None:
                self._gather()
                return False
            self.engine = engine
            self._filters = self._relay.filters_of(head.route, engine)
        if not upload.complete and (self._filters is not None or upload.size <= Upload.LARGE):
            self._gather()
            return False
        if self.place is None:
            if self._waiting is None:
                self._admit(self.engine, waiter)
            if self.place is None:
                return False
        return True

    def seek_again(self, waiter: Waiter) -> None:
        """For a request that its engine has lost: another place, by its turn. Raises `Rejection`."""
        assert self.engine is not None
        self.leave()
        self._admit(self.engine, waiter)

    def change_body(self) -> None:
        """Applies the engine's filters to a body that is all here. Raises `Rejection`."""
        if self._filters is None:
            return
        try:
            self._upload.replace(filters.apply(b"".join(self._upload.pieces or ()), self._filters))
        except ValueError as error:
            raise Rejection(errors.bad_request(f"The body cannot be read: {error}")) from None

    def leave(self) -> None:
        """Gives back the place, or what waits for one."""
        self._scatter()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = self._waiter = None
        if self.place is not None:
            self.place.release()
            self.place = None

    def _gather(self) -> None:
        """Counts what is kept of a body that is not whole. Raises `Rejection`."""
        size = self._upload.size
        if size > self._gathered:
            try:
                self._relay.admission.gather(size - self._gathered, self._gathered)
            except Refusal as refusal:
                raise Rejection(errors.refused(refusal)) from None
            self._gathered = size

    def _scatter(self) -> None:
        if self._gathered:
            self._relay.admission.scatter(self._gathered)
            self._gathered = 0

    def _admit(self, engine: str, waiter: Waiter) -> None:
        admission = self._relay.admission
        self._scatter()
        try:
            self.place = admission.try_admit(engine)
            if self.place is None:
                self._waiter = waiter
                self._waiting = admission.wait(
                    engine, self._client, self._kept(), granted=self._on_place, refused=self._on_refusal
                )
        except Refusal as refusal:
            raise Rejection(errors.refused(refusal)) from None

    def _kept(self) -> int:
        """Bytes in memory while it waits: what is here, and what may come before the client is paused."""
        return max(self._upload.size, min(self._upload.declared or 0, Upload.LARGE))

    def _on_place(self, place: Lease) -> None:
        self.place = place
        self._over().on_place()

    def _on_refusal(self, refusal: Refusal) -> None:
        self._over().refuse(errors.refused(refusal))

    def _over(self) -> Waiter:
        waiter, self._waiter, self._waiting = self._waiter, None, None
        assert waiter is not None
        return waiter
