"""LoRA adapters of engines that run, loaded and unloaded by vLLM's own routes, which are not for clients."""

from __future__ import annotations

import logging
from typing import Any, Literal

from starlette.requests import Request
from starlette.routing import Route
from typing_extensions import TypedDict

from memoria.admin.api.responses import Json, bad_parameter
from memoria.engine.lifecycle import State
from memoria.errors import UnavailableError
from memoria.proxy.errors import Answer, Rejection
from memoria.supervisor.model_names import ModelNames
from memoria.supervisor.supervisor import Supervisor
from memoria.vllm import client as vllm_client

logger = logging.getLogger(__name__)

TIMEOUT = 300.0  # seconds; the adapter may come from the hub
_NOT_ALLOWED = (
    "Engine `{}` does not allow this (write `args: {{enable-lora: true}}` and "
    '`env: {{VLLM_ALLOW_RUNTIME_LORA_UPDATING: "1"}}`, then `memoria reload`)'
)

Action = Literal["load", "unload"]


class Models(TypedDict):
    engine: str
    models: list[str]
    """All that the engine answers to now."""


def routes(supervisor: Supervisor, names: ModelNames) -> list[Route]:
    async def load(request: Request) -> Json:
        name, path = _text(request, "name"), _text(request, "path")
        engine = _ready(supervisor, request)
        runner = supervisor.config.engine(engine).runner
        for other in supervisor.config.engines:
            if other.runner == runner and name in {*other.models, *names.of(other.name)}:
                raise Rejection(
                    Answer(409, f"Engine `{other.name}` has a model `{name}`", "name_taken", "name")
                )
        return await change(request, engine, "load", {"lora_name": name, "lora_path": path})

    async def unload(request: Request) -> Json:
        name = _text(request, "name")
        return await change(request, _ready(supervisor, request), "unload", {"lora_name": name})

    async def change(request: Request, engine: str, action: Action, body: dict[str, str]) -> Json:
        address = supervisor.actors[engine].snapshot.address
        assert address is not None
        status, answer = await vllm_client.post(address, f"/v1/{action}_lora_adapter", body, timeout=TIMEOUT)
        if status != 200:
            raise Rejection(_refusal(engine, status, answer))
        logger.info(
            "%s: %sed LoRA adapter %r, %s", engine, action, body["lora_name"], request.scope["sender"]
        )
        await names.learn(engine)
        return Json(Models(engine=engine, models=list(names.of(engine))))

    return [
        Route("/engines/{engine:path}/lora/load", load, methods=["POST"]),
        Route("/engines/{engine:path}/lora/unload", unload, methods=["POST"]),
    ]


def _ready(supervisor: Supervisor, request: Request) -> str:
    try:
        snapshot = supervisor.actor(request.path_params["engine"]).snapshot
    except UnavailableError as error:
        problem = error.problems[0]
        raise Rejection(Answer(404, f"{problem.what}; {problem.hint}", "engine_not_found")) from None
    if snapshot.state is not State.READY or snapshot.address is None:
        raise Rejection(Answer(409, f"Engine `{snapshot.name}` is not ready", "engine_not_ready"))
    return snapshot.name


def _text(request: Request, name: str) -> str:
    text = request.query_params.get(name, "")
    if not text:
        raise bad_parameter(name, "is required")
    return text


def _refusal(engine: str, status: int, answer: Any) -> Answer:
    """vLLM's own error, or FastAPI's for a route that vLLM has only where updates are allowed."""
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return Answer(404 if status == 404 else 400, f"Engine `{engine}`: {error['message']}", "lora_refused")
    if status == 404:
        return Answer(409, _NOT_ALLOWED.format(engine), "lora_not_allowed")
    return Answer(502, f"Engine `{engine}` does not answer as expected", "engine_garbled")
