"""A request can take several ways through memoria, and the same rules hold on all of them.

To an engine: its head parsed, or known again by its bytes. To memoria itself: by ASGI. Every recorded request
goes each way, and what comes of it is compared: the answer's kind, whether the connection stays, and what the
engine was asked.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from memoria.proxy.access.rules import AccessRules
from tests.faults import corpus
from tests.integration.proxy_rig import (
    Asked,
    Client,
    Response,
    Rig,
    ScriptedEngine,
    on_uvloop,
    request,
    until,
)

REFUSED, SERVED = corpus.requests("refused"), corpus.requests("served")
PATH, OWN = b"/v1/embeddings", b"/nowhere"
PLAIN = request(PATH, b'{"input":1}', b"content-type: application/json")

refused = pytest.mark.parametrize("wire", REFUSED.values(), ids=REFUSED.keys())
served = pytest.mark.parametrize("wire", SERVED.values(), ids=SERVED.keys())


@dataclass(frozen=True, slots=True)
class Outcome:
    """`named`: the connection header. `stays`: another request on the connection is answered."""

    status: int
    code: str | None
    named: tuple[bytes, ...]
    stays: bool


async def outcome(client: Client, response: Response) -> Outcome:
    code = response.error["code"] if response.status >= 400 else None
    named = tuple(response.header(b"connection"))
    try:
        await client.send(PLAIN)
        stays = (await asyncio.wait_for(client.response(), 5)).status == 200
    except (ConnectionError, asyncio.IncompleteReadError):
        stays = False
    return Outcome(response.status, code, named, stays)


def asked_for(asked: Asked) -> tuple[bytes, list[bytes], bytes]:
    lines = asked.head.split(b"\r\n")
    own = [line for line in lines[1:] if not line.startswith(b"x-request-id: ")]
    return lines[0], own, asked.body


@served
@on_uvloop
async def test_a_head_that_is_known_again_means_what_it_meant(tmp_path: Path, wire: bytes) -> None:
    """The same request three times on one connection, each time as the first on a connection of its own."""
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        for number in range(3):
            fresh = await rig.client()
            await fresh.send(wire)
            expected = await fresh.response()
            assert expected.status == 200
            await client.send(wire)
            response = await client.response()
            assert (response.status, response.body) == (expected.status, expected.body)
            assert response.header(b"connection") == expected.header(b"connection")
            first, second = engine.asked[-2:]
            assert asked_for(first) == asked_for(second)
            assert len(engine.asked) == 2 * (number + 1)
            if response.header(b"connection") == [b"close"]:
                assert await client.closed() == b""
                break


@refused
@on_uvloop
async def test_what_is_refused_is_refused_after_known_heads_too(tmp_path: Path, wire: bytes) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, client_idle=0.2, embedding=engine) as rig:
        outcomes = []
        for before in (0, 3):
            client = await rig.client()
            for _ in range(before):
                await client.send(PLAIN)
                assert (await client.response()).status == 200
            await client.send(wire)
            outcomes.append(await outcome(client, await client.response()))
        assert outcomes[0] == outcomes[1]
        assert (outcomes[0].status, outcomes[0].stays) == (400, False)
        assert [asked.line for asked in engine.asked if asked.body] == [b"POST /v1/embeddings HTTP/1.1"] * 3


@refused
@on_uvloop
async def test_what_an_engine_is_not_asked_memoria_is_not_asked_either(tmp_path: Path, wire: bytes) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, client_idle=0.2, embedding=engine) as rig:
        outcomes = []
        for sent in (wire, wire.replace(PATH, OWN, 1)):
            client = await rig.client()
            await client.send(sent)
            outcomes.append(await outcome(client, await client.response()))
        assert outcomes[0] == outcomes[1]
        assert (outcomes[0].status, outcomes[0].stays) == (400, False)
        assert not [asked for asked in engine.asked if asked.body]


@served
@on_uvloop
async def test_memorias_own_pages_keep_a_connection_as_engines_do(tmp_path: Path, wire: bytes) -> None:
    async with Rig(tmp_path, client_idle=0.2, embedding=ScriptedEngine()) as rig:
        outcomes = []
        for sent in (wire, wire.replace(PATH, OWN, 1)):
            client = await rig.client()
            await client.send(sent)
            outcomes.append(await outcome(client, await client.response()))
        by_engine, by_memoria = outcomes
        assert (by_engine.status, by_memoria.status) == (200, 404)
        assert (by_engine.named, by_engine.stays) == (by_memoria.named, by_memoria.stays)


@pytest.mark.parametrize("path", [PATH, OWN])
@on_uvloop
async def test_what_follows_a_declined_upgrade_is_not_read_as_a_request(tmp_path: Path, path: bytes) -> None:
    """It may be any protocol's; here it holds a request within a request's body."""
    engine = ScriptedEngine()
    inner = request(b"/v1/score", b"{}")
    async with Rig(tmp_path, embedding=engine) as rig:
        for together in (True, False):
            client = await rig.client()
            ask = b"GET " + path + b" HTTP/1.1\r\nhost: t\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
            outer = b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n" % len(inner)
            await client.send(ask + outer if together else ask)
            assert (await client.response()).status in {404, 405}
            try:
                await client.send((b"" if together else outer) + inner)
                assert await client.closed() == b""
            except ConnectionError:
                pass
    assert engine.asked == []


ways = pytest.mark.parametrize(("path", "fine"), [(PATH, 200), (OWN, 404)], ids=["engine", "memoria"])


@pytest.mark.parametrize("path", [PATH, OWN])
@pytest.mark.parametrize(
    "fields",
    [
        [b"x-%d: %b" % (n, b"a" * 40) for n in range(300)],
        [b"x-a: " + b"a" * 60_000, b"x-b: " + b"a" * 60_000],
        [b"x-a: " + b"a" * 70_000],
    ],
    ids=["many fields", "large fields", "a large field"],
)
@pytest.mark.parametrize("cut", [0, 30_000])
@on_uvloop
async def test_a_head_is_not_larger_than_its_limits_however_it_comes(
    tmp_path: Path, path: bytes, fields: list[bytes], cut: int
) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        wire = request(path, b"{}", *fields)
        for piece in filter(None, (wire[:cut], wire[cut:])):
            await client.send(piece)
            await asyncio.sleep(0.01)
        response = await client.response()
        assert (response.status, response.error["code"]) == (431, "head_too_large")
        assert await client.closed() == b""
    assert engine.asked == []


@ways
@on_uvloop
async def test_a_head_within_its_limits_may_come_with_much_behind_it(
    tmp_path: Path, path: bytes, fine: int
) -> None:
    fields = [b"x-%d: %b" % (n, b"a" * 200) for n in range(250)]
    async with Rig(tmp_path, embedding=ScriptedEngine()) as rig:
        assert (await rig.post(path, b"x" * 300_000, *fields)).status == fine


@pytest.mark.parametrize("cut", [10, 100, 50_000])
@ways
@on_uvloop
async def test_a_read_that_ends_a_head_may_bring_much_of_the_body(
    tmp_path: Path, path: bytes, fine: int, cut: int
) -> None:
    fields = [b"x-%d: %b" % (n, b"a" * 200) for n in range(250)]
    wire = request(path, b"x" * 300_000, *fields)
    async with Rig(tmp_path, embedding=ScriptedEngine()) as rig:
        client = await rig.client()
        await until(lambda: len(rig.connections) == 1)
        (connection,) = rig.connections
        for piece in (wire[:cut], wire[cut:]):  # whatever the kernel makes of them: two reads
            connection.data_received(piece)
        assert (await client.response()).status == fine


@on_uvloop
async def test_a_page_cannot_send_more_under_a_head_that_was_let_through_empty(tmp_path: Path) -> None:
    """Without a type its body must be empty, and the number is what a known head leaves open."""
    engine = ScriptedEngine()
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\norigin: http://t\r\ncontent-length: %d\r\n\r\n"
    async with Rig(tmp_path, rules=AccessRules(hosts=frozenset((b"t",))), embedding=engine) as rig:
        client = await rig.client()
        for _ in range(2):
            await client.send(head % 0)
            assert (await client.response()).status == 200
        await client.send(head % 2 + b"{}")
        assert (await client.response()).status == 415
    assert [asked.body for asked in engine.asked] == [b"", b""]


@on_uvloop
async def test_an_http_1_0_client_that_expects_a_continue_gets_none(tmp_path: Path) -> None:
    """RFC 9110 10.1.1: it would take it for the answer."""
    async with Rig(tmp_path, embedding=ScriptedEngine()) as rig:
        client = await rig.client()
        await client.send(
            b"POST /v1/embeddings HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        )
        await asyncio.sleep(0.05)
        await client.send(b"{}")
        assert (await client.response()).status == 200


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """As a page that follows something: it ends when its client leaves."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


@pytest.mark.parametrize("behind", [b"", request(PATH, b"{}"), request(OWN, b"{}")])
@on_uvloop
async def test_memorias_own_pages_learn_that_their_client_has_left(
    tmp_path: Path, behind: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Also with a request behind theirs."""
    async with Rig(tmp_path, app=endless, embedding=ScriptedEngine()) as rig:
        client = await rig.client()
        await client.send(request(b"/events", method=b"GET") + behind)
        await client.head()
        tasks = set(rig._server.server_state.tasks)
        assert len(tasks) == 1
        client.reset()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert [record for record in caplog.records if record.exc_info] == []


@on_uvloop
async def test_answers_stay_in_order_when_a_client_is_behind_with_reading(tmp_path: Path) -> None:
    """Whichever way each of them takes."""
    size = 300_000

    async def large(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))

    async with Rig(tmp_path, embedding=ScriptedEngine(large)) as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire = (request(PATH, b"{}") + request(OWN, b"{}") + request(PATH, method=b"GET")) * 30
        sending = asyncio.create_task(client.send(wire))
        await asyncio.sleep(0.2)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        statuses = [(await client.response()).status for _ in range(90)]
        await sending
    assert statuses == [200, 404, 405] * 30
