from __future__ import annotations

import json

import pytest

from memoria.proxy import errors
from memoria.proxy.errors import Answer, Refusal


@pytest.mark.parametrize(
    ("answer", "status", "kind", "param", "code"),
    [
        (errors.bad_request("no"), 400, "invalid_request_error", None, "bad_request"),
        (errors.model_required(["a"]), 400, "invalid_request_error", "model", "model_required"),
        (errors.route_not_found("GET", "/x"), 404, "invalid_request_error", None, "route_not_found"),
        (errors.model_not_found("m", ["a"]), 404, "invalid_request_error", "model", "model_not_found"),
        (
            errors.method_not_allowed("GET", ["POST"]),
            405,
            "invalid_request_error",
            None,
            "method_not_allowed",
        ),
        (errors.body_too_large(1), 413, "invalid_request_error", None, "body_too_large"),
        (errors.engine_lost("e"), 502, "server_error", None, "engine_lost"),
        (errors.engine_silent("e", 120.0), 504, "server_error", None, "engine_timeout"),
    ],
)
def test_an_answer_has_openais_four_fields(
    answer: Answer, status: int, kind: str, param: str | None, code: str
) -> None:
    assert answer.status == status
    assert json.loads(answer.body) == {
        "error": {"message": answer.message, "type": kind, "param": param, "code": code}
    }


def test_a_refusal_keeps_its_words_and_its_time() -> None:
    answer = Refusal(503, "loading", "engine_not_ready", retry_after=7).answer
    assert (answer.status, answer.message, answer.code) == (503, "loading", "engine_not_ready")
    assert answer.headers == ((b"retry-after", b"7"),)


def test_a_head_that_cannot_be_trusted_closes_the_connection() -> None:
    assert errors.bad_framing("odd").close


def test_a_preflight_has_no_body() -> None:
    assert errors.cors_preflight(((b"vary", b"origin"),)).body == b""


def test_an_answer_as_an_event_is_one_line_of_data() -> None:
    event = errors.engine_lost("e").event
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2


def test_a_clients_own_text_is_not_repeated_without_end() -> None:
    assert len(errors.model_not_found("x" * 10_000, ["a"]).message) < 400
