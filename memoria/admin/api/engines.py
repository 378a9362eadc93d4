"""Engines by name: start, stop, restart, and their logs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import islice

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from memoria.admin.api.feed import Feed
from memoria.admin.api.replies import flag, number
from memoria.admin.api.streams import Streams
from memoria.aio import in_daemon_thread
from memoria.engine.actor import EngineActor
from memoria.engine.log.reader import LogReader
from memoria.errors import UnavailableError
from memoria.logs import printable
from memoria.proxy.errors import Answer, Rejection
from memoria.supervisor.supervisor import Supervisor

LOOK = 0.2  # seconds between two looks at a log that is followed
MOST_LINES = 10_000
AT_ONCE = 500  # lines that are held in memory


def routes(supervisor: Supervisor, feed: Feed, streams: Streams) -> list[Route]:
    def actor(request: Request) -> EngineActor:
        try:
            return supervisor.actor(request.path_params["engine"])
        except UnavailableError as error:
            problem = error.problems[0]
            raise Rejection(Answer(404, f"{problem.what}; {problem.hint}", "engine_not_found")) from None

    async def steer(request: Request) -> JSONResponse:
        """The engine's state then, and the number of the latest event: what follows is in `/events`."""
        name, wish = actor(request).name, request.url.path.rpartition("/")[2]
        by, now = request.scope["asked_by"], flag(request, "now")
        state, before = supervisor.actors[name].snapshot.state, supervisor.journal.last
        try:
            if wish == "start":
                supervisor.start(name, by)
            elif wish == "stop":
                supervisor.stop(name, by, now=now)
            else:
                supervisor.restart(name, by, now=now)
        except UnavailableError as error:
            raise Rejection(Answer(503, error.problems[0].what, "stopping")) from None
        return JSONResponse({"engine": name, "asked": wish, "state": state.value, "event": before}, 202)

    async def files(_: Request) -> JSONResponse:
        found = [{"engine": name, "file": str(actor.log.path)} for name, actor in supervisor.actors.items()]
        return JSONResponse({"logs": found})

    async def logs(request: Request) -> Response:
        path, lines = actor(request).log.path, number(request, "lines", 100, most=MOST_LINES)
        follow = flag(request, "follow")

        async def text() -> AsyncIterator[str]:
            log = await in_daemon_thread(lambda: LogReader(path, lines=lines))
            async for some in _in_pieces(log.history(whole=not follow)):
                yield some
            while follow and feed.is_open:
                if log.has_more:
                    async for some in _in_pieces(log.new_lines()):
                        yield some
                await asyncio.sleep(LOOK)

        return streams.response(text(), "text/plain; charset=utf-8")

    return [
        *(
            Route(f"/engines/{{engine:path}}/{wish}", steer, methods=["POST"])
            for wish in ("start", "stop", "restart")
        ),
        Route("/logs", files, methods=["GET"]),
        Route("/logs/{engine:path}", logs, methods=["GET"]),
    ]


async def _in_pieces(lines: Iterator[str]) -> AsyncIterator[str]:
    """Read off the event loop, a part at a time."""

    def read() -> str:
        return "".join(f"{printable(line)}\n" for line in islice(lines, AT_ONCE))

    while text := await in_daemon_thread(read):
        yield text
