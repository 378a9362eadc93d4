"""The vLLM routes that the proxy serves: a default-deny table.

Every inference route of both runners (vLLM 0.32 and 0.33, `vllm/entrypoints`), and nothing that controls an
engine: `/sleep`, `/collective_rpc`, `/v1/load_lora_adapter`, `/pause`, the scale-out and profiling routes
are absent, so they do not exist here. `/v1/models`, `/health` and `/metrics` are answered elsewhere, by
memoria itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from memoria.config.model import Runner
from memoria.proxy.errors import Rejection, method_not_allowed

ModelIn = Literal["json", "multipart", "query"]


@dataclass(frozen=True, slots=True)
class Route:
    """`runner` None: engines of any runner serve it. `model_in`: where a request names its model.
    `pure`: the request is idempotent, so a lost one may be sent again."""

    method: str
    path: str
    runner: Runner | None
    model_in: ModelIn = "json"
    pure: bool = False
    websocket: bool = False


ROUTES: tuple[Route, ...] = (
    Route("POST", "/v1/chat/completions", "generate"),
    Route("POST", "/v1/chat/completions/batch", "generate"),
    Route("POST", "/v1/completions", "generate"),
    Route("POST", "/v1/responses", "generate"),
    Route("GET", "/v1/responses/{id}", "generate", "query"),
    Route("POST", "/v1/responses/{id}/cancel", "generate", "query"),
    Route("GET", "/v1/realtime", "generate", "query", websocket=True),
    Route("POST", "/v1/messages", "generate"),
    Route("POST", "/v1/messages/count_tokens", "generate", pure=True),
    Route("POST", "/v1/audio/transcriptions", "generate", "multipart"),
    Route("POST", "/v1/audio/translations", "generate", "multipart"),
    Route("POST", "/cohere/v2/chat", "generate"),
    Route("POST", "/generative_scoring", "generate"),
    Route("POST", "/v1/embeddings", "pooling", pure=True),
    Route("POST", "/v2/embed", "pooling", pure=True),
    Route("POST", "/pooling", "pooling", pure=True),
    Route("POST", "/classify", "pooling", pure=True),
    Route("POST", "/score", "pooling", pure=True),
    Route("POST", "/v1/score", "pooling", pure=True),
    Route("POST", "/rerank", "pooling", pure=True),
    Route("POST", "/v1/rerank", "pooling", pure=True),
    Route("POST", "/v2/rerank", "pooling", pure=True),
    Route("POST", "/tokenize", None, pure=True),
    Route("POST", "/detokenize", None, pure=True),
    Route("POST", "/invocations", None),
)

Methods = dict[bytes, Route]

# Paths are compared byte by byte: an escape, a dot segment or a backslash makes another path, which has no
# route.
EXACT: dict[bytes, Methods] = {}
_SLASHES = re.compile(rb"//+")
_MODELS = re.compile(rb"/v1/models(?:/.+)?")  # memoria/admin/api/models.py
_PATTERNS: list[tuple[re.Pattern[bytes], Methods]] = []

for _route in ROUTES:
    if "{id}" in _route.path:
        _pattern = re.escape(_route.path).replace(r"\{id\}", "[A-Za-z0-9_-]{1,128}")
        _PATTERNS.append((re.compile(_pattern.encode()), {_route.method.encode(): _route}))
    else:
        EXACT.setdefault(_route.path.encode(), {})[_route.method.encode()] = _route


def canonical(path: bytes) -> bytes:
    """The path that was meant. Clients join a base URL that ends in a slash with a path that begins with one
    (`/v1//models`), and some end a path with one. Only paths for everyone with a key are understood so: what
    looks like another part of memoria stays another path."""
    if path in EXACT or not (b"//" in path or path.endswith(b"/")):
        return path
    plain = _SLASHES.sub(b"/", path).removesuffix(b"/")
    is_meant = _MODELS.fullmatch(plain) is not None or methods_of(plain) is not None
    return plain if is_meant else path


def methods_of(path: bytes) -> Methods | None:
    """The routes at a path (its bytes on the wire), by method; None for a path that is not in the table."""
    exact = EXACT.get(path)
    if exact is None:
        for pattern, methods in _PATTERNS:
            if pattern.fullmatch(path):
                return methods
    return exact


def nearest(path: bytes) -> str | None:
    """The served path that an unknown one ends with, but for its `/v1`: clients whose base URL has none
    (`/chat/completions`), two of them, or a deployment's name before it."""
    found = [known for known in (*EXACT, b"/v1/models") if path.endswith(known.removeprefix(b"/v1"))]
    return max(found, key=len).decode() if found else None


def choose(methods: Methods, method: bytes) -> Route:
    """The route of a method. Raises `Rejection`: 405 with Allow."""
    route = methods.get(method)
    if route is None:
        raise Rejection(method_not_allowed(method.decode(), (name.decode() for name in methods)))
    return route
