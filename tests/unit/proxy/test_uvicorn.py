"""What memoria uses of uvicorn beyond its documented API. pyproject.toml caps uvicorn at the minor version
that was tested; before the cap is raised, this says what is gone."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

ROOT = Path(__file__).parents[3]
CONNECTION = ROOT / "memoria/proxy/downstream/connection.py"
LANE = ROOT / "memoria/proxy/downstream/asgi_lane.py"
FLOW = ROOT / "memoria/proxy/downstream/flow.py"
SERVER = ROOT / "memoria/daemon/server.py"

# By class, with the classes of memoria that inherit from it.
USED: dict[str, frozenset[str]] = {
    "HttpToolsProtocol": frozenset(
        (
            *("client", "connections", "cycle", "flow", "headers", "loop", "parser", "server"),
            *("timeout_keep_alive", "transport", "url"),
            *("connection_made", "connection_lost", "data_received", "pause_writing", "resume_writing"),
            *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body"),
            *("on_message_complete", "on_response_complete", "_start_asgi_task"),
        )
    ),
    "RequestResponseCycle": frozenset(
        (
            *("default_headers", "disconnected", "keep_alive", "message_event", "more_body"),
            *("response_complete", "response_started"),
        )
    ),
    "FlowControl": frozenset(
        (
            *("_transport", "read_paused", "write_paused"),
            *("pause_reading", "resume_reading", "pause_writing", "resume_writing"),
        )
    ),
    "Server": frozenset(
        (
            *("config", "lifespan", "server_state", "servers", "should_exit"),
            *("capture_signals", "main_loop", "serve", "startup"),
        )
    ),
    "ServerState": frozenset(("connections", "tasks")),
    "Config": frozenset(("backlog", "http_protocol_class", "load", "timeout_graceful_shutdown")),
}
INHERITING = {
    "HttpToolsProtocol": [(CONNECTION, "Downstream"), (LANE, "AsgiLane")],
    "FlowControl": [(FLOW, "ClientFlow")],
    "Server": [(SERVER, "Server")],
}


async def _application(scope: Scope, receive: Receive, send: Send) -> None: ...


@contextmanager
def objects() -> Iterator[dict[str, Any]]:
    """One of each class, as uvicorn itself makes them. A server gets two attributes when it serves."""
    loop = asyncio.new_event_loop()
    config = uvicorn.Config(_application, ws="none", lifespan="off", log_config=None)
    config.load()
    server, state, flow = uvicorn.Server(config), ServerState(), FlowControl(cast(Any, None))
    server.lifespan, server.servers = config.lifespan_class(config), []
    cycle = RequestResponseCycle(
        scope=cast(Any, {}),
        transport=cast(Any, None),
        flow=flow,
        logger=cast(Any, None),
        access_logger=cast(Any, None),
        access_log=False,
        default_headers=[],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=True,
        on_response=lambda: None,
    )
    protocol = HttpToolsProtocol(config, state, {}, _loop=loop)
    protocol.on_message_begin()  # sets `url`
    yield {type(each).__name__: each for each in (protocol, cycle, flow, server, state, config)}
    loop.close()


@pytest.mark.parametrize("name", USED)
def test_uvicorn_has_what_memoria_uses_of_it(name: str) -> None:
    with objects() as found:
        missing = sorted(attribute for attribute in USED[name] if not hasattr(found[name], attribute))
    assert not missing, f"uvicorn {uvicorn.__version__}: {name} has no {', '.join(missing)}"


@pytest.mark.parametrize("name", INHERITING)
def test_the_table_names_all_that_is_inherited(name: str) -> None:
    with objects() as found:
        used = {
            attribute
            for path, heir in INHERITING[name]
            for attribute in _attributes(path, heir)
            if hasattr(found[name], attribute) and not hasattr(object, attribute)
        }
    assert used <= USED[name]


def _attributes(path: Path, name: str) -> set[str]:
    """What a class defines, and what it uses of itself."""
    (found,) = (
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == name
    )
    names: set[str] = set()
    for node in ast.walk(found):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"self", "super()"}:
            names.add(node.attr)
    return names
