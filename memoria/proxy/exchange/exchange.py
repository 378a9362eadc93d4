"""One request and its answer:

body -> engine = resolve -> lease = admit -> relay

`Exchange._advance` is these four steps. Each is taken once, inside the callback that made it possible: of the
client's connection, of the engine's or of the clock. No task waits in between, except for a new connection to
an engine.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar

from memoria.config.model import Filters
from memoria.proxy import errors
from memoria.proxy.access.rules import ANYBODY, Grant
from memoria.proxy.admission.admission import Lease, Waiting
from memoria.proxy.admission.uploads import Kept
from memoria.proxy.errors import Answer, Rejection
from memoria.proxy.exchange.context import (
    CONSEQUENCES,
    Client,
    Failure,
    InterTokenTimer,
    ProxyContext,
    Standstill,
    begin_scan,
    engine_with_model,
    filter_body,
    may_repeat,
)
from memoria.proxy.exchange.record import CLIENT_GONE, RequestRecord
from memoria.proxy.http.messages import LAST, Reply, chunk, new_request_id
from memoria.proxy.http.request import REPLAYABLE_BYTES, RequestHead, Upload
from memoria.proxy.routing.bodies import AT_ONCE
from memoria.proxy.upstream import Sink, Upstream, connect

logger = logging.getLogger(__name__)

GRACE_S = 5.0  # for an upload's next `Upload.LARGE` bytes, while others wait for its lease


class State(StrEnum):
    READING = "waits for more of its body"
    QUEUED = "waits for a lease"
    CONNECTING = "waits for a connection to the engine"
    OPEN = "has a connection to the engine, or had one until the response was complete"
    OVER = "is finished"


# in Python 3.11, looking up a member of an enumeration costs a call
READING, QUEUED, CONNECTING, OPEN, OVER = State


class Exchange:
    """A request and its response. Implements `memoria.proxy.upstream.Listener`.

    uvicorn, too, reads `response_complete` and `keep_alive`, as of its own requests. `refusal`: the answer to
    a request that its head alone forbids."""

    switches: ClassVar[bool] = False  # the connection is its own after the head

    state = READING
    response_complete = False
    engine: str | None = None
    _lease: Lease | None = None
    _waiting: Waiting | None = None
    _filters: Filters | None = None
    _in_backlog = _looked = False  # the second: for a model that no engine was known to have
    _kept: Kept | None = None  # of a body that must be whole first
    _connector: asyncio.Task[None] | None = None
    _failed: frozenset[Failure] = frozenset()  # earlier tries
    _tries = 0
    _head_at: float | None = None
    _response_bytes = 0
    _upstream: Upstream | None = None
    _moved = True  # since the last tick
    _still: Standstill | None = None  # most are over before the first tick
    _slow: Standstill | None = None  # the upload, while others wait for its lease

    def __init__(
        self,
        context: ProxyContext,
        client: Client,
        head: RequestHead,
        verdict: Grant | Answer = ANYBODY,
        lengths: Sequence[bytes] = (),
    ) -> None:
        """`verdict`: the access granted, or the answer instead. `lengths`: the values of Content-Length."""
        self._began = time.monotonic()
        self._context, self._client, self._head = context, client, head
        self.keep_alive = head.keep_alive
        self._id = head.own_id or new_request_id()
        limit = context.policy.limits.body_bytes
        self.upload = Upload(limit)
        grant = verdict if isinstance(verdict, Grant) else ANYBODY
        self.refusal = verdict if isinstance(verdict, Answer) else head.refused
        self._key = grant.key
        self.reply = Reply(client.transport, self._id, http_1_0=head.http_1_0, extra=grant.headers)
        if lengths and self.refusal is None:
            try:
                self.upload.declared = head.body_length(lengths, limit)
            except Rejection as rejection:
                self.refusal = rejection.answer

    # From the client

    def start(self) -> None:
        if self.refusal is not None:
            self.refuse(self.refusal)
            return
        self._advance()
        if self._head.expects_continue:
            self._send_continue()

    def start_whole(self, body: bytes) -> None:
        """All of it is here."""
        self.upload.declared = len(body)
        self.receive(body)

    def receive(self, piece: bytes) -> None:
        state, upload = self.state, self.upload
        if state is OVER:
            return
        self._moved = True
        upload.size += len(piece)
        if upload.size > upload.limit:
            self.refuse(errors.body_too_large(upload.limit))
            return
        if upload.pieces:
            upload.keep_more(piece)
        elif upload.pieces is not None:
            upload.pieces.append(piece)
        upstream = self._upstream
        if upstream is not None:
            if not upload.write_on(upstream, chunk(piece) if upload.chunked else piece):
                self._client.pause_reading()
        elif state is READING:
            upload.complete = upload.size == upload.declared
            self._advance()
        elif upload.size > upload.LARGE:
            self._client.pause_reading()

    def receive_end(self) -> None:
        self._moved = True
        upload = self.upload
        if upload.complete:
            return
        upload.complete = True
        if self.state is READING:
            self._advance()
        elif upload.chunked and self._upstream is not None:
            upload.write_on(self._upstream, LAST)

    def pause_response(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_response(self) -> None:
        self._moved = True
        if self._upstream is not None:
            self._upstream.resume_reading()

    def on_tick(self, now: float) -> None:
        self.reply.flush()  # a head whose body is late after all
        if self._waiting is not None and self._context.tells(self._waiting, self._head, self.upload):
            self.reply.comment(self._waiting.reason, keep_alive=self.keep_alive)
        if self._moved or self._still is None or self.state is QUEUED:  # the queue has a clock of its own
            self._moved, self._still = False, Standstill()
        upstream, context, client = self._upstream, self._context, self._client
        unsent = client.unsent if client.blocked else 0
        lasts = self._still.lasts(now, (upstream.reads if upstream else 0, unsent))
        if unsent:
            failure, limit = Failure.READER_STALLED, context.client_idle
        elif self.upload.complete or (upstream is not None and upstream.write_paused):
            failure, limit = Failure.SILENT, context.policy.timeouts.idle or math.inf
            if self._lease is not None:  # long prefills, vLLM's own queue and whole answers are no silence
                lasts = min(lasts, now - self._lease.works_until)
        else:
            failure, limit = Failure.UPLOAD_STALLED, context.client_idle
            if self._kept is not None and self._kept.is_paused:
                self._moved = True
                if self._kept.is_paused_for_long(now):
                    self.refuse(errors.hold_full(context.admission.hold.bytes).answer)
                return
            if self._blocks_others(now):
                limit = 0.0
        if lasts >= limit:
            self._fail(failure)

    def _blocks_others(self, now: float) -> bool:
        """By an upload that is too slow, with a lease or room that others wait for."""
        holding = self._lease or self._kept
        if holding is None or not holding.is_wanted:
            self._slow = None
            return False
        self._slow = self._slow or Standstill()
        return self._slow.lasts(now, self.upload.size // Upload.LARGE) >= GRACE_S

    def on_client_gone(self) -> None:
        if self.state is not OVER:
            self._drop_upstream()
            self._finish()

    def cut(self, engine: str) -> None:
        """Ends it, if this engine answers it."""
        if self.engine == engine and self.state in {CONNECTING, OPEN}:
            self._fail(Failure.CUT)

    def awaited_from(self, engine: str) -> Upstream | None:
        awaited = self.engine == engine and self.upload.complete and not self._client.blocked
        return self._upstream if awaited else None

    # To an engine

    def _advance(self) -> None:
        """The way of every request, as far as what is here allows. A lease stands for work of an engine: a
        body is complete before it takes one, unless it is large: that is passed on as it comes, and not
        kept."""
        body = self.upload
        try:
            if body.size > AT_ONCE and not self._has_scanned(body):
                return
            engine = self.engine or self._resolve(body)
            if engine is None or not (body.complete or (body.size > body.LARGE and self._filters is None)):
                if body.size:
                    self._kept = self._kept or self._begin_keeping()
                    self._kept.grow(body.size)
                return
            lease = self._lease or self._admit(engine)
            if lease is not None:  # else queued
                self._relay(lease)
        except Rejection as rejection:
            self.refuse(rejection.answer)

    def _has_scanned(self, body: Upload) -> bool:
        """Reads a large body as it comes, if something in it decides. False: this is called again later."""
        if self._tries or (self.engine is not None and self._filters is None):
            return True
        scan = begin_scan(self._head, self._context.policy, body)
        if scan is None or (not self._in_backlog and scan.advance()):
            return True
        if not self._in_backlog:
            self._in_backlog = True
            self._client.pause_reading()
            self._context.backlog.add(self._go_on)
        return False

    def _go_on(self) -> None:
        self._in_backlog = False
        if self.state is READING:
            self._moved = True
            if self._kept is None or not self._kept.is_paused:
                self._client.resume_reading()
            self._advance()

    def _resolve(self, body: Upload) -> str | None:
        """None: the body decides, and is not complete; or a look for its model comes first (`_on_looked`)."""
        context, route = self._context, self._head.route
        assert route is not None
        candidates = context.router.candidates(route.runner, self._client.port)
        only = candidates[0].engine if len(candidates) == 1 else None
        try:
            engine = only or engine_with_model(candidates, self._head, route, body)
        except Rejection as rejection:
            unknown = rejection.answer.code == errors.MODEL_NOT_FOUND and not self._looked
            self._looked = True
            if not (unknown and context.router.look_for_models(self._on_looked)):
                raise
            engine = None
        if engine is not None and route.model_in == "json":
            self._filters = context.policy.filters.get(engine)
        self.engine = engine
        return engine

    def _on_looked(self) -> None:
        if self.state is READING and self.engine is None:
            self._advance()

    def _admit(self, engine: str) -> Lease | None:
        """None: queued, until `_on_lease` or `_on_refusal`."""
        admission = self._context.admission
        self._lease = lease = admission.try_admit(engine)
        if self._kept is not None and (lease is None or self.upload.size <= Upload.LARGE):
            self._kept.end()  # else once it is written
        if lease is None:
            # in memory meanwhile: what is here, and what may come before the client is paused
            kept = max(self.upload.size, min(self.upload.declared or 0, Upload.LARGE))
            who, granted, refused = self._key or self._client.peer, self._on_lease, self._on_refusal
            self._waiting = admission.wait(engine, who, kept, granted=granted, refused=refused)
            self.state = QUEUED
        return lease

    def _on_lease(self, lease: Lease) -> None:
        if self._waiting is not None:
            self.reply.add_header(b"server-timing", self._waiting.timing)
        self._lease, self._waiting, self.state, self._still = lease, None, READING, None
        if not self.upload.complete:
            self._client.resume_reading()
        self._advance()
        if self._head.expects_continue:
            self._send_continue()

    def _on_refusal(self, refusal: Rejection) -> None:
        self._waiting = None
        self.refuse(refusal.answer)

    def _relay(self, lease: Lease) -> None:
        upload, pool = self.upload, self._context.pool
        if self._filters is not None and not self._tries:
            filter_body(upload, self._filters)
        upstream = None
        # the engine may be closing a pooled connection: no risk for a request that cannot be sent again
        if not self._failed and (upload.declared or upload.size) <= REPLAYABLE_BYTES:
            upstream = pool.take(lease.address)
        self._tries += 1
        if upstream is not None:
            self.on_connected(upstream)
        else:
            self.state = CONNECTING
            connecting = connect(lease.address, pool, self._context.policy.timeouts.connect, self)
            self._connector = asyncio.get_running_loop().create_task(connecting)

    def on_connected(self, upstream: Upstream) -> None:
        """Writes the head and all of the body that is here."""
        upload, self._connector = self.upload, None
        self.state, self._upstream, self._moved = OPEN, upstream, True
        framing = upload.begin()
        before, after = self._head.to_engine
        if upload.size > upload.LARGE:
            upstream.begin(self, before + self._id + after + framing, self._id)
            self.on_upstream_writable()
            return
        upstream.begin(self, b"".join((before, self._id, after, framing, *upload.unwritten)), self._id)
        upload.unwritten.clear()
        if not upload.complete and not upstream.write_paused:
            self._client.resume_reading()

    def on_unreachable(self) -> None:
        self._fail(Failure.UNREACHABLE)

    def _drop_upstream(self) -> None:
        """Gives up the connection to the engine, also one that is being made."""
        if self._connector is not None:
            self._connector.cancel()
            self._connector = None
        if self._upstream is not None:
            self._response_bytes = self._upstream.received
            self._upstream.abort()
            self._upstream = None

    def on_upstream_writable(self) -> None:
        self._moved = True
        if self._upstream is not None and self.upload.write_on(self._upstream):
            if self._kept is not None:
                self._kept.end()
            self._client.resume_reading()

    def _send_continue(self) -> None:
        if self.state is READING and not self.upload.size:
            self._client.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _begin_keeping(self) -> Kept:
        who, pause = self._key or self._client.peer, self._client.pause_reading
        return self._context.admission.uploads.begin(who, pause, self._on_room)

    def _on_room(self) -> None:
        self._moved = True
        if not self._in_backlog:
            self._client.resume_reading()

    # From the engine

    def on_response_head(self, upstream: Upstream) -> Sink:
        self._head_at = time.monotonic()
        self.upload.pieces = None
        head, reply = upstream.head, self.reply
        assert head is not None
        reply.begin(head, upstream.length, keep_alive=self.keep_alive)
        protected = self._context.policy.protected
        if protected is not None and protected.engine == self.engine and head.is_events:
            return InterTokenTimer(upstream, reply, protected.observe)
        return reply

    def on_response_end(self, upstream: Upstream) -> None:
        self._upstream, self._response_bytes = None, upstream.received
        self.reply.end()
        if self.upload.complete and not self.upload.unwritten:
            self._context.pool.give_back(upstream)
        else:
            upstream.abort()
            self._close_unless_bounded()
        self._finish()
        self._client.on_answered()

    def on_upstream_lost(self, upstream: Upstream) -> None:
        self._upstream, self._response_bytes = None, upstream.received
        lost = Failure.UNREAD if upstream.unread and not upstream.reads else Failure.LOST
        self._fail(Failure.GARBLED if upstream.garbled else lost)

    # The end

    def _close_unless_bounded(self) -> None:
        """A body in chunks may come for ever, after the answer, too."""
        if self._head.chunked and not self.upload.complete:
            self.keep_alive = False

    def refuse(self, answer: Answer) -> None:
        """Ends the request with an answer of memoria's own, or cuts the response that has begun."""
        self._drop_upstream()
        if not self.reply.is_sent:
            self._head_at = None  # of an engine's answer that the client never sees
            self._close_unless_bounded()
            self.keep_alive = self.keep_alive and not answer.close
            body_wanted, keep_alive = self._head.method != b"HEAD", self.keep_alive
            self.reply.answer(
                answer.status, answer.body, answer.headers, keep_alive=keep_alive, body_wanted=body_wanted
            )
            self._finish()
            self._client.on_answered()
        else:
            self.reply.explain(answer.event)
            self._finish()
            self._client.on_cut()

    def _fail(self, failure: Failure) -> None:
        self._drop_upstream()
        context, engine, route = self._context, self.engine, self._head.route
        consequence = CONSEQUENCES[failure]
        if route is not None and engine is not None:
            if consequence.doubt and self._lease is not None:
                context.admission.doubt(engine, self._lease.address)
            request = self._id.decode()
            unanswered = self.reply.status is None and self.upload.pieces is not None
            if unanswered and may_repeat(failure, self._failed, route):
                logger.info("%s: %s; sending request %s again", engine, failure, request)
                self._failed |= {failure}
                self._release()  # the engine's address may be another by then
                self.state = READING
                self._advance()
                return
            logger.warning("%s: %s (request %s)", engine, failure, request)
        if consequence.answer is None:
            self._finish()
            self._client.on_cut()
        else:
            self.refuse(consequence.answer(engine or "", context))

    def _release(self) -> None:
        """Gives back the lease, or the place in the queue."""
        if self._kept is not None:
            self._kept.end()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _finish(self) -> None:
        self.state, self.response_complete = OVER, True
        if self.upload.size > REPLAYABLE_BYTES:
            self._context.backlog.free(self.upload.take_all())
        if self._kept is not None or self._waiting is not None:
            self._release()
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()
        on_done = self._context.on_done
        if on_done is None:
            return
        began, reply, head = self._began, self.reply, self._head
        # vLLM may send a stream's head long before its first token
        first = reply.first_at or self._head_at
        on_done(
            RequestRecord(
                self._id.decode(),
                self.engine,
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
        )
