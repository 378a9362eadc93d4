"""One request on its way to an engine, and the answer on its way back.

    resolve -> admit -> open -> relay

Every step is taken inside the callback that made it possible: of the client's connection (`receive`,
`receive_end`, `leave`), of the engine's (`on_response`, `on_lost`) or of the clock (`on_tick`). No task waits
in between, except for a new connection to an engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from enum import StrEnum

from memoria.engine.address import EngineAddress
from memoria.proxy.access.rules import ANYBODY, Grant
from memoria.proxy.downstream.watch import Standstill
from memoria.proxy.errors import Answer, Rejection
from memoria.proxy.exchange.client import Client
from memoria.proxy.exchange.inter_token_timer import InterTokenTimer
from memoria.proxy.exchange.passage import Passage
from memoria.proxy.exchange.record import CLIENT_GONE, RequestRecord
from memoria.proxy.exchange.relay import Failure, Relay, may_repeat
from memoria.proxy.exchange.reply import Reply
from memoria.proxy.exchange.upload import REPLAYABLE_BYTES, Upload
from memoria.proxy.http.chunks import LAST, chunk
from memoria.proxy.http.headers import new_request_id
from memoria.proxy.http.request import RequestHead
from memoria.proxy.upstream.connection import Sink, Upstream

logger = logging.getLogger(__name__)

_DOUBTFUL = {Failure.UNREACHABLE, Failure.LOST}  # so an engine that has just ended looks


class State(StrEnum):
    QUEUED = "behind an earlier request of its connection"
    READING = "waits for what it must see of the body"
    WAITING = "waits for a place at its engine"
    CONNECTING = "waits for a connection to the engine"
    OPEN = "has a connection to the engine, or had one until the response was complete"
    OVER = "done with, well or badly"


# An enumeration's members cost a call to look up in Python 3.11
QUEUED, READING, WAITING, CONNECTING, OPEN, OVER = State


class Exchange:
    """`response_complete` and `keep_alive` are read and set by uvicorn too, as those of its own requests."""

    state = QUEUED
    _upstream: Upstream | None = None
    _connector: asyncio.Task[None] | None = None
    _failed: frozenset[Failure] = frozenset()  # why earlier tries failed
    _tries = 0
    _head_at: float | None = None
    _response_bytes = 0
    _moved = True  # since the last tick
    _still: Standstill | None = None  # most are over before the first tick

    def __init__(
        self, relay: Relay, client: Client, head: RequestHead, verdict: Grant | Answer = ANYBODY
    ) -> None:
        """`verdict`: whether the client may ask, or what it is told instead."""
        self._began = time.monotonic()
        self._relay, self._client, self._head = relay, client, head
        self.keep_alive = head.keep_alive
        self._id = head.own_id or new_request_id()
        self.upload = Upload(relay.policy.limits.body_bytes)
        grant = verdict if isinstance(verdict, Grant) else ANYBODY
        self._refused = verdict if isinstance(verdict, Answer) else head.refused  # before its turn
        self._key = grant.key
        self.reply = Reply(client.transport, self._id, http_1_0=head.http_1_0, extra=grant.headers)
        self._passage = Passage(relay, head, self.upload, grant.key or client.peer)

    @property
    def response_complete(self) -> bool:
        return self.state is OVER

    # From the client

    @property
    def is_refused(self) -> bool:
        """By its head, before its turn."""
        return self._refused is not None

    def declare(self, lengths: Sequence[bytes]) -> None:
        """The values of the request's Content-Length headers."""
        if self._refused is None:
            try:
                self.upload.declare(self._head.body_length(lengths))
            except Rejection as rejection:
                self._refused = rejection.answer

    def start(self) -> None:
        """It is this request's turn on its connection."""
        self.state = READING
        if self._refused is not None:
            self.refuse(self._refused)
            return
        self._proceed()
        self._continue()

    def start_with(self, body: bytes) -> None:
        """It is this request's turn, and all of it is here."""
        self.state = READING
        try:
            self.upload.take(body)
        except Rejection as rejection:
            self.refuse(rejection.answer)
        else:
            self._proceed()

    def receive(self, piece: bytes) -> None:
        """A piece of the body."""
        if self.state is OVER or self._refused is not None:
            return
        self._moved = True
        upload = self.upload
        try:
            upload.add(piece)
        except Rejection as rejection:
            self.refuse(rejection.answer)
            return
        upstream = self._upstream
        if upstream is not None:
            upstream.write(chunk(piece) if upload.chunked else piece)
            upload.written()
            if upstream.write_paused:
                self._client.pause_reading()
        elif self.state is CONNECTING or self.state is WAITING:
            if upload.size > Upload.LARGE:
                self._client.pause_reading()
        elif self.state is READING:
            self._proceed()

    def receive_end(self) -> None:
        """All of the body is here."""
        self._moved = True
        self.upload.complete = True
        if self.state is READING:
            self._proceed()
        elif self.upload.chunked and self._upstream is not None:
            self._upstream.write(LAST)

    def refuse(self, answer: Answer) -> None:
        """Ends the request with an answer of memoria's own, or cuts the response that has begun."""
        if self.state is QUEUED:
            self._refused = answer
            return
        self._drop_upstream()
        if not self.reply.is_sent:
            self._head_at = None  # of an engine's answer that nobody will see
            self.keep_alive = self.keep_alive and not answer.close
            wanted = self._head.method != b"HEAD"
            self.reply.answer(answer, keep_alive=self.keep_alive, body_wanted=wanted)
            self._finish()
            self._client.on_answered(self)
        else:
            self.reply.explain(answer)
            self._finish()
            self._client.on_cut(self)

    def leave(self) -> None:
        """The client is gone."""
        if self.state is QUEUED:
            self.state = OVER
        elif self.state is not OVER:
            self._drop_upstream()
            self._finish()

    def pause(self) -> None:
        """The client takes no more for now."""
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume(self) -> None:
        self._moved = True
        if self._upstream is not None:
            self._upstream.resume_reading()

    def on_tick(self, now: float) -> None:
        self.reply.flush()  # a head whose body is late after all
        if self._moved or self._still is None or self.state is WAITING:  # the wait has a clock of its own
            self._moved, self._still = False, Standstill()
        upstream, relay, client = self._upstream, self._relay, self._client
        unsent = client.transport.get_write_buffer_size() if client.blocked else 0
        lasts = self._still.lasts(now, (upstream.reads if upstream else 0, unsent))
        if unsent:
            failure, limit = Failure.READER_STALLED, relay.patience
        elif self.upload.complete or (upstream is not None and upstream.write_paused):
            failure, limit = Failure.SILENT, relay.policy.timeouts.idle
        else:
            failure, limit = Failure.UPLOAD_STALLED, relay.patience
            if self._passage.holds_up_others(now):
                limit = 0.0
        if lasts >= limit:
            self._fail(failure)

    def awaited(self, engine: str) -> Upstream | None:
        awaits = self._passage.engine == engine and self.upload.complete and not self._client.blocked
        return self._upstream if awaits else None

    def cut(self, engine: str) -> None:
        """If it is this engine that answers, it does so no longer."""
        if self._passage.engine == engine and self.state in {CONNECTING, OPEN}:
            self._fail(Failure.CUT)

    # To the engine

    def _proceed(self) -> None:
        """Goes on as far as what is here of the body allows."""
        passage = self._passage
        try:
            if not passage.seek(self._client.port, self):
                if passage.waits:
                    self.state = WAITING
                return
            if not self._tries:
                passage.change_body()
        except Rejection as rejection:
            self.refuse(rejection.answer)
        else:
            self._open()

    def _continue(self) -> None:
        """A client that waits to be told so may send its body."""
        if self.state is READING and self._head.expects_continue and not self.upload.size:
            self._client.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_place(self) -> None:
        """The wait is over."""
        self.state = READING
        self._moved = True
        if not self.upload.complete:
            self._client.resume_reading()
        self._proceed()
        self._continue()

    def _open(self) -> None:
        place = self._passage.place
        assert place is not None
        upload = self.upload
        upstream = None
        # what cannot be asked again is no risk to take with a connection that the engine may be closing
        if not self._failed and (upload.declared or upload.size) <= REPLAYABLE_BYTES:
            upstream = self._relay.pool.take(place.address)
        self._tries += 1
        if upstream is not None:
            self._attach(upstream)
        else:
            self.state = CONNECTING
            connecting = self._connect(place.address)
            self._connector = asyncio.get_running_loop().create_task(connecting)

    async def _connect(self, address: EngineAddress) -> None:
        try:
            upstream = await self._relay.pool.connect(address, self._relay.policy.timeouts.connect)
        except OSError:
            self._fail(Failure.UNREACHABLE)
        else:
            self._connector = None
            self._attach(upstream)

    def _attach(self, upstream: Upstream) -> None:
        """Writes the head and all of the body that is here."""
        upload = self.upload
        self.state = OPEN
        self._upstream = upstream
        self._moved = True
        upstream.begin(self)
        framing, body = upload.begin()
        before, after = self._head.to_engine
        if upload.size > Upload.LARGE:
            upstream.write(before + self._id + after + framing)
            upstream.write(body)
        else:
            upstream.write(b"".join((before, self._id, after, framing, body)))
        upload.written()
        if not upload.complete and not upstream.write_paused:
            self._client.resume_reading()

    def on_writable(self) -> None:
        self._moved = True
        self._client.resume_reading()

    # From the engine

    def on_head(self, upstream: Upstream) -> Sink:
        self._head_at = time.monotonic()
        self.upload.pieces = None
        reply = self.reply
        assert upstream.head is not None
        reply.begin(upstream.head, upstream.length, keep_alive=self.keep_alive)
        protected = self._relay.policy.protected
        if protected is not None and protected.engine == self._passage.engine and upstream.head.is_events:
            return InterTokenTimer(upstream, reply, protected.observe)
        return reply

    def on_waiting(self) -> None:
        self.reply.flush()

    def on_end(self, upstream: Upstream) -> None:
        self._upstream = None
        self._response_bytes = upstream.received
        self.reply.end()
        if self.upload.complete:
            self._relay.pool.give(upstream)
        else:
            upstream.abort()
        self._finish()
        self._client.on_answered(self)

    def on_lost(self, upstream: Upstream) -> None:
        self._upstream = None
        self._response_bytes = upstream.received
        if upstream.garbled:
            self._fail(Failure.GARBLED)
        elif upstream.unread and not upstream.reads:
            self._fail(Failure.UNREAD)
        else:
            self._fail(Failure.LOST)

    # The end

    def _fail(self, failure: Failure) -> None:
        route, engine, identity = self._head.route, self._passage.engine, self._id.decode()
        if route is None or engine is None:
            self.refuse(self._relay.explain(failure, ""))
            return
        self._drop_upstream()
        if failure in _DOUBTFUL and self._passage.place is not None:
            self._relay.admission.doubt(engine, self._passage.place.address)
        unanswered = self.reply.status is None and self.upload.pieces is not None
        if unanswered and may_repeat(failure, self._failed, route):
            logger.info("%s: %s, asking again (request %s)", engine, failure, identity)
            self._failed |= {failure}
            self._repeat()
            return
        logger.warning("%s: %s (request %s)", engine, failure, identity)
        if failure is Failure.READER_STALLED:
            self._finish()
            self._client.on_cut(self)
        else:
            self.refuse(self._relay.explain(failure, engine))

    def _repeat(self) -> None:
        """Asks once more, of the engine as it is by then: its address may be another."""
        try:
            self._passage.seek_again(self)
        except Rejection as rejection:
            self.refuse(rejection.answer)
        else:
            self._proceed()

    def _drop_upstream(self) -> None:
        if self._connector is not None:
            self._connector.cancel()
            self._connector = None
        if self._upstream is not None:
            self._response_bytes = self._upstream.received
            self._upstream.abort()
            self._upstream = None

    def _finish(self) -> None:
        self.state = OVER
        self._passage.leave()
        if self._relay.on_done is not None:
            self._relay.on_done(self._exchange())

    def _exchange(self) -> RequestRecord:
        began, reply, head = self._began, self.reply, self._head
        # vLLM may send a stream's head long before its first token
        first = reply.first_at or self._head_at
        return RequestRecord(
            self._id.decode(),
            self._passage.engine,
            head.route.path if head.route is not None else None,
            reply.status or CLIENT_GONE,
            self._response_bytes,
            None if first is None else first - began,
            time.monotonic() - began,
            reply.complete,
            self._tries - 1 if self._tries else 0,
            head.method.decode(),
            self._key,
            self._client.peer,
            self.upload.size,
            reply.ends,
            head.traceparent,
            reply.is_events,
        )
