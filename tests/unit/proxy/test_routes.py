from __future__ import annotations

import pytest

from memoria.proxy.errors import Rejection, route_not_found
from memoria.proxy.routing.routes import ROUTES, Route, canonical, choose, methods_of, nearest

# Everything else that vLLM 0.32 can register (vllm/entrypoints, development mode and scale-out included)
DENIED = """
POST /abort_requests
POST /cohere/v2/chat/render
POST /collective_rpc
GET /docs
POST /fault_tolerance/apply
GET /fault_tolerance/status
POST /finish_weight_update
GET /get_world_size
GET /health
POST /inference/v1/abort_requests
POST /inference/v1/generate
POST /init_weight_transfer_engine
GET /is_paused
POST /is_scaling_elastic_ep
GET /is_sleeping
GET /kv_event_sources
GET /load
GET /metrics
GET /openapi.json
POST /pause
GET /ping
POST /ping
GET /redoc
POST /release_kv_cache_memory
POST /reset_encoder_cache
POST /reset_mm_cache
POST /reset_prefix_cache
POST /resume
POST /scale_elastic_ep
GET /server_info
POST /shutdown_weight_transfer_engine
POST /sleep
POST /start_draft_weight_update
POST /start_profile
POST /start_weight_update
POST /stop_profile
GET /tokenizer_info
POST /update_weight_version
POST /update_weights
POST /v1/chat/completions/derender
POST /v1/chat/completions/render
POST /v1/completions/derender
POST /v1/completions/render
POST /v1/load_lora_adapter
POST /v1/messages/render
GET /v1/models
POST /v1/responses/render
POST /v1/systemone
POST /v1/unload_lora_adapter
GET /version
POST /wake_up
POST /weight_checker
GET /weight_info
"""


def find(method: str, path: bytes) -> Route:
    """As a connection does it: a path that is not in the table is answered elsewhere, by 404."""
    methods = methods_of(path)
    if methods is None:
        raise Rejection(route_not_found(method, path.decode("latin-1")))
    return choose(methods, method.encode())


def status_of(method: str, path: bytes) -> int:
    with pytest.raises(Rejection) as caught:
        find(method, path)
    return caught.value.answer.status


@pytest.mark.parametrize("line", DENIED.split("\n")[1:-1])
def test_a_route_that_controls_or_inspects_an_engine_does_not_exist_here(line: str) -> None:
    method, path = line.split(" ")
    assert status_of(method, path.encode()) in {404, 405}
    assert not [route for route in ROUTES if (route.method, route.path) == (method, path)]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_of_the_table_is_found(route: Route) -> None:
    path = route.path.replace("{id}", "resp_0-9aZ")
    assert find(route.method, path.encode()) is route


def test_no_route_is_listed_twice() -> None:
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


def test_only_requests_without_effect_are_pure() -> None:
    generating = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/invocations"}
    assert not [route for route in ROUTES if route.pure and route.path in generating]
    assert all(route.pure for route in ROUTES if route.runner == "pooling")


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/responses/",
        b"/v1/responses/a/b",
        b"/v1/responses/a%2fb",
        b"/v1/responses/a.b",
        b"/v1/responses/..",
        b"/v1/responses/" + b"a" * 129,
        b"/v1/responses/a\n",
        b"/v1/responses/a/cancel/",
        b"/v1/embeddings\n",
        b"",
        b"/",
    ],
)
def test_a_path_that_only_resembles_a_route_is_not_found(path: bytes) -> None:
    assert status_of("GET", path) == 404


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        (b"/v1//models", b"/v1/models"),
        (b"/v1/models/", b"/v1/models"),
        (b"//v1/models", b"/v1/models"),
        (b"/v1//models/org/name", b"/v1/models/org/name"),
        (b"/v1//chat/completions", b"/v1/chat/completions"),
        (b"/v1/embeddings/", b"/v1/embeddings"),
        (b"//rerank", b"/rerank"),
        (b"/v1//responses/resp_1", b"/v1/responses/resp_1"),
    ],
)
def test_a_slash_too_many_is_left_out_of_a_path_for_clients(path: bytes, meant: bytes) -> None:
    assert canonical(path) == meant


@pytest.mark.parametrize(
    "path",
    [
        b"/",
        b"//",
        b"//health",
        b"/health/",
        b"//admin/status",
        b"/v1//../admin/status",
        b"/v1//%6dodels",
        b"/v1/models/../../admin/status/",
        b"/v1//sleep",
        b"//v1/load_lora_adapter",
        b"/page//main.js",
        b"//metrics",
        b"/v1\\models/",
    ],
)
def test_a_slash_too_many_opens_nothing(path: bytes) -> None:
    assert canonical(path) in {path, b"/v1/models/../../admin/status"}
    assert methods_of(canonical(path)) is None


def test_a_known_path_under_another_method_says_which_to_use() -> None:
    with pytest.raises(Rejection) as caught:
        find("DELETE", b"/v1/responses/resp_1")
    assert caught.value.answer.status == 405
    assert caught.value.answer.headers == ((b"allow", b"GET"),)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        (b"/chat/completions", "/v1/chat/completions"),  # a base URL without /v1
        (b"/models", "/v1/models"),
        (b"/v1/v1/embeddings", "/v1/embeddings"),  # with two of them
        (b"/openai/deployments/writer/chat/completions", "/v1/chat/completions"),
        (b"/api/tags", None),
        (b"/sleep", None),
        (b"/", None),
    ],
)
def test_a_path_that_ends_like_a_route_names_it(path: bytes, meant: str | None) -> None:
    assert nearest(path) == meant
    assert (
        f"did you mean `{meant}`" in route_not_found("POST", path.decode(), nearest(path)).message
    ) is bool(meant)
