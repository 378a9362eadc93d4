"""What the proxy knows of the engines behind it, through two methods; it knows no supervisor and no
process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from memoria.config.model import Runner
from memoria.engine.facts import EngineAddress
from memoria.proxy.errors import Answer, Rejection


class Refusal(Rejection):
    """The request cannot go to its engine now. `retry_after` (seconds) becomes the Retry-After header.
    `ready_in`: the least number of seconds until it can, without intervention, so that it may wait that long;
    None: unknown."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        retry_after: int | None = None,
        ready_in: float | None = None,
    ) -> None:
        headers = () if retry_after is None else ((b"retry-after", b"%d" % retry_after),)
        super().__init__(Answer(status, message, code, headers=headers))
        self.status, self.message, self.code = status, message, code
        self.retry_after, self.ready_in = retry_after, ready_in


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that serves a route, with every model name it answers to (the main one first)."""

    engine: str
    models: tuple[str, ...]


class Entrance(Protocol):
    """One start of an engine that takes requests. Between `enter` and `leave`, each called once per request,
    the engine drains instead of stopping."""

    @property
    def address(self) -> EngineAddress: ...

    def enter(self) -> None: ...

    def leave(self) -> None: ...


class Router(Protocol):
    def candidates(self, runner: Runner | None, port: int) -> tuple[Candidate, ...]:
        """Engines of that runner (None: of any) reachable through the local `port` of a request: all of them
        on the main port, one on an engine's own port."""
        ...

    def entrance(self, engine: str) -> Entrance:
        """Raises `Refusal` (503), with the reason in its message, when the engine is not ready."""
        ...
