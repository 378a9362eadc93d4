"""Connections that are kept between requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

from memoria.proxy.upstream import Pool, Sink, Upstream
from memoria.vllm.facts import UnixAddress
from tests.integration.proxy_rig import JSON_OK, ScriptedEngine, on_uvloop


class _Pausing:
    """A client that takes no more with the last piece of a response."""

    switches = False

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def on_response_head(self, upstream: Upstream) -> Sink:
        self._upstream = upstream
        return self

    def send(self, piece: bytes) -> None:
        self._upstream.pause_reading()

    def send_chunk(self, framed: bytes) -> None:
        self._upstream.pause_reading()

    def flush(self) -> None:
        pass

    def on_response_end(self, upstream: Upstream) -> None:
        self.ended.set()

    def on_upstream_lost(self, upstream: Upstream) -> None:
        raise AssertionError("the connection was lost")

    def on_upstream_writable(self) -> None:
        pass


@on_uvloop
async def test_a_client_that_lags_at_the_end_of_a_response_does_not_stall_the_next_request(
    tmp_path: Path,
) -> None:
    """Its connection to the engine goes on to somebody else, who may read."""
    engine, pool = ScriptedEngine(), Pool()
    address = await engine.listen(tmp_path / "engine.sock")
    assert isinstance(address, UnixAddress)
    loop = asyncio.get_running_loop()
    upstream: Upstream | None
    _, upstream = await loop.create_unix_connection(lambda: Upstream(address, pool), address.path)
    try:
        for _ in range(2):
            assert upstream is not None
            listener = _Pausing()
            upstream.begin(listener, b"GET /v1/models HTTP/1.1\r\nhost: engine\r\n\r\n")
            async with asyncio.timeout(5):
                await listener.ended.wait()
            assert upstream.received == len(JSON_OK.partition(b"\r\n\r\n")[2])
            pool.give_back(upstream)
            upstream = pool.take(address)
    finally:
        if upstream is not None:
            upstream.abort()
        pool.close()
        await engine.close()
