"""`GET /v1/models`: the models of all ready engines and of those on demand, in the file's order."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from memoria.engine.actor import EngineActor
from memoria.engine.lifecycle import FACTS, State
from memoria.proxy import errors
from memoria.supervisor.supervisor import Supervisor
from memoria.vllm import client as vllm_client

# As llama.cpp's router names them; all others are `unloaded`.
STATUSES = {
    State.READY: "loaded",
    State.SUSPECT: "loaded",
    State.YIELDING: "loaded",
    State.QUEUED: "loading",
    State.FETCHING: "loading",
    State.STARTING: "loading",
    State.DOZING: "sleeping",
    State.ASLEEP: "sleeping",
    State.WAKING: "loading",
}


def routes(supervisor: Supervisor) -> list[Route]:
    """Cards are the engines' own (id, root, max_model_len, ...). An engine's own port lists only its own."""

    async def cards(actor: EngineActor) -> list[dict[str, Any]]:
        if not actor.snapshot.on_demand:
            return await own_cards(actor)
        status = {"value": STATUSES.get(actor.state, "unloaded")}
        return [{**card, "status": status} for card in await own_cards(actor) or away(actor)]

    def away(actor: EngineActor) -> list[dict[str, Any]]:
        """An engine that no request can wake is not listed."""
        if not FACTS[actor.state].comes_back:
            return []
        about = {"object": "model", "created": int(actor.snapshot.since), "owned_by": "vllm"}
        names = supervisor.config.engine(actor.name).served_model_name
        return [{"id": name, **about, "root": name, "parent": None} for name in names]

    async def own_cards(actor: EngineActor) -> list[dict[str, Any]]:
        address = actor.snapshot.address
        if address is None or actor.snapshot.state is not State.READY:
            return []
        return await vllm_client.list_models(address, timeout=supervisor.config.timeouts.health) or []

    def reachable(request: Request) -> list[EngineActor]:
        port = request.scope["server"][1]
        own = [e.name for e in supervisor.config.engines if e.port == port]
        return [actor for name, actor in supervisor.actors.items() if not own or name in own]

    async def models(request: Request) -> JSONResponse:
        lists = await asyncio.gather(*(cards(actor) for actor in reachable(request)))
        return JSONResponse({"object": "list", "data": [card for found in lists for card in found]})

    async def model(request: Request) -> Response:
        name = request.path_params["model"]
        lists = await asyncio.gather(*(cards(actor) for actor in reachable(request)))
        for card in (card for found in lists for card in found):
            if card.get("id") == name:
                return JSONResponse(card)
        names = [
            served for actor in reachable(request) for served in supervisor.config.engine(actor.name).models
        ]
        return Response(errors.model_not_found(name, names).body, 404, media_type="application/json")

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{model:path}", model, methods=["GET"]),
    ]
