"""The proxy on real sockets: a scripted engine behind it, uvicorn around it, a raw-socket client before it.

Everything runs in one uvloop, as in the daemon.
"""

from __future__ import annotations

import asyncio
import functools
import json
import socket
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self

import uvicorn
import uvloop
from starlette.types import ASGIApp

from memoria.admin.api.responses import unknown_route
from memoria.config.model import Filters, Hold, Limits, Runner, Timeouts
from memoria.daemon.tls import ServerContext
from memoria.proxy.access.rules import AccessRules
from memoria.proxy.admission.admission import Admission
from memoria.proxy.downstream.connection import protocol_for
from memoria.proxy.errors import Refusal
from memoria.proxy.exchange.context import Policy, Protected, ProxyContext
from memoria.proxy.exchange.record import RequestRecord
from memoria.proxy.router import Candidate, Entrance
from memoria.proxy.upstream import Pool
from memoria.vllm.facts import EngineAddress, TcpAddress, UnixAddress
from tests.certificates import certificate, trusting

P = ParamSpec("P")


HANGS_AFTER_S = 30.0


def on_uvloop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs the test in a uvloop; one that hangs fails instead."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        uvloop.run(asyncio.wait_for(test(*args, **kwargs), HANGS_AFTER_S))

    return run


async def until(condition: Callable[[], bool]) -> None:
    """For what tells nobody when it happens."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.01)


@dataclass
class Asked:
    """One request as the engine saw it."""

    engine: ScriptedEngine
    connection: int
    head: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    gone: asyncio.Event
    body: bytes = b""

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    def header(self, name: bytes) -> list[bytes]:
        lines = self.head.split(b"\r\n")[1:-2]
        return [value.strip() for key, _, value in (line.partition(b":") for line in lines) if key == name]

    async def read_body(self) -> None:
        if self.header(b"transfer-encoding"):
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                self.body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
        elif length := self.header(b"content-length"):
            self.body = await self.reader.readexactly(int(length[0]))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


Script = Callable[[Asked], Awaitable[None]]


class EngineProtocol(asyncio.StreamReaderProtocol):
    def __init__(self, engine: ScriptedEngine) -> None:
        super().__init__(asyncio.StreamReader(), engine.serve)
        self.gone = asyncio.Event()
        self.reads = 0

    def data_received(self, data: bytes) -> None:
        self.reads += 1
        super().data_received(data)

    def eof_received(self) -> bool:
        self.gone.set()
        super().eof_received()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        super().connection_lost(exc)


JSON_OK = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{"ok":true}'


async def answer_ok(asked: Asked) -> None:
    await asked.read_body()
    await asked.send(JSON_OK)


class ScriptedEngine:
    """Answers each request by a script; the last script stays for all that follow."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts) or [answer_ok]
        self.asked: list[Asked] = []
        self.arrivals: asyncio.Queue[Asked] = asyncio.Queue()
        self.connections = 0
        self.failures: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, where: Path | None) -> EngineAddress:
        loop = asyncio.get_running_loop()
        if where is not None:
            self._server = await loop.create_unix_server(lambda: EngineProtocol(self), str(where))
            return UnixAddress(str(where))
        self._server = await loop.create_server(lambda: EngineProtocol(self), "127.0.0.1", 0)
        return TcpAddress("127.0.0.1", self._server.sockets[0].getsockname()[1])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        protocol = writer.transport.get_protocol()
        assert isinstance(protocol, EngineProtocol)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                asked = Asked(self, number, head, reader, writer, protocol.gone)
                self.asked.append(asked)
                self.arrivals.put_nowait(asked)
                script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                await script(asked)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        except Exception as error:
            self.failures.append(error)
        finally:
            writer.close()
            self._tasks.discard(task)

    async def close(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert not self.failures


class _Entrance:
    def __init__(self, router: FakeRouter, address: EngineAddress) -> None:
        self._router, self.address = router, address

    @property
    def works_until(self) -> float:
        return self._router.works_until

    def enter(self) -> None:
        self._router.admitted += 1
        self._router.leases += 1

    def leave(self) -> None:
        self._router.leases -= 1


@dataclass
class FakeRouter:
    engines: dict[str, tuple[Runner, tuple[str, ...], EngineAddress]] = field(default_factory=dict)
    refusal: Refusal | None = None
    works_until: float = 0.0
    leases: int = 0
    admitted: int = 0
    ports: list[int] = field(default_factory=list)
    found: dict[str, str] = field(default_factory=dict)  # models that a look finds, and their engines
    looks: int = 0
    looks_end: bool = True
    waiting: list[Callable[[], None]] = field(default_factory=list)

    def candidates(self, runner: Runner | None, port: int) -> tuple[Candidate, ...]:
        self.ports.append(port)
        return tuple(
            Candidate(name, models)
            for name, (kind, models, _) in self.engines.items()
            if runner in {None, kind}
        )

    def look_for_models(self, done: Callable[[], None]) -> bool:
        self.looks += 1
        for model, engine in self.found.items():
            runner, models, address = self.engines[engine]
            self.engines[engine] = runner, (*models, model), address
        self.waiting.append(done)
        if self.looks_end:
            asyncio.get_running_loop().call_soon(done)
        return bool(self.found) or not self.looks_end

    def entrance(self, engine: str) -> Entrance:
        if self.refusal is not None:
            raise self.refusal
        return _Entrance(self, self.engines[engine][2])


@dataclass
class Response:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    ended: bool  # by its own framing; False: the connection closed before

    def header(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]

    @property
    def error(self) -> dict[str, Any]:
        error = json.loads(self.body)["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert isinstance(error, dict)
        return error


class Client:
    """A connection that sends what it is told and reads what comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def post(self, path: bytes, body: bytes, *headers: bytes) -> None:
        await self.send(request(path, body, *headers))

    async def head(self) -> Response:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[:-2]
        headers = [(name.lower(), value.strip()) for name, _, value in (x.partition(b":") for x in lines[1:])]
        return Response(int(lines[0].split(b" ")[1]), headers, b"", ended=False)

    async def response(self) -> Response:
        response = await self.head()
        try:
            if response.header(b"transfer-encoding"):
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    response.body += await self.reader.readexactly(size)
                    await self.reader.readexactly(2)
                await self.reader.readexactly(2)
            elif length := response.header(b"content-length"):
                response.body = await self.reader.readexactly(int(length[0]))
            response.ended = True
        except asyncio.IncompleteReadError as cut:
            response.body += cut.partial
        return response

    async def closed(self) -> bytes:
        """What comes until the proxy closes."""
        return await self.reader.read()

    def reset(self) -> None:
        self.writer.transport.abort()


def request(path: bytes, body: bytes = b"", *headers: bytes, method: bytes = b"POST") -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method, path), b"host: test", *headers]
    if body:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Rig:
    """`async with Rig(tmp_path, embedding=ScriptedEngine(), generation=ScriptedEngine(...)) as rig`."""

    def __init__(
        self,
        folder: Path,
        *,
        tcp: bool = False,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        client_idle: float = 60.0,
        idle_s: float = 60.0,
        runners: dict[str, Runner] | None = None,
        max_requests: int = 1000,
        hold: Hold | None = None,
        rules: AccessRules | None = None,
        filters: dict[str, Filters] | None = None,
        protect: tuple[str, Callable[[float], None]] | None = None,
        tell_after: float | None = None,
        app: ASGIApp = unknown_route,
        host: str = "127.0.0.1",
        tls: bool = False,
        **engines: ScriptedEngine,
    ) -> None:
        self._folder, self._tcp, self._engines = folder, tcp, engines
        self._app, self.host = app, host
        self.tls = trusting() if tls else None
        self._runners: dict[str, Runner] = {"embedding": "pooling", **(runners or {})}
        self.router = FakeRouter()
        self.pool = Pool(idle_s=idle_s)
        self.exchanges: list[RequestRecord] = []
        self.ended: asyncio.Queue[RequestRecord] = asyncio.Queue()
        self.admission = Admission(self.router, dict.fromkeys(engines, max_requests), hold or Hold(seconds=0))
        self.context = ProxyContext(
            self.router,
            self.pool,
            admission=self.admission,
            policy=Policy(
                limits or Limits(),
                timeouts or Timeouts(),
                rules=rules,
                filters=filters or {},
                protected=Protected(*protect) if protect else None,
                tell_after={} if tell_after is None else dict.fromkeys(engines, tell_after),
            ),
            on_done=self._done,
            client_idle=client_idle,
        )
        self._clients: list[Client] = []

    def _done(self, record: RequestRecord) -> None:
        self.exchanges.append(record)
        self.ended.put_nowait(record)

    async def __aenter__(self) -> Self:
        for name, engine in self._engines.items():
            address = await engine.listen(None if self._tcp else self._folder / f"{name}.sock")
            self.router.engines[name] = (
                self._runners.get(name, "generate"),
                (name, f"{name}-alias"),
                address,
            )
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.create_server((self.host, 0), family=family, backlog=512)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            http=protocol_for(self.context),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
        )
        config.load()
        if self.tls is not None:
            config.ssl = ServerContext.make(certificate(), most=1000)
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=[listener])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang_up()
        for server in self._server.servers:
            server.close()
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        await asyncio.gather(*self._server.server_state.tasks)
        self.pool.close()
        for engine in self._engines.values():
            await engine.close()
        if kind is None:
            assert self.router.leases == 0, "a lease was not given back"

    @property
    def connections(self) -> set[Any]:
        """Of clients that the proxy has."""
        return self._server.server_state.connections

    async def client(self) -> Client:
        return self.add(Client(*await asyncio.open_connection(self.host, self.port, ssl=self.tls)))

    def hang_up(self) -> None:
        """On all clients that there are."""
        for client in self._clients:
            client.reset()
        self._clients.clear()

    def add(self, client: Client) -> Client:
        """It is reset at the end."""
        self._clients.append(client)
        return client

    async def post(self, path: bytes, body: bytes = b"{}", *headers: bytes) -> Response:
        client = await self.client()
        await client.post(path, body, *headers)
        return await client.response()
