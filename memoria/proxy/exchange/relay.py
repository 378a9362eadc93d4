"""What every request's way through the proxy is decided by: which engine, and what a failure means."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from memoria.config.model import Filters, Limits, Timeouts
from memoria.proxy import errors
from memoria.proxy.access.rules import ANYBODY, AccessRules, Grant, Preflight, decide
from memoria.proxy.admission.admission import Admission
from memoria.proxy.downstream.disconnect_monitor import LOOK_S, DisconnectMonitor
from memoria.proxy.downstream.watch import Watch
from memoria.proxy.errors import Answer, Rejection
from memoria.proxy.exchange.record import RequestRecord
from memoria.proxy.exchange.upload import Upload
from memoria.proxy.http.headers import Header
from memoria.proxy.http.request import RequestHead
from memoria.proxy.router import Router
from memoria.proxy.routing import model_field
from memoria.proxy.routing.routes import Route
from memoria.proxy.upstream.connection import Upstream
from memoria.proxy.upstream.pool import Pool


class Failure(StrEnum):
    UNREACHABLE = "the engine does not accept connections"
    UNREAD = "the engine closed the connection without having read the request"
    LOST = "the engine closed the connection before its response was complete"
    GARBLED = "the engine's response is not valid HTTP"
    SILENT = "the engine sent nothing for too long"
    UPLOAD_STALLED = "the client stopped sending"
    READER_STALLED = "the client stopped reading"
    CUT = "the engine is being stopped"


@dataclass(frozen=True, slots=True)
class Protected:
    """The engine whose streams are watched for the latency guard; `observe` is told the seconds between two
    reads of one stream."""

    engine: str
    observe: Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Policy:
    """All that a configuration decides about requests. `rules` None: no Host, Origin or key is checked.
    `filters`: by engine."""

    limits: Limits
    timeouts: Timeouts
    rules: AccessRules | None = None
    filters: Mapping[str, Filters] = field(default_factory=dict)
    protected: Protected | None = None


class Answering(Protocol):
    """A request that is being answered."""

    def cut(self, engine: str) -> None:
        """Ends it, if it is this engine that answers."""

    def awaited(self, engine: str) -> Upstream | None:
        """The connection on which this engine's next byte is awaited, by a client that takes it."""


class Connection(Protocol):
    """A client's, as the relay sees it."""

    def on_tick(self, now: float) -> None: ...

    @property
    def exchange(self) -> Answering | None:
        """What is being answered there."""


class Relay:
    """The policy and the means that all requests share.

    `patience`: seconds for which a client may neither send nor take a byte. `on_done` is called once for
    every request that was begun.
    """

    def __init__(
        self,
        router: Router,
        pool: Pool,
        *,
        admission: Admission,
        policy: Policy,
        on_done: Callable[[RequestRecord], None] | None = None,
        patience: float = 60.0,
    ) -> None:
        self.router, self.pool, self.admission = router, pool, admission
        self.on_done = on_done
        self.patience = patience
        self.watch: Watch[Connection] = Watch(1.0)
        self.presence: Watch[DisconnectMonitor] = Watch(LOOK_S)
        self.replace_policy(policy)

    def replace_policy(self, policy: Policy) -> None:
        """Another policy, for every request that is not decided yet; connections stay."""
        self.policy, rules = policy, policy.rules
        for ring in () if rules is None else (rules.keys, rules.admin_keys):
            if ring is not None:
                ring.on_change = self.forget_verdicts
        self.forget_verdicts()
        self.watch.interval = min(1.0, policy.timeouts.idle / 4, self.patience / 4)

    def resolve(self, head: RequestHead, route: Route, port: int, upload: Upload) -> str | None:
        """The engine that serves this route here; where there are several, the one that has the model. None:
        the body decides, and is not complete. Raises `Rejection`."""
        candidates = self.router.candidates(route.runner, port)
        if len(candidates) == 1:
            return candidates[0].engine
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
            model = self._model_in_body(head, route, upload)
            if not model:
                raise Rejection(errors.model_required(models))
        for candidate in candidates:
            if model in candidate.models:
                return candidate.engine
        raise Rejection(errors.model_not_found(model, models))

    def _model_in_body(self, head: RequestHead, route: Route, upload: Upload) -> str | None:
        body = b"".join(upload.pieces or ())
        try:
            if route.model_in == "json":
                return model_field.from_json(body)
            return model_field.from_form(body, head.content_type)
        except ValueError as error:
            raise Rejection(errors.bad_request(f"The body cannot be read: {error}")) from None

    def decide(self, method: bytes, path: bytes, headers: Sequence[Header]) -> Grant | Answer:
        """Whether this client may ask at all; an answer where it may not, or need not (CORS)."""
        rules = self.policy.rules
        if rules is None:
            return ANYBODY
        verdict = decide(method.decode("latin-1"), path, headers, rules)
        if isinstance(verdict, Preflight):
            return errors.preflight(verdict.headers)
        return verdict.answer if isinstance(verdict, Rejection) else verdict

    def forget_verdicts(self) -> None:
        """The rules, or the keys, are others than before."""
        self.rules_token = object()

    def cut(self, engine: str) -> None:
        """Ends every request that this engine is answering: with the reason, and so that a begun response is
        not taken for a whole one. An engine that is told to stop would end its streams as if they were."""
        for connection in self.watch:
            if connection.exchange is not None:
                connection.exchange.cut(engine)

    def filters_of(self, route: Route, engine: str) -> Filters | None:
        """What is to be changed in this body; then all of it is needed first."""
        return self.policy.filters.get(engine) if route.model_in == "json" else None

    def explain(self, failure: Failure, engine: str) -> Answer:
        """What the client is told."""
        match failure:
            case Failure.UNREACHABLE:
                return errors.engine_unreachable(engine)
            case Failure.GARBLED:
                return errors.engine_garbled(engine)
            case Failure.SILENT:
                return errors.engine_silent(engine, self.policy.timeouts.idle)
            case Failure.UPLOAD_STALLED | Failure.READER_STALLED:
                return errors.upload_stalled(self.patience)
            case Failure.UNREAD | Failure.LOST:
                return errors.engine_lost(engine)
            case Failure.CUT:
                return errors.engine_stopping(engine)


def may_repeat(failure: Failure, before: Collection[Failure], route: Route) -> bool:
    """Whether a request of which nothing was answered may be sent once more: either the engine cannot have
    begun it, or beginning it twice changes nothing. `before` is why earlier tries failed: nothing counts
    twice, so that a request that ends its engine does not end the next one, too, and so on."""
    if failure in before:
        return False
    if failure in {Failure.UNREACHABLE, Failure.UNREAD}:
        return True
    return route.pure and failure in {Failure.LOST, Failure.CUT}
