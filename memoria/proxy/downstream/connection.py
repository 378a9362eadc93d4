"""One client's connection: uvicorn's, with a shortcut from the parser to an engine.

Requests of the route table become exchanges without passing through ASGI: no task, no scope, no messages. All
others take uvicorn's way (`AsgiLane`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import repeat
from typing import ClassVar, NamedTuple

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from memoria.proxy import errors
from memoria.proxy.access.rules import ANYBODY, Grant, decide
from memoria.proxy.downstream.asgi_lane import AsgiLane
from memoria.proxy.downstream.flow import ClientFlow
from memoria.proxy.errors import Answer
from memoria.proxy.exchange.context import ProxyContext, Standstill
from memoria.proxy.exchange.exchange import Exchange
from memoria.proxy.exchange.websocket import WebSocketExchange
from memoria.proxy.http.messages import HEAD_END, HeadCache, Reply, new_request_id
from memoria.proxy.http.request import RequestHead, read_head
from memoria.proxy.routing import routes
from memoria.proxy.upstream import LARGE_READ

logger = logging.getLogger(__name__)

HEAD_S = 10.0  # the longest a client may take to send a request's head
HEAD_BYTES = 64 * 1024  # also of anything else in which no body comes: trailers, extensions of chunks
HEAD_FIELDS = 256
CONNECTIONS = 10_000  # at once; an idle one takes some 13 KiB
HANDSHAKE_S = HEAD_S  # of TLS
READER_S = 60.0  # for a client to take the rest of an answer after which its connection closes
SLICE = 4096  # bytes for the parser at once: it cannot be stopped on its way through them
TURN_S = 0.0005  # of parsing in one callback, give or take a slice
_BROWSER = frozenset((b"origin", b"sec-fetch-site"))  # a browser names the requesting page in these


def protocol_for(context: ProxyContext) -> type[HttpToolsProtocol]:
    """The class that uvicorn takes as `http=`. uvicorn must run with `server_header=False,
    date_header=False`: the engine's Date is relayed, its Server is not."""
    return type("Downstream", (Downstream,), {"context": context, "known_heads": {}})


class _Known(NamedTuple):
    """What a cached head stands for. `rules`: the token of the rules that gave the grant."""

    head: RequestHead
    grant: Grant
    rules: object


class Downstream(AsgiLane):
    """`cycle`: the request parsed last, an exchange or uvicorn's own kind; `_parsed`: the same, if an
    exchange. `exchange`: the one being answered, if any.

    `known_heads`: by port, the latest head that other connections may begin with, too: clients of one kind
    open many. None that was granted for a key: the time of a comparison would leak it."""

    context: ClassVar[ProxyContext]
    known_heads: ClassVar[dict[int, HeadCache[_Known]]]
    flow: ClientFlow
    cycle: Exchange | RequestResponseCycle | None  # type: ignore[assignment]
    exchange: Exchange | None = None
    port = 0
    peer = ""
    _known_head: HeadCache[_Known] | None = None
    _parsed: Exchange | None = None
    _switched: Exchange | None = None  # takes everything that still comes
    _in_head = False
    _is_whole = True  # the request was read to its end, whether it is answered or not
    _between = True  # nothing has come since the last request was answered
    _raw_head = b""  # what is here of the head that is being parsed
    _tail = b""  # the last bytes parsed: the first ones of an empty line, maybe
    _overhead = 0  # bytes since the request or a piece of its body began
    _left = 0  # bytes of a body that is counted, not parsed
    _pieces: list[bytes]  # of a body in chunks, from this turn
    _rest = b""  # a read that is not parsed to its end yet
    _read_to = 0  # where its unparsed part begins
    _has_turn = False
    _is_paused = False  # by the exchange
    _awaits_client = False  # the next request waits until the client has taken the last answer
    _has_body_behind = False  # an upgrade is declined, and the body comes behind what the parser reads
    _begins_again = False  # the parser reads a head of memoria's own
    _ignores_input = False  # what still comes is not read as HTTP
    _answered = 0
    _still: Standstill | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        context = self.context
        self.flow = ClientFlow(transport, context.paused_clients)
        self._pieces = []
        self.port = (self.server and self.server[1]) or 0
        self.peer = self.client[0] if self.client else ""
        context.connections.add(self)
        if self.port and len(self.connections) > CONNECTIONS:
            self._ignores_input = True
            self._answer(errors.too_many_connections())
            transport.close()

    def data_received(self, data: bytes) -> None:
        if self._between:
            self._between = False
            known = self._known_head or self.known_heads.get(self.port)
            if known is not None and self._begin_known(known, data):
                return
        elif self._ignores_input:
            self._give_way()
            return
        elif self._rest or not self._may_read():
            self._keep(self._rest[self._read_to :] + data, 0)
            return
        self._read(data)
        if len(data) >= LARGE_READ and not self.context.backlog.has_room():
            self._give_way()

    def _begin_known(self, known: HeadCache[_Known], data: bytes) -> bool:
        """Takes a request that is here as a whole, under a cached head."""
        found = known.match(data)
        if found is None:
            return False
        head, grant, rules = known.meaning
        length, start = found
        if length is None or rules is not self.context.rules_token or start + length != len(data):
            return False
        exchange = Exchange(self.context, self, head, grant)
        self.cycle = self._parsed = self.exchange = exchange
        exchange.start_whole(data[start:])
        return True

    def _read(self, data: bytes, at: int = 0) -> None:
        """Takes of `data` what one turn allows: at most the rest of one request, and not for long. What
        follows is not even parsed before the request is answered."""
        until = 0.0
        while at < len(data) and not self._ignores_input:
            if self._switched is not None:
                self._switched.receive(data[at:])
                return
            if self._left:
                piece = data[at : at + self._left]
                self._receive_counted(piece)
            else:
                # up to an empty line, where a head or a body in chunks may end
                piece = data[at : at + SLICE]
                end = (self._tail + piece).find(HEAD_END)
                if end >= 0:
                    piece = piece[: end + len(HEAD_END) - len(self._tail)]
                self._parse(piece)
            at += len(piece)
            if at == len(data) or self._is_whole or self._is_paused:
                break
            now = time.monotonic()
            until = until or now + TURN_S
            if now > until:
                break
        if self._pieces:
            self._pass_on()
        if at < len(data):
            self._keep(data, at)

    def _may_read(self) -> bool:
        if self._is_whole:
            return not self._awaits_client and (self.cycle is None or self.cycle.response_complete)
        return not self._is_paused

    def _keep(self, data: bytes, at: int) -> None:
        """What begins there, for later. Meanwhile nothing more is read."""
        if self._ignores_input or self.transport.is_closing():
            return
        self._rest, self._read_to, self._between = data, at, False
        self.flow.pause_reading()
        if self._may_read():
            self._take_turn()

    def _give_way(self) -> None:
        """The next read not before this client's turn."""
        self.flow.pause_reading()
        self._take_turn()

    def _take_turn(self) -> None:
        if not self._has_turn:
            self._has_turn = True
            self.context.backlog.add(self.on_turn)

    def on_turn(self) -> None:
        self._has_turn = False
        if self.transport.is_closing():
            return
        if self._may_read() and not self._ignores_input:
            rest, self._rest = self._rest, b""
            self._read(rest, self._read_to)
        if self._ignores_input or not (self._rest or self._is_paused):
            self.flow.resume_reading()

    def _parse(self, piece: bytes) -> None:
        self._overhead += len(piece)
        if self._overhead > HEAD_BYTES:
            large = errors.head_too_large(HEAD_BYTES, HEAD_FIELDS)
            self._turn_away(large if self._in_head else errors.trailer_too_large(HEAD_BYTES))
            return
        self._tail = piece[1 - len(HEAD_END) :]
        if self._is_whole:
            self._raw_head = piece
        elif self._in_head:
            self._raw_head += piece
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            if self._parsed is not None and self._parsed.switches:
                self._switched = self._parsed
                self._is_whole = False
            elif self._has_body_behind:
                self._read_body_behind()
            else:
                self._ignores_input = True  # the upgrade is declined, and what follows may not be HTTP
        except httptools.HttpParserError as error:
            self._on_malformed(error)

    def _read_body_behind(self) -> None:
        """An offer to upgrade is ignored (RFC 9110 7.8), but the parser stops behind the head that made it: a
        new one reads on, from a head with the same framing."""
        self.parser = httptools.HttpRequestParser(self)
        if not self._left:
            self._begins_again = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
            self._begins_again = False
        self._has_body_behind = False

    def _receive_counted(self, piece: bytes) -> None:
        """A piece of a body of known length: nothing in it needs the parser."""
        parsed = self._parsed
        self._left -= len(piece)
        self._is_whole = not self._left
        if self.cycle is not None and self.cycle.response_complete:
            self._give_way()
        elif parsed is None:
            super().on_body(piece)
        else:
            parsed.receive(piece)
        if self._is_whole:
            if parsed is None or not parsed.upload.complete:
                self.on_message_complete()
            self._overhead, self._tail = 0, b""
            self.parser = httptools.HttpRequestParser(self)  # the old one expects what it did not see
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's

    def _pass_on(self) -> None:
        """What the parser has found of a body in this turn, in one piece: its chunks may be tiny."""
        if self._parsed is not None:
            self._parsed.receive(b"".join(self._pieces))
        self._pieces.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self.context.connections.discard(self)
        self.flow.stop_watching()
        exchange, self.exchange = self.exchange, None
        if self._parsed is not None:
            self.cycle = self._parsed = None
        super().connection_lost(exc)
        self._rest = b""
        if exchange is not None:
            exchange.on_client_gone()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.exchange is not None:
            self.exchange.pause_response()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.exchange is not None:
            self.exchange.resume_response()
        elif self._awaits_client:
            self._awaits_client = False
            self._go_on()

    # httptools

    def on_message_begin(self) -> None:
        if self._begins_again:
            return
        self.url = b""
        self.headers = []
        self._lengths: list[bytes] = []
        self._in_head = True
        self._is_whole = self._between = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer
        name = name.lower()
        if name == b"content-length":
            self._lengths.append(value)
        else:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._begins_again:
            return
        self._in_head = False
        # taken whatever becomes of this head: cached for the next one, its bytes would get that one's grant
        raw, self._raw_head = self._raw_head, b""
        if self._ignores_input:
            return  # it came together with what ended the conversation
        context, parser, headers, lengths = self.context, self.parser, self.headers, self._lengths
        method, target = parser.get_method(), self.url
        url = httptools.parse_url(target)
        path = url.path or b""
        methods = routes.EXACT.get(path)
        if methods is None:
            path = routes.canonical(path or b"/")
            methods = routes.methods_of(path)
        if method != b"CONNECT" and (path[:1] == b"/" or url.schema is not None):
            # in this form, access, routes and uvicorn see the same
            self.url = path if url.query is None else path + b"?" + url.query
        verdict = self._decide(method, self.url)
        # not the parser's version, which may be that of another protocol
        version = raw.lstrip().partition(b"\r\n")[0].rpartition(b" HTTP/")[2].decode("latin-1")
        head = read_head(
            methods, method, self.url, version, headers, keep_alive=parser.should_keep_alive(), sent=target
        )
        self._left = int(lengths[0]) if len(lengths) == 1 and not head.chunked else 0
        has_body = bool(head.chunked or self._left)
        exchange: Exchange
        if (
            head.route is not None
            and head.route.websocket
            and not (head.refused or lengths)
            and isinstance(verdict, Grant)
        ):
            exchange = WebSocketExchange(context, self, head, verdict)
        else:
            exchange = Exchange(context, self, head, verdict, lengths)
            if exchange.refusal is None and isinstance(verdict, Grant):
                self._has_body_behind = head.upgrade and has_body
                if head.route is None:
                    self._parsed = None
                    self.begin_own(head, verdict, self.url, headers, lengths)
                    return
                # a page's request is also judged by its length, which differs under a cached head
                if head.cacheable and _BROWSER.isdisjoint(dict(headers)):
                    self._known_head = HeadCache.of(raw, _Known(head, verdict, context.rules_token))
                    if self._known_head is not None and verdict.key is None:
                        self.known_heads[self.port] = self._known_head
        self.cycle = self._parsed = self.exchange = exchange
        exchange.start()

    def _decide(self, method: bytes, target: bytes) -> Grant | Answer:
        """The client's access. The admin socket has its mode instead."""
        headers = self.headers
        if len(headers) > HEAD_FIELDS:
            return errors.head_too_large(HEAD_BYTES, HEAD_FIELDS)
        rules = self.context.policy.rules
        if rules is None or not self.port:
            return ANYBODY
        every = [*headers, *zip(repeat(b"content-length"), self._lengths)]
        return decide(method.decode("latin-1"), target.partition(b"?")[0], every, rules)

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        if self._parsed is not None:
            self._pieces.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._has_body_behind or (self._left and self._parsed is None):
            return
        self._is_whole, self._overhead, self._tail = True, 0, b""
        if self._pieces:
            self._pass_on()
        if self._parsed is None:
            super().on_message_complete()
        elif not self._parsed.upload.complete:
            self._parsed.receive_end()

    # memoria.proxy.exchange.context.Client

    @property
    def blocked(self) -> bool:
        return self.flow.write_paused

    @property
    def unsent(self) -> int:
        return self.flow.unsent

    def pause_reading(self) -> None:
        self._is_paused = True
        self.flow.pause_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        self._go_on()

    def on_answered(self) -> None:
        exchange, self.exchange = self.exchange, None
        self._is_paused = False
        if exchange is not None and not exchange.keep_alive:
            self._close(exchange)
            return
        self._answered += 1
        if self.transport.is_closing():
            return
        self._between = self._is_whole and not self._rest
        if self.flow.write_paused:
            self._awaits_client = True
            self.flow.pause_reading()
        elif self._rest or self.flow.read_paused:
            self._go_on()

    def on_cut(self) -> None:
        exchange, self.exchange = self.exchange, None
        assert exchange is not None
        if self.blocked or exchange.reply.ends_with_connection:
            self.flow.reset()
        else:
            self.transport.close()

    # memoria.proxy.exchange.context.ClientConnection

    def on_tick(self, now: float) -> None:
        if self.exchange is not None:
            self.exchange.on_tick(now)
        elif self._awaits_client or self.blocked or self.cycle is None or self.cycle.response_complete:
            self._still = self._still or Standstill()
            unsent, closing = self.flow.unsent, self.transport.is_closing()
            lasts = self._still.lasts(now, (self._in_head, self._answered, unsent, closing))
            if unsent:
                if lasts >= self.context.client_idle:
                    self.flow.reset()
            elif closing and lasts:
                self.transport.abort()  # all of it has arrived; TLS would wait for the client's farewell
            elif lasts >= (HEAD_S if self._in_head else self.timeout_keep_alive):
                self.transport.close()

    # The next request, or the end

    def on_response_complete(self) -> None:
        """Called by uvicorn after an answer of memoria's own."""
        if self._is_whole or self._left or self.transport.is_closing():
            self.on_answered()
        else:
            self._linger()  # a body in chunks may come for ever

    def _go_on(self) -> None:
        if self._is_whole and not self._rest:
            self.flow.resume_reading()
        elif self._may_read() and self.flow.read_paused:
            self._take_turn()  # of a body, there may be a large read

    def _on_malformed(self, error: httptools.HttpParserError) -> None:
        if self._ignores_input:
            return
        cause = error.__context__
        if cause is not None and not isinstance(cause, httptools.HttpParserError):
            logger.error("a request could not be read", exc_info=cause)
        self._turn_away(errors.malformed())

    def _turn_away(self, answer: Answer) -> None:
        """From now on, nothing from this client is read as HTTP."""
        self._ignores_input = True
        cycle: Exchange | RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self._answer(answer)
            self._linger()
        elif self._parsed is not None and not self._parsed.upload.complete:
            self._parsed.refuse(answer)
        elif cycle is self._own and cycle.more_body and self.disconnect_own():
            self._answer(answer)
            self._linger()
        else:
            cycle.keep_alive = False  # it is still being answered

    def _answer(self, answer: Answer) -> None:
        Reply(self.transport, new_request_id()).answer(answer.status, answer.body, answer.headers)

    def _close(self, exchange: Exchange) -> None:
        if exchange.upload.complete:
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        self._ignores_input = True
        self.flow.linger(self.loop)
