"""The connections to engines that wait for their next request."""

from __future__ import annotations

import asyncio

from memoria.engine.address import EngineAddress, UnixAddress
from memoria.proxy.upstream.connection import Upstream

SWEEPS = 4  # in the time that a connection may be idle


class Pool:
    """Idle connections by address, the latest used first: the others grow old and are dropped after `idle_s`
    seconds (vLLM itself must keep them longer, VLLM_HTTP_TIMEOUT_KEEP_ALIVE), or up to a quarter sooner."""

    def __init__(self, *, idle_s: float = 60.0) -> None:
        self._idle_s = idle_s
        self._idle: dict[EngineAddress, list[Upstream]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._now = 0.0  # loop time of the latest sweep: cheaper than the time of every request's end

    def __repr__(self) -> str:
        counts = ", ".join(f"{address}: {len(idle)}" for address, idle in self._idle.items() if idle)
        return f"<Pool idle {{{counts}}}>"

    def take(self, address: EngineAddress) -> Upstream | None:
        idle = self._idle.get(address)
        return idle.pop() if idle else None

    async def connect(self, address: EngineAddress, timeout: float) -> Upstream:
        """A new connection, within `timeout` seconds. Raises OSError (TimeoutError is one)."""
        loop = asyncio.get_running_loop()
        idle = self._idle.setdefault(address, [])
        if isinstance(address, UnixAddress):  # done or refused at once (connect(2), EAGAIN): nothing to time
            _, upstream = await loop.create_unix_connection(lambda: Upstream(address, idle), address.path)
            return upstream
        async with asyncio.timeout(timeout):
            _, upstream = await loop.create_connection(
                lambda: Upstream(address, idle), address.host, address.port
            )
        return upstream

    def give(self, upstream: Upstream) -> None:
        """Takes back a connection whose response was read to its end; one that cannot be used again is
        closed."""
        if not upstream.reusable:
            upstream.abort()
            return
        if self._sweep is None:
            self._sweep_later()
        upstream.rest(self._now)

    def forget(self, address: EngineAddress) -> None:
        """The engine at this address is gone: its idle connections are closed."""
        for upstream in tuple(self._idle.pop(address, ())):
            upstream.abort()

    def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for address in list(self._idle):
            self.forget(address)

    def _sweep_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._now = loop.time()
        self._sweep = loop.call_later(self._idle_s / SWEEPS, self._drop_old)

    def _drop_old(self) -> None:
        self._sweep = None
        if any(self._idle.values()):
            self._sweep_later()
        for idle in self._idle.values():
            while idle and idle[0].idle_since <= self._now - self._idle_s:
                idle.pop(0).abort()
