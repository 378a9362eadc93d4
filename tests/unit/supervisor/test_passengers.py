"""The supervisor's end of the passengers, over its real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from memoria.supervisor.passengers import LONGEST_HELLO, Passengers

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def passengers(tmp_path: Path) -> AsyncIterator[Passengers]:
    opened = Passengers(tmp_path / "gate.sock")
    await opened.open()
    yield opened
    await opened.close()


async def call(passengers: Passengers, text: bytes) -> Connection:
    reader, writer = await asyncio.open_unix_connection(passengers.path)
    writer.write(text)
    await writer.drain()
    return reader, writer


async def board(passengers: Passengers, role: str, start: str = "abc") -> Connection:
    hello = {"hello": role, "pid": 1, "engine": "generation", "start": start}
    return await call(passengers, json.dumps(hello).encode() + b"\n")


async def order(connection: Connection) -> object:
    """The next order; None at the end of the connection."""
    async with asyncio.timeout(10):
        line = await connection[0].readline()
    return json.loads(line) if line else None


async def test_an_engine_core_waits_at_the_gate_until_it_is_let_through(passengers: Passengers) -> None:
    boarding = passengers.expect("abc")
    core = await board(passengers, "engine_core")
    await boarding.at_gate.wait()
    boarding.let_through()
    assert await order(core) == {"go": True}
    core[1].close()


async def test_a_core_that_comes_after_the_permission_goes_on_at_once(passengers: Passengers) -> None:
    passengers.expect("abc").let_through()
    core = await board(passengers, "engine_core")
    assert await order(core) == {"go": True}
    core[1].close()


async def test_other_processes_are_seen_but_do_not_stand_at_the_gate(passengers: Passengers) -> None:
    boarding = passengers.expect("abc")
    server = await board(passengers, "api_server")
    await boarding.seen.wait()
    assert not boarding.at_gate.is_set()
    server[1].close()


async def test_permission_is_for_one_start_alone(passengers: Passengers) -> None:
    boarding, other = passengers.expect("abc"), passengers.expect("other")
    core, neighbour = await board(passengers, "engine_core"), await board(passengers, "engine_core", "other")
    await boarding.at_gate.wait()
    await other.at_gate.wait()
    boarding.let_through()
    other.ask_for_stacks()
    assert await order(core) == {"go": True}
    assert await order(neighbour) == {"dump": True}
    core[1].close()
    neighbour[1].close()


async def test_a_core_that_is_gone_is_not_written_to(passengers: Passengers) -> None:
    boarding = passengers.expect("abc")
    gone = await board(passengers, "engine_core")
    await boarding.at_gate.wait()
    gone[1].close()
    core = await board(passengers, "engine_core")
    boarding.let_through()
    assert await order(core) == {"go": True}
    core[1].close()


async def test_an_unknown_start_is_refused(passengers: Passengers) -> None:
    passengers.expect("abc")
    passengers.forget("abc")
    stranger = await board(passengers, "engine_core")
    assert await order(stranger) is None
    stranger[1].close()


@pytest.mark.parametrize(
    "hello",
    [
        b"\n",
        b"no json\n",
        b"\xff\n",
        b"[]\n",
        b"1\n",
        b'{"start": []}\n',
        b'{"start": "abc"}\n',
        b"x" * (LONGEST_HELLO + 1),
    ],
)
async def test_a_hello_that_is_none_is_turned_away(passengers: Passengers, hello: bytes) -> None:
    passengers.expect("abc")
    stranger = await call(passengers, hello)
    assert await order(stranger) is None
    stranger[1].close()


async def test_the_end_of_the_supervisor_is_the_end_of_every_connection(tmp_path: Path) -> None:
    passengers = Passengers(tmp_path / "gate.sock")
    await passengers.open()
    boarding = passengers.expect("abc")
    core = await board(passengers, "engine_core")
    await boarding.at_gate.wait()
    await passengers.close()
    assert await order(core) is None
    assert not passengers.path.exists()
    core[1].close()


async def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "gate.sock"
    path.touch()
    passengers = Passengers(path)
    await passengers.open()
    assert path.is_socket()
    await passengers.close()


async def test_closing_what_was_never_opened_does_nothing(tmp_path: Path) -> None:
    await Passengers(tmp_path / "gate.sock").close()
