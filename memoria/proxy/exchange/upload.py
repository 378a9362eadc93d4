"""A request's body as it comes from the client: counted, and kept while it may have to be sent again."""

from __future__ import annotations

from memoria.proxy.errors import Rejection, body_too_large
from memoria.proxy.http.chunks import chunk

REPLAYABLE_BYTES = 2**20  # a larger body is not kept once it has been written


class Upload:
    """`declared` is the length the client announced, None where it did not. `pieces` is all that came so
    far, or None when that is no longer kept. `chunked`: so it goes to the engine."""

    LARGE = 64 * 1024  # bytes; more is not copied together, nor taken in before it can be passed on

    declared: int | None = None
    size = 0
    complete = False
    chunked = False
    pieces: list[bytes] | None

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.pieces = []

    def declare(self, length: int | None) -> None:
        """Raises `Rejection` (413) before a byte of a body that is too large was read."""
        if length is not None:
            if length > self._limit:
                raise Rejection(body_too_large(self._limit))
            self.declared = length

    def take(self, body: bytes) -> None:
        """All of it, at once. Raises `Rejection` (413)."""
        self.complete = True
        self.declared = len(body)
        self.add(body)

    @property
    def missing(self) -> int:
        """Bytes still to come; 0 where the length is not known."""
        return 0 if self.complete or self.declared is None else self.declared - self.size

    def add(self, piece: bytes) -> None:
        """Raises `Rejection` (413)."""
        self.size += len(piece)
        if self.size > self._limit:
            raise Rejection(body_too_large(self._limit))
        if self.pieces is not None:
            self.pieces.append(piece)

    def replace(self, body: bytes) -> None:
        """Another body in place of the one that came, which must be complete."""
        self.pieces, self.size, self.declared = [body], len(body), len(body)

    def begin(self) -> tuple[bytes, bytes]:
        """How the body is framed for the engine, as the end of the head, and all of it that is here."""
        assert self.pieces is not None
        length = (self.size or self.declared) if self.complete else self.declared
        body = b"".join(self.pieces)
        if length is not None:
            return b"content-length: %d\r\n\r\n" % length, body
        if self.complete:
            return b"\r\n", body
        self.chunked = True
        return b"transfer-encoding: chunked\r\n\r\n", chunk(body)

    def written(self) -> None:
        """All of it so far is on its way to the engine."""
        if self.size > REPLAYABLE_BYTES:
            self.pieces = None
