"""One request's way to a place at its engine: which engine it is, whether there is a place, and the wait for
one."""

from __future__ import annotations

from collections.abc import Callable

from memoria.proxy import answers, filters
from memoria.proxy.admission import Place, Waiting
from memoria.proxy.answers import Answer, Rejection
from memoria.proxy.relay import Relay
from memoria.proxy.request import RequestHead
from memoria.proxy.router import Refusal
from memoria.proxy.upload import Upload


class Passage:
    """`engine` is None until it is known, `place` None until there is one. After a wait either `granted` or
    `refused` is called, unless `leave` comes first."""

    engine: str | None = None
    place: Place | None = None
    _waiting: Waiting | None = None

    def __init__(
        self,
        relay: Relay,
        head: RequestHead,
        upload: Upload,
        client: str,
        *,
        granted: Callable[[], None],
        refused: Callable[[Answer], None],
    ) -> None:
        """`client` is whoever takes turns with others: a key's name, or an address."""
        self._relay, self._head, self._upload, self._client = relay, head, upload, client
        self._granted, self._refused = granted, refused

    @property
    def waits(self) -> bool:
        return self._waiting is not None

    @property
    def is_open(self) -> bool:
        """There is a place, and as much of the body as is needed to go on."""
        if self.place is None:
            return False
        if self._upload.complete:
            return True
        return self._upload.size > 0 and self._changes() is None

    def seek(self, port: int) -> None:
        """Goes as far as what is here of the body allows. Raises `Rejection`."""
        head = self._head
        assert head.route is not None
        if self.engine is None:
            self.engine = self._relay.resolve(head.route, port, self._upload, head.content_type)
        if self.engine is not None and self.place is None and self._waiting is None:
            self._admit(self.engine)

    def seek_again(self) -> None:
        """For a request that its engine has lost: another place, by its turn. Raises `Rejection`."""
        assert self.engine is not None
        self.leave()
        self._admit(self.engine)

    def change_body(self) -> None:
        """Applies the engine's filters to a body that is all here. Raises `Rejection`."""
        changes = self._changes()
        if changes is None:
            return
        try:
            self._upload.replace(filters.apply(b"".join(self._upload.pieces or ()), changes))
        except ValueError as error:
            raise Rejection(answers.bad_request(f"The body cannot be read: {error}")) from None

    def leave(self) -> None:
        """Gives back the place, or what waits for one."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        if self.place is not None:
            self.place.release()
            self.place = None

    def _changes(self) -> filters.Filters | None:
        if self.engine is None or self._head.route is None:
            return None
        return self._relay.filters_of(self._head.route, self.engine)

    def _admit(self, engine: str) -> None:
        admission = self._relay.admission
        try:
            self.place = admission.try_admit(engine)
            if self.place is None:
                self._waiting = admission.wait(
                    engine, self._client, self._kept(), granted=self._on_place, refused=self._on_refusal
                )
        except Refusal as refusal:
            raise Rejection(answers.refused(refusal)) from None

    def _kept(self) -> int:
        """Bytes in memory while it waits: what is here, and what may come before the client is paused."""
        return max(self._upload.size, min(self._upload.declared or 0, Upload.LARGE))

    def _on_place(self, place: Place) -> None:
        self._waiting, self.place = None, place
        self._granted()

    def _on_refusal(self, refusal: Refusal) -> None:
        self._waiting = None
        self._refused(answers.refused(refusal))
