"""Whether an engine sends anything: told to whoever watches it for a hang, every few seconds.

Nothing is counted while bytes pass. What was read on each connection is there already, and is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from memoria.proxy.exchange.relay import Answering, Connection


class Flows:
    """`connections` are those that are open now; `answered` counts the requests that an engine has answered
    to the end."""

    def __init__(self, connections: Iterable[Connection], answered: Callable[[str], int]) -> None:
        self._connections, self._answered = connections, answered
        self._reads: dict[str, Mapping[Answering, int]] = {}
        self._ended: dict[str, int] = {}
        self._heard: dict[str, int] = {}

    def of(self, engine: str) -> tuple[int, int]:
        """How many requests wait for the engine, and a number that is another one whenever something has come
        from it since the last time."""
        answering = [c.exchange for c in self._connections if c.exchange is not None]
        awaited = ((exchange, exchange.awaited(engine)) for exchange in answering)
        reads = {exchange: upstream.reads for exchange, upstream in awaited if upstream is not None}
        ended = self._answered(engine)
        before = self._reads.get(engine, {})
        moved = ended != self._ended.get(engine, 0) or any(
            count and count != before.get(exchange) for exchange, count in reads.items()
        )
        self._reads[engine], self._ended[engine] = reads, ended
        self._heard[engine] = self._heard.get(engine, 0) + moved
        return len(reads), self._heard[engine]
