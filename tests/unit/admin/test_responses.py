"""Responses: endless ones, a limited number at once, and JSON."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message, Scope

from memoria.admin.api import responses
from memoria.admin.api.responses import Json, Streams
from memoria.proxy.errors import Rejection

SCOPE: Scope = {"type": "http", "method": "GET", "headers": [], "server": ("127.0.0.1", 8200)}
OWNERS: Scope = {**SCOPE, "server": ("/run/memoria/admin.sock", None)}


async def for_ever(end: asyncio.Event) -> AsyncIterator[str]:
    yield "first\n"
    await end.wait()


async def test_only_so_many_streams_are_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "MAX_STREAMS", 2)
    streams, end = Streams(), asyncio.Event()
    begun: asyncio.Queue[Message] = asyncio.Queue()

    async def receive() -> Message:
        await end.wait()
        return {"type": "http.disconnect"}

    def open_one(scope: Scope = SCOPE) -> asyncio.Task[None]:
        answer = streams.response(for_ever(end), "text/plain")
        return asyncio.create_task(answer(scope, receive, begun.put))

    opened = [open_one(), open_one()]
    for _ in range(4):  # a head and a first line each
        await asyncio.wait_for(begun.get(), 10)
    with pytest.raises(Rejection) as refused:
        await open_one()
    assert (refused.value.answer.status, refused.value.answer.code) == (503, "too_many_streams")
    opened.append(open_one(OWNERS))
    await asyncio.wait_for(begun.get(), 10)
    end.set()
    await asyncio.gather(*opened)
    assert streams.open == {"http": 0, "socket": 0}
    await open_one()


def test_a_path_that_is_not_utf_8_can_be_sent() -> None:
    name = os.fsdecode(b"logs-\xff")
    assert json.loads(bytes(Json({"file": name}).body)) == {"file": name}
