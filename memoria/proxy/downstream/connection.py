"""One client's connection: uvicorn's, with a shortcut from the parser to an engine.

Requests of the route table become a `Exchange` without passing through ASGI: no task, no scope, no messages.
All others go the way uvicorn has for them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, ClassVar, NamedTuple

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from memoria.proxy import errors
from memoria.proxy.access.rules import ANYBODY, Grant
from memoria.proxy.downstream.asgi_lane import AsgiLane
from memoria.proxy.downstream.disconnect_monitor import DisconnectMonitor
from memoria.proxy.downstream.head_cache import HeadCache
from memoria.proxy.downstream.watch import Standstill
from memoria.proxy.errors import Answer
from memoria.proxy.exchange.exchange import Exchange
from memoria.proxy.exchange.relay import Relay
from memoria.proxy.exchange.reply import Reply
from memoria.proxy.exchange.websocket import WebSocketExchange
from memoria.proxy.http.ending import linger, reset
from memoria.proxy.http.headers import Header, new_request_id
from memoria.proxy.http.request import RequestHead, head_size, read_head
from memoria.proxy.routing import routes

logger = logging.getLogger(__name__)

HEAD_S = 10.0  # the longest a client may take to send a request's head
HEAD_BYTES = 64 * 1024
HEAD_FIELDS = 256
CONNECTIONS = 10_000  # at once; an idle one takes some 13 KiB
_PAGE = frozenset((b"origin", b"sec-fetch-site"))  # so a browser says whose page asks


def protocol_for(relay: Relay) -> type[HttpToolsProtocol]:
    """The class that uvicorn takes as `http=`. uvicorn must run with `server_header=False,
    date_header=False`: the engine's Date is relayed, its Server is not."""
    return type("Downstream", (Downstream,), {"relay": relay, "familiar": {}})


class _Known(NamedTuple):
    """What is known of a request by its head. `rules`: the state of the rules that gave the grant."""

    head: RequestHead
    grant: Grant
    rules: object


class Downstream(AsgiLane):
    """`self.cycle` is the request that was parsed last (a `Exchange`, or uvicorn's own kind), `_transfer` the
    one that is being answered, if it is a transfer.

    `familiar`: by port, the latest head that a new connection may begin with, too: clients of one kind open
    many. None that got its grant for a key: how long a comparison takes would tell of it."""

    relay: ClassVar[Relay]
    familiar: ClassVar[dict[int, HeadCache[_Known]]]
    flow: DisconnectMonitor
    _repeat: HeadCache[_Known] | None
    cycle: Exchange | WebSocketExchange | RequestResponseCycle | None  # type: ignore[assignment]
    port = 0
    peer = ""
    pipeline: deque[tuple[Exchange | WebSocketExchange | RequestResponseCycle, Any]]  # type: ignore[assignment]

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = DisconnectMonitor(transport, self.relay.presence)
        self._transfer: Exchange | WebSocketExchange | None = None
        self._tunnel: WebSocketExchange | None = None  # all that still comes is its
        self._in_head = False
        self._read = 0  # bytes of the latest read that was parsed
        self._head_begun = 0  # bytes of the read that began it
        self._head_size = 0  # of the reads after that one
        self._between = True  # nothing of a request has come since the last one was answered
        self._opening = b""  # the read that began it, until its head is complete
        self._left = 0  # bytes of a body that are not parsed but counted
        self._deaf = False  # what still comes is not read as HTTP
        self._answered = 0
        self._still = Standstill()
        self.port = (self.server and self.server[1]) or 0
        self.peer = self.client[0] if self.client else ""
        self._repeat = self.familiar.get(self.port)
        self.relay.watch.add(self)
        if self.port and len(self.connections) > CONNECTIONS:
            self._deaf = True
            Reply(transport, new_request_id()).answer(errors.too_many_connections(), keep_alive=False)
            transport.close()

    def data_received(self, data: bytes) -> None:
        if self._between:
            self._between = False
            if self._repeat is not None and self._recognise(self._repeat, data):
                return
            self._opening = data
        if self._deaf:
            return
        if self._left:
            self._count(data)
        else:
            self._parse(data)

    def _recognise(self, repeat: HeadCache[_Known], data: bytes) -> bool:
        """Takes a request that is here as a whole, under a head that came before."""
        found = repeat.match(data)
        known = repeat.meaning
        if found is None or known.rules is not self.relay.rules_token:
            return False
        length, start = found
        if start + length != len(data):
            return False
        exchange = Exchange(self.relay, self, known.head, known.grant)
        self.cycle = self._transfer = exchange
        exchange.start_with(data[start:])
        return True

    def _parse(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.receive(data)
            return
        if self._in_head:
            self._head_size += len(data)
            if self._head_size > HEAD_BYTES:
                self._turn_away(errors.head_too_large(HEAD_BYTES, HEAD_FIELDS))
                return
        self._read = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if isinstance(self.cycle, WebSocketExchange):
                self._tunnel = self.cycle
                if rest := data[upgrade.args[0] :]:
                    self._tunnel.receive(rest)
            else:
                self._deaf = True  # it is declined by an answer, and what follows may not be HTTP
        except httptools.HttpParserError as error:
            self._on_malformed(error)
        cycle = self.cycle
        if isinstance(cycle, Exchange) and not cycle.response_complete and not self._in_head:
            self._left = cycle.upload.missing

    def _count(self, data: bytes) -> None:
        """A piece of a body whose length is known: there is nothing to parse in it."""
        cycle = self.cycle
        assert isinstance(cycle, Exchange)
        rest = data[self._left :]
        piece = data[: self._left] if rest else data
        self._left -= len(piece)
        cycle.receive(piece)
        if not self._left:
            self.parser = httptools.HttpRequestParser(self)  # the old one waits for what it did not see
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            cycle.receive_end()
            if rest and not self._deaf:
                self._parse(rest)

    def connection_lost(self, exc: Exception | None) -> None:
        self.relay.watch.discard(self)
        self.flow.forget()
        exchange, self._transfer = self._transfer, None
        if isinstance(self.cycle, Exchange | WebSocketExchange):
            self.cycle = None
        super().connection_lost(exc)
        self.pipeline.clear()
        if exchange is not None:
            exchange.leave()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._transfer is not None:
            self._transfer.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._transfer is not None:
            self._transfer.resume()
        elif self._held:
            self._held = False
            self._go_on()

    # httptools

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._lengths: list[bytes] = []
        self._in_head = True
        self._between = False
        self._head_begun, self._head_size = self._read, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer
        name = name.lower()
        if name == b"content-length":
            self._lengths.append(value)
        else:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        # Taken whatever becomes of this head: kept for the next one, its bytes would get that one's grant
        opening, self._opening = self._opening, b""
        if self._deaf:
            return  # it came in one piece with what ended the conversation
        parser = self.parser
        line = (parser.get_method(), self.url, parser.get_http_version(), self.headers)
        verdict = self._decide(*line)
        head = self._read_head(*line)
        exchange: Exchange | WebSocketExchange
        before = self.cycle
        if (
            head.route is not None
            and head.route.websocket
            and isinstance(verdict, Grant)
            and not head.refused
        ):
            if self._held or (before is not None and not before.response_complete):
                self._turn_away(errors.bad_framing("A WebSocket needs a connection of its own"))
                return
            exchange = WebSocketExchange(self.relay, self, head, verdict)
        else:
            exchange = Exchange(self.relay, self, head, verdict)
            if self._lengths:
                exchange.declare(self._lengths)
            if isinstance(verdict, Grant) and not exchange.is_refused:
                if head.is_own:
                    self.begin_own(head, verdict, self.url, self.headers, self._lengths)
                    return
                if head.is_plain and opening:
                    self._remember(opening, _Known(head, verdict, self.relay.rules_token))
        self.cycle = exchange
        if (before is None or before.response_complete) and not self._held:
            self._transfer = exchange
            exchange.start()
        else:
            self.pause_reading()
            self.pipeline.appendleft((exchange, self.app))

    def _remember(self, opening: bytes, known: _Known) -> None:
        # a page's request is also judged by its length, which a head that is known again may tell otherwise
        if _PAGE.isdisjoint(name for name, _ in self.headers):
            self._repeat = HeadCache.of(opening, known)
            if self._repeat is not None and known.grant.key is None:
                self.familiar[self.port] = self._repeat

    def _read_head(
        self, method: bytes, target: bytes, http_version: str, headers: list[Header]
    ) -> RequestHead:
        url = httptools.parse_url(target)
        methods = routes.methods_of(url.path or b"")
        if methods is not None:
            target = url.path if url.query is None else url.path + b"?" + url.query
        keep_alive = self.parser.should_keep_alive()
        return read_head(methods, method, target, http_version, headers, keep_alive=keep_alive)

    def _decide(self, method: bytes, target: bytes, _: str, headers: list[Header]) -> Grant | Answer:
        """The admin socket has a door of its own, its mode."""
        read = self._head_begun + self._head_size  # with what else came in these reads
        too_large = read > HEAD_BYTES and head_size(target, headers) > HEAD_BYTES
        if too_large or len(headers) > HEAD_FIELDS:
            return errors.head_too_large(HEAD_BYTES, HEAD_FIELDS)
        if not self.port:
            return ANYBODY
        lengths = [(b"content-length", length) for length in self._lengths]
        return self.relay.decide(method, target.partition(b"?")[0], headers + lengths)

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if isinstance(cycle, Exchange):
            cycle.receive(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        cycle = self.cycle
        if isinstance(cycle, Exchange):
            cycle.receive_end()
        elif not isinstance(cycle, WebSocketExchange):
            super().on_message_complete()

    # memoria.proxy.exchange.exchange.Client

    @property
    def blocked(self) -> bool:
        return self.flow.write_paused

    def pause_reading(self) -> None:
        self.flow.pause_reading()

    def resume_reading(self) -> None:
        if not self.pipeline:
            self.flow.resume_reading()

    def on_answered(self, exchange: Exchange | WebSocketExchange) -> None:
        self._transfer = None
        if exchange.keep_alive:
            self._between = exchange.upload.complete and self.cycle is exchange and not self._in_head
            self.on_response_complete()
        elif exchange.upload.complete:
            self.transport.close()
        else:
            self._linger()

    def on_cut(self, exchange: Exchange | WebSocketExchange) -> None:
        self._transfer = None
        if self.blocked or exchange.reply.ends_with_connection:
            reset(self.transport)
        else:
            self.transport.close()

    # memoria.proxy.exchange.relay.Connection

    def on_tick(self, now: float) -> None:
        if self._transfer is not None:
            self._transfer.on_tick(now)
        elif self._held or self.blocked or self.cycle is None or self.cycle.response_complete:
            unsent = self.transport.get_write_buffer_size()
            lasts = self._still.lasts(now, (self._in_head, self._answered, unsent))
            if unsent:
                if lasts >= self.relay.patience:
                    reset(self.transport)
            elif lasts >= (HEAD_S if self._in_head else self.timeout_keep_alive):
                self.transport.close()

    @property
    def exchange(self) -> Exchange | WebSocketExchange | None:
        return self._transfer

    # The next request, or the end

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._answered += 1
        if self.transport.is_closing():
            return
        if self.blocked:
            self._held = True
            self.flow.pause_reading()
        else:
            self._go_on()

    def _go_on(self) -> None:
        if self.pipeline:
            self.loop.call_soon(self._start_next)  # not from here: many in a row would nest
        else:
            self.flow.resume_reading()

    def _start_next(self) -> None:
        if self.transport.is_closing() or not self.pipeline:
            return
        cycle, app = self.pipeline.pop()
        self.resume_reading()  # it may want the rest of its body
        if isinstance(cycle, Exchange | WebSocketExchange):
            self._transfer = cycle
            cycle.start()
        else:
            self._start_asgi_task(cycle, app)

    def _on_malformed(self, error: httptools.HttpParserError) -> None:
        if self._deaf:
            return
        cause = error.__context__
        if cause is not None and not isinstance(cause, httptools.HttpParserError):
            logger.error("a request could not be read", exc_info=cause)
        self._turn_away(errors.malformed())

    def _turn_away(self, answer: Answer) -> None:
        """What comes from this client is not, or no longer, read as HTTP."""
        self._deaf = True
        cycle: Exchange | WebSocketExchange | RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            Reply(self.transport, new_request_id()).answer(answer, keep_alive=False)
            self._linger()
        elif isinstance(cycle, Exchange) and not cycle.upload.complete:
            cycle.refuse(answer)
        elif cycle is self._own and cycle.more_body and self.leave_own():
            Reply(self.transport, new_request_id()).answer(answer, keep_alive=False)
            self._linger()
        else:
            cycle.keep_alive = False  # the request before it is answered still

    def _linger(self) -> None:
        self._deaf = True
        self.flow.resume_reading()
        linger(self.transport)
