"""Requests under the same head, which is parsed once: nothing may differ for that."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memoria.proxy.access.keys import KeyRing
from memoria.proxy.access.rules import AccessRules
from memoria.proxy.downstream import connection
from memoria.proxy.http.request import RequestHead, read_head
from memoria.proxy.routing.routes import Methods
from tests.integration.proxy_rig import Asked, Rig, ScriptedEngine, on_uvloop, request

PATH = b"/v1/embeddings"


async def echo(asked: Asked) -> None:
    await asked.read_body()
    await asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(asked.body), asked.body))


async def turns() -> None:
    """The proxy, in the same loop, has read what was sent; if it has not, the test shows a little less."""
    for _ in range(5):
        await asyncio.sleep(0)


def rules_with_key(folder: Path, name: str, key: bytes) -> AccessRules:
    file = folder / "keys"
    file.write_text(f"{name}: {key.decode()}\n")
    file.chmod(0o600)
    return AccessRules(hosts=frozenset((b"test",)), keys=KeyRing(file))


@on_uvloop
async def test_bodies_of_any_length_go_their_way(tmp_path: Path) -> None:
    engine = ScriptedEngine(echo)
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        for size in (2, 2, 9, 10, 0x3FFF, 200_000, 3, 2):
            body = b"x" * size
            await client.post(PATH, body)
            assert (await client.response()).body == body
        assert [record.request_bytes for record in rig.exchanges] == [2, 2, 9, 10, 0x3FFF, 200_000, 3, 2]
        assert len({record.request_id for record in rig.exchanges}) == 8


@on_uvloop
async def test_an_empty_body_is_declared_to_the_engine_every_time(tmp_path: Path) -> None:
    engine = ScriptedEngine(echo)
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        for _ in range(3):
            await client.send(b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\n\r\n")
            assert (await client.response()).status == 200
    assert [asked.header(b"content-length") for asked in engine.asked] == [[b"0"]] * 3


@on_uvloop
async def test_a_body_that_comes_in_pieces_under_a_known_head(tmp_path: Path) -> None:
    async with Rig(tmp_path, embedding=ScriptedEngine(echo)) as rig:
        client = await rig.client()
        for _ in range(2):
            await client.post(PATH, b"whole")
            assert (await client.response()).body == b"whole"
        whole = request(PATH, b"pieces")
        for cut in (len(whole) - 6, len(whole) - 3, 30, 1):
            await client.send(whole[:cut])
            await turns()
            await client.send(whole[cut:])
            assert (await client.response()).body == b"pieces"


@on_uvloop
async def test_two_requests_in_one_piece_under_a_known_head(tmp_path: Path) -> None:
    async with Rig(tmp_path, embedding=ScriptedEngine(echo)) as rig:
        client = await rig.client()
        await client.post(PATH, b"one")
        await client.response()
        await client.send(request(PATH, b"two") + request(PATH, b"three"))
        assert (await client.response()).body == b"two"
        assert (await client.response()).body == b"three"
        await client.post(PATH, b"four")
        assert (await client.response()).body == b"four"


@on_uvloop
async def test_a_request_behind_a_large_body(tmp_path: Path) -> None:
    """The rest of a large body is not parsed; what follows it is."""
    large = b"x" * 700_000
    async with Rig(tmp_path, embedding=ScriptedEngine(echo)) as rig:
        client = await rig.client()
        for _ in range(2):
            wire = request(PATH, large) + request(PATH, b"small") + request(PATH, large)
            sending = asyncio.create_task(client.send(wire))  # who does not read is not read from
            assert (await client.response()).body == large
            assert (await client.response()).body == b"small"
            assert (await client.response()).body == large
            await sending
        await client.send(request(PATH, large) + b"GARBAGE\r\n\r\n")
        assert (await client.response()).body == large
        assert (await client.response()).status == 400
        assert await client.closed() == b""


@pytest.mark.parametrize(
    "lengths",
    [(b"5", b"6"), (b"+5",), (b"5, 5",), (b"0x5",), (b"-5",)],
    ids=lambda lengths: b" ".join(lengths).decode(),
)
@on_uvloop
async def test_a_wrong_length_is_refused_after_right_ones(tmp_path: Path, lengths: tuple[bytes, ...]) -> None:
    engine = ScriptedEngine(echo)
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        for _ in range(2):
            await client.post(PATH, b"right")
            await client.response()
        head, _, _ = request(PATH, b"right").partition(b"content-length")
        fields = b"".join(b"content-length: %b\r\n" % length for length in lengths)
        await client.send(head + fields + b"\r\nright")
        assert (await client.response()).status == 400
        assert len(engine.asked) == 2


@on_uvloop
async def test_another_path_on_the_same_connection_is_another_request(tmp_path: Path) -> None:
    async with Rig(tmp_path, embedding=ScriptedEngine(echo)) as rig:
        client = await rig.client()
        await client.post(PATH, b"{}")
        assert (await client.response()).status == 200
        await client.post(b"/sleep", b"{}")
        assert (await client.response()).status == 404
        await client.post(PATH, b"{}")
        assert (await client.response()).status == 200


@on_uvloop
async def test_a_head_of_memorias_own_is_not_known_as_an_engines(tmp_path: Path) -> None:
    """Nor does it get the key that came with the engine's."""
    key = b"sk-0123456789abcdef"
    rules = rules_with_key(tmp_path, "ana", key)
    engine = ScriptedEngine()
    async with Rig(tmp_path, rules=rules, embedding=engine) as rig:
        client = await rig.client()
        for own in (request(b"/health", b"{}"), request(b"/livez", b"{}")):
            for _ in range(2):
                await client.send(own)
                assert (await client.response()).status == 404  # the rig has no such page
                await client.post(PATH, b"{}", b"x-api-key: " + key)
                assert (await client.response()).status == 200
            await client.send(own)
            assert (await client.response()).status == 404
        assert len(engine.asked) == 4


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The targets of the heads that were not known."""
    targets: list[bytes] = []

    def counted(
        methods: Methods | None, method: bytes, target: bytes, *rest: Any, **named: Any
    ) -> RequestHead:
        targets.append(target)
        return read_head(methods, method, target, *rest, **named)

    monkeypatch.setattr(connection, "read_head", counted)
    return targets


@on_uvloop
async def test_a_new_connection_may_begin_with_another_ones_head(tmp_path: Path, parsed: list[bytes]) -> None:
    """And gets an id and an answer of its own."""
    async with Rig(tmp_path, embedding=ScriptedEngine(echo)) as rig:
        for body in (b"1", b"22", b"4444"):
            client = await rig.client()
            await client.post(PATH, body)
            assert (await client.response()).body == body
        assert parsed == [PATH]
        other = await rig.client()
        await other.post(PATH, b"other", b"accept: */*")
        assert (await other.response()).body == b"other"
        assert parsed == [PATH, PATH]
        assert len({record.request_id for record in rig.exchanges}) == 4


@on_uvloop
async def test_a_head_with_a_key_is_known_on_its_own_connection_alone(
    tmp_path: Path, parsed: list[bytes]
) -> None:
    key = b"sk-0123456789abcdef"
    rules = rules_with_key(tmp_path, "ana", key)
    async with Rig(tmp_path, rules=rules, embedding=ScriptedEngine(echo)) as rig:
        for count in (1, 2):
            client = await rig.client()
            for _ in range(2):
                await client.post(PATH, b"{}", b"x-api-key: " + key)
                assert (await client.response()).status == 200
            assert len(parsed) == count


@on_uvloop
async def test_a_head_that_is_known_is_judged_anew_by_other_rules(tmp_path: Path) -> None:
    async with Rig(tmp_path, embedding=ScriptedEngine(echo)) as rig:
        before = await rig.client()
        await before.post(PATH, b"{}")
        assert (await before.response()).status == 200
        rules = rules_with_key(tmp_path, "ana", b"sk-0123456789abcdef")
        rig.context.replace_policy(replace(rig.context.policy, rules=rules))
        for client in (before, await rig.client()):
            await client.post(PATH, b"{}")
            assert (await client.response()).status == 401
