"""Several engines behind one route: the body's `model` decides."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from memoria.aio import Backlog, in_daemon_thread
from memoria.config.model import Filters, Hold, Limits, Runner
from memoria.proxy.downstream.connection import Downstream
from memoria.proxy.exchange.exchange import Exchange
from tests.integration.proxy_rig import JSON_OK, Asked, Rig, ScriptedEngine, on_uvloop, request, until

CHAT = b"/v1/chat/completions"


def two(folder: Path, **more: Limits) -> tuple[Rig, ScriptedEngine, ScriptedEngine]:
    a, b = ScriptedEngine(), ScriptedEngine()
    runners: dict[str, Runner] = {"a": "generate", "b": "generate"}
    return Rig(folder, runners=runners, limits=more.get("limits"), a=a, b=b), a, b


@pytest.mark.parametrize("model", ["b", "b-alias"])
@pytest.mark.parametrize("padding", [0, 200_000], ids=["small", "large"])
@on_uvloop
async def test_the_model_in_the_body_chooses_the_engine(tmp_path: Path, model: str, padding: int) -> None:
    body = json.dumps({"messages": "x" * padding, "model": model}).encode()
    rig, a, b = two(tmp_path)
    async with rig:
        assert (await rig.post(CHAT, body)).status == 200
    assert a.asked == []
    assert b.asked[0].body == body


@on_uvloop
async def test_the_model_field_of_a_form_chooses_the_engine(tmp_path: Path) -> None:
    audio = bytes(range(256)) * 1000
    form = (
        b'--xx\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + audio + b"\r\n"
        b'--xx\r\nContent-Disposition: form-data; name="model"\r\n\r\nb\r\n--xx--\r\n'
    )
    rig, a, b = two(tmp_path)
    async with rig:
        path = b"/v1/audio/transcriptions"
        assert (await rig.post(path, form, b"content-type: multipart/form-data; boundary=xx")).status == 200
    assert a.asked == []
    assert b.asked[0].body == form


@on_uvloop
async def test_an_unknown_model_is_a_404_that_lists_the_models(tmp_path: Path) -> None:
    rig, a, b = two(tmp_path)
    async with rig:
        response = await rig.post(CHAT, b'{"model":"\x1b[31mgpt"}'.replace(b"\x1b", b"\\u001b"))
    assert response.status == 404
    assert response.error == {
        "message": "The model `\x1b[31mgpt` does not exist. Models: `a`, `a-alias`, `b`, `b-alias`",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert b"\x1b" not in response.body
    assert a.asked + b.asked == []


@pytest.mark.parametrize("padding", [0, 200_000], ids=["small", "large"])
@on_uvloop
async def test_a_model_that_an_engine_got_at_run_time_is_looked_for_before_a_404(
    tmp_path: Path, padding: int
) -> None:
    rig, a, b = two(tmp_path)
    body = json.dumps({"messages": "x" * padding, "model": "sql-lora"}).encode()
    async with rig:
        rig.router.found = {"sql-lora": "b"}
        assert (await rig.post(CHAT, body)).status == 200
        assert (await rig.post(CHAT, body)).status == 200
        assert rig.router.looks == 1
        assert (await rig.post(CHAT, b'{"model":"other"}')).status == 404
        assert rig.router.looks == 2
    assert a.asked == []
    assert [asked.body for asked in b.asked] == [body, body]


@on_uvloop
async def test_a_client_may_leave_while_its_model_is_looked_for(tmp_path: Path) -> None:
    rig, a, b = two(tmp_path)
    async with rig:
        rig.router.looks_end = False
        client = await rig.client()
        await client.post(CHAT, b'{"model":"sql-lora"}')
        await until(lambda: rig.router.looks == 1)
        client.reset()
        await until(lambda: not rig.connections)
        rig.router.waiting[0]()
    assert a.asked + b.asked == []


@pytest.mark.parametrize("body", [b"{}", b'{"model":null}', b'{"model":""}', b'{"x":{"model":"a"}}'])
@on_uvloop
async def test_a_missing_model_is_a_400_that_lists_the_models(tmp_path: Path, body: bytes) -> None:
    rig, _, _ = two(tmp_path)
    async with rig:
        response = await rig.post(CHAT, body)
    assert (response.status, response.error["code"], response.error["param"]) == (
        400,
        "model_required",
        "model",
    )
    assert "`a`, `a-alias`, `b`, `b-alias`" in response.error["message"]


@pytest.mark.parametrize("body", [b"not json", b"[]", b'{"model":7}', b"\x1f\x8b\x08gzip", b"[" * 60000])
@on_uvloop
async def test_a_body_without_a_readable_model_is_a_400(tmp_path: Path, body: bytes) -> None:
    rig, _, _ = two(tmp_path)
    async with rig:
        response = await rig.post(CHAT, body)
    assert (response.status, response.error["code"]) == (400, "bad_request")


@on_uvloop
async def test_a_request_without_a_body_is_pointed_to_the_engines_own_port(tmp_path: Path) -> None:
    rig, _, _ = two(tmp_path)
    async with rig:
        client = await rig.client()
        await client.send(request(b"/v1/responses/resp_1", method=b"GET"))
        response = await client.response()
    assert response.status == 400
    assert "the engine's own port" in response.error["message"]


@on_uvloop
async def test_a_body_is_not_read_where_one_engine_serves_the_route(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, generation=engine) as rig:
        assert (await rig.post(CHAT, b"anything at all")).status == 200
        assert engine.asked[0].body == b"anything at all"


@on_uvloop
async def test_a_buffered_body_is_counted_too(tmp_path: Path) -> None:
    rig, a, b = two(tmp_path, limits=Limits(body_bytes=100))
    async with rig:
        client = await rig.client()
        await client.send(b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n")
        await client.send(b"c8\r\n%b\r\n" % (b"x" * 200))
        assert (await client.response()).status == 413
    assert a.asked + b.asked == []


@on_uvloop
async def test_a_route_that_no_engine_serves_is_a_404(tmp_path: Path) -> None:
    async with Rig(tmp_path, generation=ScriptedEngine()) as rig:
        response = await rig.post(b"/v1/embeddings")
    assert (response.status, response.error["code"]) == (404, "route_not_served")


@on_uvloop
async def test_a_wrong_method_is_a_405_with_allow(tmp_path: Path) -> None:
    async with Rig(tmp_path, generation=ScriptedEngine()) as rig:
        client = await rig.client()
        await client.send(request(CHAT, method=b"GET"))
        response = await client.response()
    assert (response.status, response.header(b"allow")) == (405, [b"POST"])
    assert response.error["code"] == "method_not_allowed"


@on_uvloop
async def test_the_router_is_asked_for_the_port_a_request_came_by(tmp_path: Path) -> None:
    async with Rig(tmp_path, generation=ScriptedEngine()) as rig:
        await rig.post(CHAT)
        assert rig.router.ports == [rig.port]


LARGE = 24 * 2**20
LONGEST_S = 0.02


@pytest.fixture
def callbacks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the relay's callbacks took, in time of their thread: the machine may be busy otherwise."""
    took: list[float] = []

    def timed(callback: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            began = time.thread_time()
            callback(*args)
            took.append(time.thread_time() - began)

        return call

    for owner, name in (
        (Downstream, "data_received"),
        (Backlog, "_next"),
        (Exchange, "on_connected"),
        (Exchange, "on_tick"),
    ):
        monkeypatch.setattr(owner, name, timed(getattr(owner, name)))
    return took


async def send_aside(port: int, request: bytes) -> int:
    """Sends from another thread; returns the answer's status."""

    def talk() -> int:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(request)
            return int(connection.recv(4096).split(b" ")[1])

    return await in_daemon_thread(talk)


def filled(start: bytes, text: bytes, end: bytes) -> bytes:
    return start + text * (LARGE // len(text)) + end


TAIL = b'"temperature":2,"model":"b"}'


@pytest.mark.parametrize(
    "filters", [None, Filters(("temperature",), {"top_p": 0.5})], ids=["plain", "filters"]
)
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(filled(b'{"prompt":"', b"text, ", b'",' + TAIL), id="text"),
        pytest.param(filled(b'{"input":["', b'a chunk of a text","', b'"],' + TAIL), id="texts"),
        pytest.param(filled(b'{"p":[', b"1,", b"0]," + TAIL), id="numbers"),
        pytest.param(filled(b"{", b'"":[],', TAIL), id="members"),
        pytest.param(filled(b'{"temperature":2,', b" ", b'"model":"b"}'), id="blanks"),
    ],
)
@on_uvloop
async def test_a_large_body_does_not_hold_up_the_others(
    tmp_path: Path, callbacks: list[float], body: bytes, filters: Filters | None
) -> None:
    received: list[bytes] = []

    async def take(asked: Asked) -> None:
        received.clear()
        left = int(asked.header(b"content-length")[0])
        while left:
            received.append(await asked.reader.read(65536))
            left -= len(received[-1])
        await asked.send(JSON_OK)

    a, b = ScriptedEngine(), ScriptedEngine(take)
    runners: dict[str, Runner] = {"a": "generate", "b": "generate"}
    by_engine = {} if filters is None else {"b": filters}
    async with Rig(tmp_path, runners=runners, hold=Hold(), filters=by_engine, a=a, b=b) as rig:
        longest = []
        for _ in range(3):  # a processor may be slow once, what takes long does so each time
            callbacks.clear()
            assert await send_aside(rig.port, request(CHAT, body)) == 200
            longest.append(max(callbacks))
            if longest[-1] < LONGEST_S:
                break
    if filters is None:
        assert b"".join(received) == body
    else:
        changed = body.replace(b'"temperature":2,', b"", 1).replace(b"{", b'{"top_p":0.5,', 1)
        assert b"".join(received) == changed
    assert min(longest) < LONGEST_S
