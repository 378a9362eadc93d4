"""Health checks: /health as in memoria_vllm, /livez and /readyz."""

from __future__ import annotations

from datetime import datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from memoria.admin.status.collect import Collector
from memoria.engine.lifecycle import State
from memoria.engine.snapshot import EngineSnapshot
from memoria.supervisor.supervisor import Supervisor


def routes(supervisor: Supervisor, collector: Collector) -> list[Route]:
    """`/health` and `/readyz`: 200 when every engine is ready, or on demand and away by plan; else 503.
    `/livez`: the daemon alone, 200."""

    async def health(_: Request) -> JSONResponse:
        services = {s.name: _word(s) for s in supervisor.snapshots()}
        healthy = supervisor.all_ready()
        body = {
            "status": "healthy" if healthy else "degraded",
            "services": {"router": "healthy", **services},
            "timestamp": datetime.now().astimezone().isoformat(),
            "uptime_seconds": collector.uptime,
        }
        return JSONResponse(body, 200 if healthy else 503)

    async def readyz(_: Request) -> PlainTextResponse:
        waiting = [s for s in supervisor.snapshots() if not s.is_healthy]
        if not waiting:
            return PlainTextResponse("ok\n")
        return PlainTextResponse("".join(f"{s.name}: {s.state}\n" for s in waiting), 503)

    async def livez(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    def _word(snapshot: EngineSnapshot) -> str:
        if snapshot.is_healthy and snapshot.state is not State.READY:
            return snapshot.state.value
        return "healthy" if snapshot.is_healthy else "unhealthy"

    return [
        Route("/health", health, methods=["GET"]),
        Route("/livez", livez, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
    ]
