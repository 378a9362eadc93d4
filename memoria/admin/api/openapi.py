"""The description of the admin API (OpenAPI 3.1), generated from the types that answer and a table of routes.

Descriptions of schemas are the docstrings of those types and of their attributes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import GenericAlias
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import TypedDict

from memoria.admin.api import engines
from memoria.admin.api.adapters import Models
from memoria.admin.api.authorizer import ACCESS, Rights
from memoria.admin.api.engines import Accepted, LogFiles
from memoria.admin.api.feed import HistoryEvent, JournalEvent
from memoria.admin.api.responses import MAX_NUMBER
from memoria.admin.status.status import Status
from memoria.admin.telemetry import requests
from memoria.admin.telemetry.requests import RequestList
from memoria.config.diff import Restarts
from memoria.engine.lifecycle import State
from memoria.errors import Problem

Json = dict[str, Any]

_ABOUT = (
    "memoria's own API. On the admin socket (`admin.sock` in the runtime directory, mode 0600) it needs no "
    "key, and paths are as given here. On the main address paths begin with `/admin`: clients that may use "
    "the engines may read their state; logs and recent requests need an admin key unless all of this machine "
    "may use the engines; controlling engines always needs one. Errors have OpenAI's shape. Sizes are in "
    "bytes, times in seconds."
)


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str


class Error(TypedDict):
    """As OpenAI's (memoria/proxy/errors.py)."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload changed, or would change; keys as in the configuration file."""

    applied: bool
    """False: a dry run."""
    live: tuple[str, ...]
    """Keys that change without a restart."""
    fixed: tuple[str, ...]
    """Always empty: a change that cannot be reloaded is refused."""
    restarts: tuple[Restarts, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    failed: tuple[str, ...]
    """Failed engines that get another try."""
    warnings: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    exit_code: int
    """Of `memoria run` with this configuration."""
    problems: list[Problem]


_ERRORS = {
    400: "A parameter is wrong.",
    401: "A key is required, or this one is not known.",
    403: "The key does not suffice, no admin key is configured, or another site's page sent the request.",
    404: "There is no such engine, or adapter.",
    409: "The engine does not allow it (it is resident, say), or the name is taken.",
    502: "An engine did not answer, or not as expected.",
    503: "memoria is stopping, or too many streams are open.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. `answer`: the type of its JSON, or a media type of text, sent with `status` and described by
    `answered`. `errors`: status codes besides those of a key that is missing or does not suffice."""

    id: str
    summary: str
    answer: type | str
    answered: str
    description: str = ""
    method: str = "get"
    status: int = 200
    parameters: tuple[Json, ...] = ()
    errors: tuple[int, ...] = ()

    def to_json(self) -> Json:
        key_errors = () if self.answer is Rights else (401, 403)
        if isinstance(self.answer, str):
            content: Json = {self.answer: {"schema": {"type": "string"}}}
        else:
            content = _json_body(self.answer)
        responses: Json = {str(self.status): {"description": self.answered, "content": content}}
        if 422 in self.errors:
            responses["422"] = {
                "description": "Nothing has changed, and why.",
                "content": _json_body(Refused),
            }
        for code in sorted({*self.errors, *key_errors} - {422}):
            responses[str(code)] = {"$ref": f"#/components/responses/{code}"}
        keys: list[Json] = [{"bearer": []}, {"x-api-key": []}]
        made: Json = {"operationId": self.id, "summary": self.summary}
        if self.description:
            made["description"] = self.description
        made["security"] = [{}, *keys] if self.method == "get" else keys
        if self.parameters:
            made["parameters"] = list(self.parameters)
        return {self.method: made | {"responses": responses}}


def _parameter(name: str, description: str, schema: Json, place: str = "query") -> Json:
    return {"name": name, "in": place, "description": description, "schema": schema}


def _flag(name: str, description: str, *, default: bool) -> Json:
    return _parameter(name, description, {"type": "boolean", "default": default})


def _number(name: str, description: str, *, default: int, most: int) -> Json:
    schema = {"type": "integer", "minimum": 0, "maximum": most, "default": default}
    return _parameter(name, description, schema)


def _required(name: str, description: str) -> Json:
    return _parameter(name, description, {"type": "string", "minLength": 1}) | {"required": True}


_NAME = _required("name", "The adapter's name for clients.")
_ENGINE: Json = {"$ref": "#/components/parameters/engine"}
_NOW = _flag("now", "Without waiting for requests in flight.", default=False)
_LAST_EVENT = _parameter(
    "Last-Event-ID",
    "As `after`; browsers send it when they reconnect.",
    {"type": "string", "pattern": "^[0-9]{1,15}$"},
    "header",
)
_EARLIER = "A number that this daemon has not reached is from an earlier one and counts as 0."


def _control(id_: str, summary: str, description: str, *, drains: bool = True) -> Operation:
    parameters, errors = ((_ENGINE, _NOW), (400, 404, 503)) if drains else ((_ENGINE,), (404, 503))
    begun = "It has begun; `/events` shows what follows."
    return Operation(id_, summary, Accepted, begun, description, "post", 202, parameters, errors)


def _on_demand(id_: str, summary: str, description: str, more: tuple[Json, ...] = ()) -> Operation:
    begun = "It has begun; `/events` shows what follows."
    parameters, errors = (_ENGINE, *more), (400, 404, 409, 503)
    return Operation(id_, summary, Accepted, begun, description, "post", 202, parameters, errors)


OPERATIONS: Mapping[str, Operation] = {
    "/status": Operation(
        "status",
        "Show the state of engines and devices",
        Status,
        "Figures that are not known are null. An engine that hangs delays it by one second, once.",
    ),
    ACCESS: Operation(
        "access",
        "Show the client's own rights",
        Rights,
        "For a key that is not known, the same as for none.",
        "Open to every client, so that a page need not try.",
    ),
    "/events": Operation(
        "events",
        "Follow what happens, as server-sent events: history first, then live",
        "text/event-stream",
        "An endless stream.",
        "`journal`: a `JournalEvent`, with its number as the id of the event. `status`: a "
        "`Status`, after every change and every two seconds. `history`, if requested: a `HistoryEvent`, "
        "first with the samples of the last five minutes, then one more every five seconds. The stream ends "
        "when memoria does.",
        parameters=(
            _number("after", f"Number of the last known entry. {_EARLIER}", default=0, most=MAX_NUMBER),
            _flag("status", "Whether to include statuses.", default=True),
            _flag("history", "Whether to include the figures of the last minutes.", default=False),
            _LAST_EVENT,
        ),
        errors=(400, 503),
    ),
    "/requests": Operation(
        "requests",
        "List the most recent requests, oldest first",
        RequestList,
        f"At most the last {requests.KEPT}.",
        "Never with prompts or answers.",
        parameters=(
            _number("after", f"Number of the last known request. {_EARLIER}", default=0, most=MAX_NUMBER),
            _number("limit", "The most to list; the latest are listed.", default=100, most=requests.KEPT),
        ),
        errors=(400,),
    ),
    "/logs": Operation("logFiles", "List the log files of the engines", LogFiles, "One for each engine."),
    "/logs/{engine}": Operation(
        "logs",
        "Show an engine's log: history, then live",
        "text/plain",
        "Lines of text, without control characters.",
        parameters=(
            _ENGINE,
            _number("lines", "Lines of history.", default=100, most=engines.MAX_LINES),
            _flag("follow", "Whether to continue with new lines as they are written.", default=False),
        ),
        errors=(400, 404, 503),
    ),
    "/engines/{engine}/start": _control(
        "start",
        "Start an engine",
        "A failed engine gets all its attempts again. A running engine is left alone.",
        drains=False,
    ),
    "/engines/{engine}/stop": _control(
        "stop",
        "Stop an engine",
        "Requests in flight may finish first (`timeouts.drain`) unless `now` is set.",
    ),
    "/engines/{engine}/restart": _control(
        "restart",
        "Stop an engine and start it again",
        "As stop, then start. Requests are queued meanwhile, within the limits of `hold`.",
    ),
    "/engines/{engine}/wake": _on_demand(
        "wake",
        "Wake an engine on demand",
        "As a request does: once there is room, in its turn.",
        (_number("for", "Seconds in which its `ttl` does not end it.", default=0, most=engines.MAX_WAKE),),
    ),
    "/engines/{engine}/sleep": _on_demand(
        "sleep",
        "Let an engine on demand give its memory back",
        "Requests in flight are finished first. The next request wakes it again.",
    ),
    "/engines/{engine}/lora/load": Operation(
        "loadAdapter",
        "Load a LoRA adapter",
        Models,
        "The adapter is loaded.",
        "The engine must allow it: `--enable-lora`, and VLLM_ALLOW_RUNTIME_LORA_UPDATING in its `env`. A "
        "restart forgets it.",
        "post",
        200,
        (_ENGINE, _NAME, _required("path", "A folder, or a name on the hub.")),
        (400, 404, 409, 502, 503),
    ),
    "/engines/{engine}/lora/unload": Operation(
        "unloadAdapter",
        "Unload a LoRA adapter",
        Models,
        "The adapter is unloaded.",
        "",
        "post",
        200,
        (_ENGINE, _NAME),
        (400, 404, 409, 502, 503),
    ),
    "/reload": Operation(
        "reload",
        "Reload the configuration",
        Reloaded,
        "What changed, or would change.",
        "Everything is checked first. Then engines whose own settings changed restart, one after another.",
        method="post",
        parameters=(_flag("dry_run", "Only report what would change.", default=False),),
        errors=(400, 422),
    ),
}


class _Schemas(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        """No: titles only repeat the names."""
        return False


@cache
def document() -> bytes:
    """The description as JSON. Takes a moment the first time."""
    description = {
        "openapi": "3.1.0",
        "info": {
            "title": "memoria",
            "version": "1",
            "license": {"name": "MIT", "identifier": "MIT"},
            "description": _ABOUT,
        },
        "servers": [{"url": "/admin"}],
        "paths": {path: operation.to_json() for path, operation in OPERATIONS.items()},
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "parameters": {
                "engine": {
                    "name": "engine",
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,30}$"},
                }
            },
            "responses": {
                str(code): {"description": text, "content": _json_body(Error)}
                for code, text in _ERRORS.items()
            },
            "schemas": _schemas(),
        },
    }
    return json.dumps(description, separators=(",", ":")).encode()


def _schemas() -> Json:
    answers = {op.answer for op in OPERATIONS.values() if isinstance(op.answer, type)}
    config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, json_schema_serialization_defaults_required=True
    )
    types = sorted({*answers, JournalEvent, HistoryEvent, Error, Refused}, key=lambda one: one.__name__)
    everything: Any = GenericAlias(tuple, tuple(types))
    schema = TypeAdapter(everything, config=config).json_schema(
        mode="serialization", ref_template="#/components/schemas/{model}", schema_generator=_Schemas
    )
    found: Json = schema["$defs"]
    # What the JSON adds to the types.
    status, engine = found["Status"], found["EngineStatus"]
    status["properties"] = {"status": {"enum": ["healthy", "degraded"]}, **status["properties"]}
    status["required"] = ["status", *status["required"]]
    engine["properties"]["state"] = {"enum": [state.value for state in State]}
    for one in found.values():
        one.pop("title", None)
    return found


def _json_body(answer: type) -> Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer.__name__}"}}}
