"""What all exchanges share: the policy in force, the means to reach engines, what a failure means, and the
clock for everything that may fall silent."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from functools import partial
from typing import Generic, Protocol, TypeVar

import msgspec

from memoria.config.model import Filters, Limits, Timeouts
from memoria.proxy import errors
from memoria.proxy.access.rules import AccessRules
from memoria.proxy.admission.admission import Admission, Waiting
from memoria.proxy.errors import Answer, Rejection
from memoria.proxy.exchange.record import RequestRecord
from memoria.proxy.http.request import RequestHead, Upload
from memoria.proxy.router import Candidate, Router
from memoria.proxy.routing.bodies import apply_filters, apply_to_large, model_in_form, model_in_json
from memoria.proxy.routing.routes import Route
from memoria.proxy.routing.scan import FormScan, JsonScan, Scan
from memoria.proxy.upstream import Pool, Sink, Upstream

logger = logging.getLogger(__name__)

ANNOUNCED = 2  # first reads of a stream that may carry no token: vLLM sends a preamble before the prefill
SLICE = 500  # connections whose clock is looked at in one callback
DISCONNECT_S = 0.2  # seconds between two looks at a client that is not read from


class Failure(StrEnum):
    UNREACHABLE = "the engine does not accept connections"
    UNREAD = "the engine closed the connection without reading the request"
    LOST = "the engine closed the connection before its response was complete"
    GARBLED = "the engine's response is not valid HTTP, or its head is too large"
    SILENT = "the engine sent nothing for too long"
    UPLOAD_STALLED = "the client stopped sending"
    READER_STALLED = "the client stopped reading"
    CUT = "the engine is being stopped"


class Repeat(Enum):
    """When a request without any answer may be sent once more."""

    ALWAYS = auto()  # the engine cannot have begun it
    IF_PURE = auto()  # beginning it twice changes nothing
    NEVER = auto()


@dataclass(frozen=True, slots=True)
class Consequence:
    """`answer` by the engine's name; None: the client reads nothing, its connection is cut. `doubt`: an
    engine that has just ended looks like this."""

    answer: Callable[[str, ProxyContext], Answer] | None
    repeat: Repeat = Repeat.NEVER
    doubt: bool = False


CONSEQUENCES: Mapping[Failure, Consequence] = {
    Failure.UNREACHABLE: Consequence(
        lambda engine, _: errors.engine_unreachable(engine), Repeat.ALWAYS, doubt=True
    ),
    Failure.UNREAD: Consequence(lambda engine, _: errors.engine_lost(engine), Repeat.ALWAYS),
    Failure.LOST: Consequence(lambda engine, _: errors.engine_lost(engine), Repeat.IF_PURE, doubt=True),
    Failure.GARBLED: Consequence(lambda engine, _: errors.engine_garbled(engine)),
    Failure.SILENT: Consequence(
        lambda engine, context: errors.engine_silent(engine, context.policy.timeouts.idle)
    ),
    Failure.UPLOAD_STALLED: Consequence(lambda _, context: errors.upload_stalled(context.client_idle)),
    Failure.READER_STALLED: Consequence(None),
    Failure.CUT: Consequence(lambda engine, _: errors.engine_stopping(engine), Repeat.IF_PURE),
}


def may_repeat(failure: Failure, before: Collection[Failure], route: Route) -> bool:
    """Whether a request without any answer may be sent once more. `before`: the failures of earlier tries.
    None counts twice, so a request that crashes its engine does not crash the next one, and so on."""
    repeat = CONSEQUENCES[failure].repeat
    return failure not in before and (repeat is Repeat.ALWAYS or (repeat is Repeat.IF_PURE and route.pure))


@dataclass(frozen=True, slots=True)
class Protected:
    """The engine whose streams the latency guard watches; `observe` takes the seconds between two reads of
    one stream."""

    engine: str
    observe: Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that a configuration decides about requests. `rules` None: Host, Origin and key are not
    checked. `filters`: by engine. `tell_after`: seconds after which a stream that waits for the engine gets
    comments, by engine."""

    limits: Limits
    timeouts: Timeouts
    rules: AccessRules | None = None
    filters: Mapping[str, Filters] = field(default_factory=dict)
    protected: Protected | None = None
    tell_after: Mapping[str, float] = field(default_factory=dict)


class Watched(Protocol):
    def on_tick(self, now: float) -> None:
        """`now` is `time.monotonic()`."""


Kind = TypeVar("Kind", bound=Watched)


class Watch(Generic[Kind]):
    """One coarse timer for everything that may fall silent, instead of a timer per request: calls `on_tick`
    of all that was added, every `interval` seconds. Silence is measured from tick to tick: a limit is kept to
    within two intervals, and a byte that passes costs no more than a flag."""

    def __init__(self, interval: float) -> None:
        self.interval = interval  # a change counts from the next tick on
        self._watched: set[Kind] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Kind]:
        """What is watched now; additions and removals meanwhile are safe."""
        return iter(tuple(self._watched))

    def add(self, watched: Kind) -> None:
        self._watched.add(watched)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.interval, self._tick)

    def discard(self, watched: Kind) -> None:
        self._watched.discard(watched)

    def _tick(self) -> None:
        self._check(tuple(self._watched), 0)

    def _check(self, watched: Sequence[Kind], first: int) -> None:
        """Those from `first` on, in slices: a tick over thousands of connections must not hold up others."""
        now, loop = time.monotonic(), asyncio.get_running_loop()
        for one in watched[first : first + SLICE]:
            if one in self._watched:
                try:
                    one.on_tick(now)
                except Exception:  # must not stop the others' clock
                    logger.exception("the timeouts of %r could not be checked", one)
        if first + SLICE < len(watched):
            loop.call_soon(self._check, watched, first + SLICE)
            return
        self._timer = None
        if self._watched:
            self._timer = loop.call_later(self.interval, self._tick)


class Standstill:
    """How long something has looked the same."""

    __slots__ = ("_seen", "_since")

    def __init__(self) -> None:
        self._seen: object = None
        self._since = 0.0

    def lasts(self, now: float, seen: object) -> float:
        """Seconds since `seen` was another."""
        if seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since


class InFlight(Protocol):
    """A request that is being answered."""

    def cut(self, engine: str) -> None:
        """Ends it, if this engine answers it."""

    def awaited_from(self, engine: str) -> Upstream | None:
        """The connection on which this engine's next byte is due, for a client that would take it."""


class ClientConnection(Protocol):
    def on_tick(self, now: float) -> None: ...

    @property
    def exchange(self) -> InFlight | None:
        """What is being answered on it."""


class Client(Protocol):
    """The connection that a request came by, as its exchange sees it: `port` is the local one, `peer` the
    client's address."""

    transport: asyncio.Transport
    port: int
    peer: str

    @property
    def blocked(self) -> bool:
        """It was sent more than it takes."""

    @property
    def unsent(self) -> int:
        """Bytes that it has not taken; changes with each that it takes."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def on_answered(self) -> None:
        """The response is complete."""

    def on_cut(self) -> None:
        """The response will never be complete, which must show."""


class ProxyContext:
    """The policy and the means that all requests share.

    `client_idle`: seconds for which a client may neither send nor take a byte. `on_done` is called once for
    every request that was begun. `rules_token` is replaced when the access rules or the keys change: a grant
    is good for as long as the token it was given under.
    """

    policy: Policy
    client_idle: float

    def __init__(
        self,
        router: Router,
        pool: Pool,
        *,
        admission: Admission,
        policy: Policy,
        on_done: Callable[[RequestRecord], None] | None = None,
        client_idle: float = 60.0,
    ) -> None:
        self.router, self.pool, self.admission = router, pool, admission
        self.on_done = on_done
        self.client_idle = client_idle
        self.connections: Watch[ClientConnection] = Watch(1.0)
        self.backlog = pool.backlog
        self.paused_clients: Watch[Watched] = Watch(DISCONNECT_S)
        self.replace_policy(policy)

    def replace_policy(self, policy: Policy) -> None:
        """Another policy, for every request that is not decided yet; connections stay."""
        self.policy, rules = policy, policy.rules
        for ring in () if rules is None else (rules.keys, rules.admin_keys):
            if ring is not None:
                ring.on_change = self.forget_verdicts
        self.forget_verdicts()
        self.connections.interval = min(1.0, (policy.timeouts.idle or 4.0) / 4, self.client_idle / 4)

    def tells(self, waiting: Waiting, head: RequestHead, upload: Upload) -> bool:
        """Whether a request that waits gets a comment now: only a stream has a place for it."""
        after, now = self.policy.tell_after.get(waiting.engine.name, math.inf), time.monotonic()
        if now - waiting.told_at < after or waiting.streams is False:
            return False
        waiting.told_at = now
        if waiting.streams is None:
            waiting.streams = not head.http_1_0 and upload.complete and _wants_stream(upload)
        return waiting.streams

    def forget_verdicts(self) -> None:
        """The access rules or the keys have changed."""
        self.rules_token = object()

    def cut(self, engine: str) -> None:
        """Ends every request that this engine is answering: with the reason, and so that a begun response
        cannot pass for a complete one. An engine that is stopped would end its streams as if they were."""
        for connection in self.connections:
            if connection.exchange is not None:
                connection.exchange.cut(engine)


class _Body(msgspec.Struct):
    stream: bool | None = None


def _wants_stream(upload: Upload) -> bool:
    """By its JSON body; what is none of the kind is the engine's to judge."""
    try:
        return msgspec.json.decode(b"".join(upload.pieces or ()), type=_Body).stream is True
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False


def engine_with_model(
    candidates: Sequence[Candidate], head: RequestHead, route: Route, upload: Upload
) -> str | None:
    """The engine, of several or none that serve the route, with the request's model. None: the body decides,
    and is not complete. Raises `Rejection` (400, 404)."""
    if not candidates:
        raise Rejection(errors.not_served(route.path))
    models = [model for candidate in candidates for model in candidate.models]
    if route.model_in == "query":
        model = head.model
        if not model:
            raise Rejection(errors.model_unnamed(models))
    elif not upload.complete:
        return None
    else:
        model = _model_in_body(head, route, upload)
        if not model:
            raise Rejection(errors.model_required(models))
    for candidate in candidates:
        if model in candidate.models:
            return candidate.engine
    raise Rejection(errors.model_not_found(model, models))


def begin_scan(head: RequestHead, policy: Policy, upload: Upload) -> Scan | None:
    """The scan of a large body, with all that came; None where only the query matters. Raises `Rejection`
    (400)."""
    if head.route is None or head.route.model_in == "query":
        return None
    fields = {name for wanted in policy.filters.values() for name in (*wanted.strip, *wanted.set)}
    begin = (
        partial(FormScan, head.content_type)
        if head.route.model_in == "multipart"
        else partial(JsonScan, fields)
    )
    if isinstance(upload.scan, JsonScan) and not upload.scan.names.issuperset(fields):  # a reload since
        fields |= upload.scan.names
        upload.scan_again()
    try:
        return upload.scan_more(begin)
    except ValueError as error:
        raise Rejection(errors.bad_request(f"The body cannot be read: {error}")) from None


def _model_in_body(head: RequestHead, route: Route, upload: Upload) -> str | None:
    try:
        if upload.scan is not None:
            return upload.scan.model()
        body = b"".join(upload.pieces or ())
        if route.model_in == "json":
            return model_in_json(body)
        return model_in_form(body, head.content_type)
    except ValueError as error:
        raise Rejection(errors.bad_request(f"The body cannot be read: {error}")) from None


class InterTokenTimer:
    """A stream's sink that reports the seconds between two reads to `observe`, however many events a read
    brings: what the latency guard sees of one stream. Left out are the stream's first reads, and gaps in
    which reading was paused for the client's sake."""

    __slots__ = ("_before", "_observe", "_pauses", "_reads", "_seen", "_sink", "_upstream", "flush")

    def __init__(self, upstream: Upstream, sink: Sink, observe: Callable[[float], None]) -> None:
        self._upstream, self._sink, self._observe = upstream, sink, observe
        self.flush = sink.flush
        self._before = 0.0
        self._pauses = self._reads = self._seen = 0

    def send(self, piece: bytes) -> None:
        self._note_read()
        self._sink.send(piece)

    def send_chunk(self, framed: bytes) -> None:
        self._note_read()
        self._sink.send_chunk(framed)

    def _note_read(self) -> None:
        upstream = self._upstream
        if upstream.reads != self._reads:
            now = time.monotonic()
            if self._seen >= ANNOUNCED and upstream.pauses == self._pauses:
                self._observe(now - self._before)
            self._seen += 1
            self._reads, self._pauses, self._before = upstream.reads, upstream.pauses, now


def filter_body(upload: Upload, wanted: Filters) -> None:
    """Applies an engine's filters to a complete body. Raises `Rejection` (400)."""
    pieces = [*map(bytes, upload.pieces or ())]
    try:
        if isinstance(upload.scan, JsonScan):
            upload.replace(apply_to_large(pieces, upload.scan, wanted))
        else:
            upload.replace([apply_filters(b"".join(pieces), wanted)])
    except ValueError as error:
        raise Rejection(errors.bad_request(f"The body cannot be read: {error}")) from None


class Progress:
    """Whether an engine sends anything, for hang detection, every few seconds. Nothing is counted while bytes
    pass: the number of reads on each connection exists anyway, and is compared.

    `connections`: those open now; `answered`: the number of requests that an engine has answered
    completely."""

    def __init__(self, connections: Iterable[ClientConnection], answered: Callable[[str], int]) -> None:
        self._connections, self._answered = connections, answered
        self._reads: dict[str, Mapping[InFlight, int]] = {}
        self._ended: dict[str, int] = {}
        self._heard: dict[str, int] = {}

    def of(self, engine: str) -> tuple[int, int]:
        """How many requests await the engine's next byte, and a number that grows whenever something came
        from it since the last call."""
        in_flight = [c.exchange for c in self._connections if c.exchange is not None]
        awaited = ((exchange, exchange.awaited_from(engine)) for exchange in in_flight)
        reads = {exchange: upstream.reads for exchange, upstream in awaited if upstream is not None}
        ended = self._answered(engine)
        before = self._reads.get(engine, {})
        moved = ended != self._ended.get(engine, 0) or any(
            count and count != before.get(exchange) for exchange, count in reads.items()
        )
        self._reads[engine], self._ended[engine] = reads, ended
        self._heard[engine] = self._heard.get(engine, 0) + moved
        return len(reads), self._heard[engine]
