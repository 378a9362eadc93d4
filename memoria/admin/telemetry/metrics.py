"""`GET /metrics`: memoria's own series and those of all engines that answer, for Prometheus."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from memoria.admin.status.collect import Collector
from memoria.admin.telemetry import gauges
from memoria.admin.telemetry.exposition import CONTENT_TYPE, Exposition
from memoria.admin.telemetry.requests import Requests
from memoria.admin.telemetry.starts import Starts
from memoria.admin.telemetry.tally import Tally
from memoria.supervisor.supervisor import Supervisor

AT_A_TIME = 0.001  # seconds of work after which requests have their turn


class Metrics:
    def __init__(self, supervisor: Supervisor, collector: Collector, requests: Requests) -> None:
        self.tally = Tally(supervisor.names)
        self._supervisor, self._collector, self._requests = supervisor, collector, requests
        self._starts = Starts(supervisor.names)
        supervisor.listen(self._starts.on_change)

    async def render(self) -> bytes:
        """Everything, with an `engine` label in the engines' series."""
        look = await self._collector.look()
        exposition = Exposition(
            (
                *gauges.families(look.status, look.expositions),
                *self._starts.families(),
                *self.tally.families(),
                *self._requests.families(),
            )
        )
        began = time.monotonic()
        for engine, text in look.expositions.items():
            for _ in exposition.merge(text, engine):
                if time.monotonic() - began > AT_A_TIME:
                    await asyncio.sleep(0)
                    began = time.monotonic()
        return exposition.render()

    def routes(self) -> list[Route]:
        """On an engine's own port that engine's series alone, as it gives them."""

        async def metrics(request: Request) -> Response:
            port = request.scope["server"][1]
            engine = next((e.name for e in self._supervisor.config.engines if port and e.port == port), None)
            text = await (self.render() if engine is None else self._collector.exposition(engine))
            if text is None:
                return PlainTextResponse(f"{engine} does not answer\n", 503)
            return Response(text, media_type=CONTENT_TYPE)

        return [Route("/metrics", metrics, methods=["GET"])]
