"""What the proxy knows of the engines behind it, through two methods; it knows no supervisor and no
process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from memoria.config.model import Runner
from memoria.vllm.facts import EngineAddress


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

    @property
    def works_until(self) -> float:
        """`time.monotonic()` up to which the engine's core counts as making progress; 0: not known."""

    def enter(self) -> None: ...

    def leave(self) -> None: ...


class Router(Protocol):
    def candidates(self, runner: Runner | None, port: int) -> tuple[Candidate, ...]:
        """Engines of that runner (None: of any) reachable through the local `port` of a request: all of them
        on the main port, one on an engine's own port."""
        ...

    def look_for_models(self, done: Callable[[], None]) -> bool:
        """Reads the engines' own lists for names that `candidates` does not have yet, then calls `done`.
        False: that has just been done."""
        ...

    def entrance(self, engine: str) -> Entrance:
        """Raises `Refusal` (503), with the reason in its message, when the engine is not ready."""
        ...
