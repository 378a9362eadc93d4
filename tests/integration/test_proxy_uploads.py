"""Bodies that come slowly: what they may hold up, and what not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from memoria.config.model import Hold
from memoria.proxy.exchange import exchange
from tests.integration.proxy_rig import Asked, Rig, ScriptedEngine, answer_ok, on_uvloop

CHAT = b"/v1/chat/completions"


async def hang(asked: Asked) -> None:
    await asked.read_body()
    await asked.gone.wait()


@pytest.mark.parametrize("here", [0, 4, 60_000])
@on_uvloop
async def test_an_unfinished_upload_does_not_hold_up_others(tmp_path: Path, here: int) -> None:
    async with Rig(tmp_path, max_requests=1, generation=ScriptedEngine()) as rig:
        slow = await rig.client()
        await slow.send(
            b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 100000\r\n\r\n" + b"x" * here
        )
        assert [(await rig.post(CHAT)).status for _ in range(3)] == [200, 200, 200]
        await slow.send(b"x" * (100_000 - here))
        assert (await slow.response()).status == 200


@pytest.mark.parametrize("pace", ["stalls", "crawls"])
@on_uvloop
async def test_a_large_upload_that_is_too_slow_gives_its_place_to_those_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pace: str
) -> None:
    async def crawl() -> None:
        while True:
            await slow.send(b"x")
            await asyncio.sleep(0.02)

    monkeypatch.setattr(exchange, "GRACE_S", 0.1)
    async with Rig(
        tmp_path, max_requests=1, hold=Hold(), client_idle=2.0, generation=ScriptedEngine(hang, answer_ok)
    ) as rig:
        slow = await rig.client()
        await slow.send(
            b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 100000\r\n\r\n" + b"x" * 70_000
        )
        crawling = asyncio.create_task(crawl()) if pace == "crawls" else None
        assert rig.admission.load("generation").waiting == 0
        assert (await rig.post(CHAT)).status == 200
        assert (await slow.response()).error["code"] == "upload_stalled"
        if crawling is not None:
            crawling.cancel()
