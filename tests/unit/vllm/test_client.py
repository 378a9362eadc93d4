"""Readiness, against a real server on a Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aioresponses import aioresponses

from memoria.config.model import Runner
from memoria.errors import UnavailableError
from memoria.vllm import client as vllm_client
from memoria.vllm.facts import TcpAddress, UnixAddress

Answer = Callable[[str], int]


class Server:
    """An engine that answers each path with the status that `answer` gives; -1 cuts the connection."""

    def __init__(self, path: Path) -> None:
        self.address = UnixAddress(str(path))
        self.answer: Answer = lambda _: 200
        self.paths: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.hangs_once = False

    async def serve(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        if self.hangs_once:
            self.hangs_once = False
            await asyncio.Event().wait()  # until the client has gone
        if request.method == "POST":
            self.bodies.append(await request.json() if request.can_read_body else {})
        status = self.answer(request.path)
        if status < 0:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=abs(status))


@pytest.fixture(autouse=True)
def _quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_client, "BETWEEN_TRIES", 0.001)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    served = Server(tmp_path / "engine.sock")
    runner = web.AppRunner(web.Application(), access_log=None, handler_cancellation=True)
    runner.app.router.add_route("*", "/{path:.*}", served.serve)
    await runner.setup()
    await web.UnixSite(runner, served.address.path).start()
    yield served
    await runner.cleanup()


async def answering(server: Server, runner: Runner = "generate", *, timeout: float = 10) -> list[str]:
    """The requests until the engine counted as ready."""
    async with asyncio.timeout(10):
        await vllm_client.until_answering(server.address, runner, "tiny", timeout=timeout)
    return server.paths


async def test_an_engine_is_ready_when_it_has_computed_something(server: Server) -> None:
    assert await answering(server) == ["/health", "/v1/completions"]
    assert server.bodies == [{"model": "tiny", "prompt": "a", "max_tokens": 1}]


async def test_a_pooling_engine_is_probed_with_an_embedding(server: Server) -> None:
    assert await answering(server, "pooling") == ["/health", "/v1/embeddings"]
    assert server.bodies == [{"model": "tiny", "input": "a"}]


async def test_nothing_is_computed_before_health_is_good(server: Server) -> None:
    statuses = iter([503, 500, -1, 200])
    server.answer = lambda path: next(statuses) if path == "/health" else 200
    assert await answering(server) == ["/health"] * 4 + ["/v1/completions"]


@pytest.mark.parametrize("status", [500, 503, -1])
async def test_a_first_request_that_fails_is_sent_again(server: Server, status: int) -> None:
    statuses = iter([status, status, 200])
    server.answer = lambda path: 200 if path == "/health" else next(statuses)
    assert await answering(server) == ["/health", *["/v1/completions"] * 3]


@pytest.mark.parametrize("status", [400, 404, 405])
async def test_what_a_model_does_not_serve_is_followed_by_the_next_question(
    server: Server, status: int
) -> None:
    server.answer = lambda path: 200 if path in ("/health", "/classify") else status
    assert await answering(server, "pooling") == ["/health", "/v1/embeddings", "/score", "/classify"]


async def test_a_healthy_engine_that_serves_no_question_is_believed(server: Server) -> None:
    server.answer = lambda path: 200 if path == "/health" else 404
    assert await answering(server) == ["/health", "/v1/completions", "/v1/chat/completions"]


async def test_a_health_check_that_hangs_is_given_up_and_tried_again(server: Server) -> None:
    server.hangs_once = True
    assert await answering(server, timeout=0.05) == ["/health", "/health", "/v1/completions"]


async def test_an_engine_that_does_not_listen_yet_is_waited_for(tmp_path: Path) -> None:
    address = UnixAddress(str(tmp_path / "absent.sock"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await vllm_client.until_answering(address, "generate", "tiny", timeout=1)


def test_an_address_gives_its_base_url() -> None:
    assert vllm_client.base_url(UnixAddress("/run/engine.sock")) == "http://engine"
    assert vllm_client.base_url(TcpAddress("127.0.0.1", 8100)) == "http://127.0.0.1:8100"


@pytest.mark.parametrize(
    "failure",
    [
        aiohttp.ClientPayloadError("cut off in its body"),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientOSError(104, "Connection reset by peer"),
        TimeoutError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_whatever_goes_wrong_on_the_way_is_no_answer_and_raises_nothing(failure: Exception) -> None:
    """What a server cannot be made to do at will, aiohttp's answers are replaced by."""
    address = TcpAddress("127.0.0.1", 8100)
    with aioresponses() as replaced:
        replaced.post(f"{address}/v1/completions", exception=failure)
        replaced.get(f"{address}/metrics", exception=failure)
        assert not await vllm_client.answers(address, "generate", "a-model")
        assert await vllm_client.progress(address, timeout=1) is None


async def test_the_sleep_level_is_a_query_and_every_status_counts(server: Server) -> None:
    server.answer = lambda path: 500 if path == "/sleep" else 200
    assert await vllm_client.fall_asleep(server.address, 2) == "/sleep: status 500"
    server.answer = lambda path: 500 if path == "/collective_rpc" else 200
    assert await vllm_client.wake_up(server.address, 2) == "/collective_rpc: status 500"
    assert server.paths == ["/sleep", "/wake_up", "/collective_rpc"]  # the KV cache stays asleep
    server.answer = lambda _: -1
    assert await vllm_client.wake_up(server.address, 1) == "/wake_up: no answer"


async def test_a_sample_of_an_engine_that_answers_nothing_fails(server: Server) -> None:
    server.answer = lambda _: 500
    with pytest.raises(UnavailableError, match="status 500"):
        await vllm_client.sample(server.address, "generate", "m")
    server.answer = lambda _: 404
    assert await vllm_client.sample(server.address, "pooling", "m") is None
    assert len(server.paths) == 5
