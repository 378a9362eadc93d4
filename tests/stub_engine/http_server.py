"""Just enough HTTP/1.1: keep-alive, Content-Length and chunked requests, and an eye on the client.

As under uvicorn, a client that closes (a half-close counts) cancels its request. One that sends the header
`x-stub-head-mib` is answered with a head of that size.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from tests.stub_engine.events import record


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Response:
    """`stream` is sent chunked, as server-sent events; `cut` sends half of the body and closes."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    stream: AsyncGenerator[bytes, None] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False

    @classmethod
    def of_json(cls, value: object, status: int = 200, *, cut: bool = False) -> Response:
        return cls(status, json.dumps(value, separators=(",", ":")).encode(), cut=cut)


Handler = Callable[[Request], Awaitable[Response]]


class Connection:
    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler, *, echo_ids: bool
    ) -> None:
        self._reader, self._writer, self._handler, self._echo_ids = reader, writer, handler, echo_ids
        self._early = b""  # the first byte of the next request, read by the watch

    async def serve(self) -> None:
        try:
            while (request := await self._request()) is not None:
                if not await self._answered(request):
                    break
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass
        finally:
            self._writer.close()

    async def _request(self) -> Request | None:
        head = self._early + await self._reader.readuntil(b"\r\n\r\n")
        self._early = b""
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
            if name
        }
        if headers.get("expect") == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join([chunk async for chunk in self._chunks()])
        else:
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        path, _, query = target.partition("?")
        return Request(method, path, query, headers, body)

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readuntil(b"\r\n")

    async def _answered(self, request: Request) -> bool:
        """Whether the connection can take another request."""
        answer = asyncio.ensure_future(self._answer(request))
        watch = asyncio.ensure_future(self._reader.read(1))
        await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() and watch.result() == b"":
            answer.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await answer
            record("aborted", request.headers.get("x-request-id", request.path))
            return False
        keep = await answer
        if not watch.done():
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
        elif self._early == b"":
            self._early = watch.result()
        return keep and request.headers.get("connection") != "close"

    async def _answer(self, request: Request) -> bool:
        response = await self._handler(request)
        headers = {"server": "uvicorn", "content-type": response.content_type, **response.headers}
        if self._echo_ids and "x-request-id" in request.headers:
            headers["x-request-id"] = request.headers["x-request-id"]
        if response.stream is not None:
            headers["transfer-encoding"] = "chunked"
        else:
            headers["content-length"] = str(len(response.body))
        reason = HTTPStatus(response.status).phrase
        lines = [
            f"HTTP/1.1 {response.status} {reason}",
            *(f"{name}: {text}" for name, text in headers.items()),
        ]
        self._writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n")
        for _ in range(int(request.headers.get("x-stub-head-mib", 0))):
            self._writer.write(b"x-pad: %b\r\n" % (b"x" * (1 << 20)))
            await self._writer.drain()
        self._writer.write(b"\r\n")
        if response.cut:
            self._writer.write(response.body[: len(response.body) // 2])
            return False
        if response.stream is None:
            self._writer.write(response.body)
            await self._writer.drain()
            return True
        async with contextlib.aclosing(response.stream) as stream:
            async for part in stream:
                self._writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await self._writer.drain()
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()
        return True
