"""What the proxy knows of the world behind it: two questions, and nothing of supervisors or processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from memoria.config.model import Runner
from memoria.engine.address import EngineAddress


class Refusal(Exception):
    """The request cannot go to an engine now. Answered as an OpenAI error body with `status`;
    `retry_after` (seconds) becomes the Retry-After header. `ready_in`: the least number of seconds until it
    can go there without anybody's help, so that it may be held that long; None: nobody knows."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        retry_after: int | None = None,
        ready_in: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.retry_after, self.ready_in = retry_after, ready_in


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that serves a route, with every model name it answers to (the first is the main one)."""

    engine: str
    models: tuple[str, ...]


class Entrance(Protocol):
    """One start of an engine that takes requests. Between `enter` and `leave`, called once each for a
    request, the engine drains instead of stopping."""

    @property
    def address(self) -> EngineAddress: ...

    def enter(self) -> None: ...

    def leave(self) -> None: ...


class Router(Protocol):
    def candidates(self, runner: Runner | None, port: int) -> tuple[Candidate, ...]:
        """Engines of that runner (None: of any) that are reachable through the local `port` a request came in
        by: all of them on the main port, one on an engine's own port."""
        ...

    def entrance(self, engine: str) -> Entrance:
        """Raises `Refusal` (503) when the engine is not ready, with the reason in its message."""
        ...
