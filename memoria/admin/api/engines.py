"""Engines by name: start, stop, restart, wake, sleep, logs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Literal, cast, get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from memoria.admin.api.feed import Feed
from memoria.admin.api.responses import Json, Streams, flag, number
from memoria.aio import in_daemon_thread
from memoria.engine.actor import EngineActor
from memoria.engine.log import LogReader
from memoria.errors import UnavailableError
from memoria.logs import printable
from memoria.proxy.errors import Answer, Rejection
from memoria.supervisor.supervisor import ResidentError, Supervisor

FOLLOW_INTERVAL = 0.2  # seconds between two reads of a followed log
MAX_LINES = 10_000
MAX_WAKE = 7 * 24 * 3600  # seconds
CHUNK = 500  # lines in memory at once

Action = Literal["start", "stop", "restart", "wake", "sleep"]


class Accepted(TypedDict):
    engine: str
    asked: Action
    state: str
    """At the time of the request."""
    event: int
    """Number of the latest event at that time: `/events?after=` it shows what follows."""


class LogFile(TypedDict):
    engine: str
    file: str
    """Older files beside it end with .1, .2, ..."""


class LogFiles(TypedDict):
    logs: list[LogFile]
    """One for each engine, in the order of the configuration."""


def routes(supervisor: Supervisor, feed: Feed, streams: Streams) -> list[Route]:
    def actor(request: Request) -> EngineActor:
        try:
            return supervisor.actor(request.path_params["engine"])
        except UnavailableError as error:
            problem = error.problems[0]
            raise Rejection(Answer(404, f"{problem.what}; {problem.hint}", "engine_not_found")) from None

    async def control(request: Request) -> Json:
        name, action = actor(request).name, cast(Action, request.url.path.rpartition("/")[2])
        by, now = request.scope["sender"], flag(request, "now")
        seconds = number(request, "for", 0, most=MAX_WAKE)
        state, before = supervisor.actors[name].snapshot.state, supervisor.journal.last
        try:
            if action == "start":
                supervisor.start(name, by)
            elif action == "stop":
                supervisor.stop(name, by, now=now)
            elif action == "restart":
                supervisor.restart(name, by, now=now)
            elif action == "wake":
                supervisor.wake(name, by, seconds=seconds)
            else:
                supervisor.sleep(name, by)
        except ResidentError as error:
            raise Rejection(Answer(409, error.problems[0].what, "engine_resident")) from None
        except UnavailableError as error:
            raise Rejection(Answer(503, error.problems[0].what, "stopping")) from None
        accepted: Accepted = {"engine": name, "asked": action, "state": state.value, "event": before}
        return Json(accepted, 202)

    async def files(_: Request) -> Json:
        files = [LogFile(engine=name, file=str(actor.log.path)) for name, actor in supervisor.actors.items()]
        return Json(LogFiles(logs=files))

    async def logs(request: Request) -> Response:
        path, lines = actor(request).log.path, number(request, "lines", 100, most=MAX_LINES)
        follow = flag(request, "follow")

        async def text() -> AsyncIterator[str]:
            log = await in_daemon_thread(lambda: LogReader(path, lines=lines))
            async for chunk in _in_chunks(log.history(whole=not follow)):
                yield chunk
            while follow and feed.is_open:
                async for chunk in _in_chunks(log.new_lines()):
                    yield chunk
                await asyncio.sleep(FOLLOW_INTERVAL)

        return streams.response(text(), "text/plain; charset=utf-8")

    return [
        *(
            Route(f"/engines/{{engine:path}}/{action}", control, methods=["POST"])
            for action in get_args(Action)
        ),
        Route("/logs", files, methods=["GET"]),
        Route("/logs/{engine:path}", logs, methods=["GET"]),
    ]


async def _in_chunks(lines: Iterator[str]) -> AsyncIterator[str]:
    """Text in chunks, read off the event loop."""

    def read() -> str:
        return "".join(f"{printable(line)}\n" for line in islice(lines, CHUNK))

    while text := await in_daemon_thread(read):
        yield text
