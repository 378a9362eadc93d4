"""Every route of both runners, asked through memoria and straight at the engine's socket: the same status,
the same headers but for those that must differ, and the same bytes but for ids and times.

What a tiny model cannot do is compared too: then it is the engine's own refusal that must come through.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.bench.relay.load_program import Load, build
from tests.vllm.daemon import NAMES, RealDaemon
from tests.vllm.engine_socket import EngineSocket

# memoria's own, or of one hop: memoria/proxy/http/messages.py
NOT_COMPARED = {"date", "server", "x-request-id", "content-length", "transfer-encoding", "connection"}
# Random parts of ids, seconds since 1970, and what vLLM measures itself.
PASSING = re.compile(rb'[0-9a-f]{16,}|\b1[6-9][0-9]{8}(?:\.[0-9]+)?\b|"latency": ?[0-9.e-]+')

TRIES = 8  # an engine that lags puts two tokens into one event: asked until both streams are cut alike

TEXT = {"prompt": "one two three", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
RESPONSES = {"input": "hello", "max_output_tokens": 8, "temperature": 0}
MESSAGES = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
STREAM = {"stream": True}
COUNTED = {"stream": True, "stream_options": {"include_usage": True}}
SCORED = {"query": "what?", "items": ["this", "that"], "label_token_ids": [5, 6]}
PAIR = {"query": "what?", "documents": ["this", "that"]}


class Case(NamedTuple):
    """`sure`: the model can do it, so that the answer must be 200."""

    engine: str
    method: str
    path: str
    body: Any = None
    sure: bool = True


GENERATION = [
    Case("generation", "POST", "/v1/completions", TEXT),
    Case("generation", "POST", "/v1/completions", TEXT | COUNTED),
    Case("generation", "POST", "/v1/completions", TEXT | {"logprobs": 2, "echo": True}),
    Case("generation", "POST", "/v1/chat/completions", CHAT),
    Case("generation", "POST", "/v1/chat/completions", CHAT | STREAM),
    Case("generation", "POST", "/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2}),
    Case("generation", "POST", "/v1/chat/completions/batch", CHAT | {"messages": [CHAT["messages"]] * 2}),
    Case("generation", "POST", "/v1/responses", RESPONSES),
    Case("generation", "POST", "/v1/responses", RESPONSES | STREAM),
    Case("generation", "GET", "/v1/responses/resp_nobody", sure=False),
    Case("generation", "POST", "/v1/responses/resp_nobody/cancel", sure=False),
    Case("generation", "POST", "/v1/messages", MESSAGES),
    Case("generation", "POST", "/v1/messages", MESSAGES | STREAM),
    Case("generation", "POST", "/v1/messages/count_tokens", MESSAGES),
    Case("generation", "POST", "/cohere/v2/chat", CHAT, sure=False),
    Case("generation", "POST", "/generative_scoring", SCORED),
    Case("generation", "POST", "/tokenize", {"prompt": "one two"}),
    Case("generation", "POST", "/detokenize", {"tokens": [5, 6, 7]}),
    Case("generation", "POST", "/v1/completions", TEXT | {"max_tokens": -1}, sure=False),
    Case("generation", "POST", "/v1/completions", TEXT | {"prompt": "x " * 5000}, sure=False),
    Case("generation", "POST", "/v1/completions", "no object", sure=False),
]
POOLING = [
    Case("embedding", "POST", "/v1/embeddings", {"input": ["one", "two"]}),
    Case("embedding", "POST", "/v1/embeddings", {"input": "one", "encoding_format": "base64"}),
    Case("embedding", "POST", "/v2/embed", {"texts": ["one"]}),
    Case("embedding", "POST", "/v2/embed", {"texts": ["one"], "input_type": "search_query"}, sure=False),
    Case("embedding", "POST", "/pooling", {"input": "one", "task": "embed"}),
    Case("embedding", "POST", "/score", {"text_1": "one", "text_2": ["one", "two"]}),
    Case("embedding", "POST", "/v1/score", {"text_1": "one", "text_2": ["one", "two"]}),
    Case("embedding", "POST", "/rerank", PAIR),
    Case("embedding", "POST", "/v1/rerank", PAIR),
    Case("embedding", "POST", "/v2/rerank", PAIR),
    Case("embedding", "POST", "/classify", {"input": "one"}, sure=False),
    Case("embedding", "POST", "/tokenize", {"prompt": "one two"}),
    Case("embedding", "POST", "/detokenize", {"tokens": [5, 6, 7]}),
    Case("embedding", "POST", "/v1/embeddings", {"input": {"odd": 1}}, sure=False),
]


class Asked(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


@pytest.fixture(scope="module")
def ways(daemon: RealDaemon) -> Iterator[dict[str, list[http.client.HTTPConnection]]]:
    """By engine: through memoria, and past it."""
    status, found = daemon.status(), {}
    for name in NAMES:
        start_id = psutil.Process(status[name]["pid"]).environ()["MEMORIA_START"]
        straight = EngineSocket(daemon.runtime_dir / "engines" / f"{start_id}.sock")
        found[name] = [http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60), straight]
    yield found
    for connection in (way for ways in found.values() for way in ways):
        connection.close()


def ask(connection: http.client.HTTPConnection, case: Case) -> Asked:
    body = None if case.body is None else json.dumps(case.body)
    if isinstance(case.body, dict):
        body = json.dumps({"model": NAMES[case.engine], **case.body})
    headers = {"Content-Type": "application/json", "X-Request-Id": "the-same"}
    connection.request(case.method, case.path, body, headers)
    response = connection.getresponse()
    return Asked(response.status, response.getheaders(), response.read())


def comparable(asked: Asked) -> tuple[int, list[tuple[str, str]], bytes]:
    kept = sorted((name.lower(), value) for name, value in asked.headers if name.lower() not in NOT_COMPARED)
    return asked.status, kept, PASSING.sub(b"*", asked.body)


def _name(case: Case) -> str:
    return f"{case.engine} {case.method} {case.path}"


@pytest.mark.parametrize("case", GENERATION + POOLING, ids=_name)
def test_an_engines_answer_is_the_same_through_memoria(
    ways: dict[str, list[http.client.HTTPConnection]], case: Case
) -> None:
    for _ in range(TRIES):
        through, straight = (ask(way, case) for way in ways[case.engine])
        if comparable(through) == comparable(straight):
            break
    if case.sure:
        assert straight.status == 200, straight.body
    assert straight.body
    assert comparable(through) == comparable(straight)
    framing = {name.lower() for name, _ in straight.headers} & {"content-length", "transfer-encoding"}
    assert framing == {name.lower() for name, _ in through.headers} & {"content-length", "transfer-encoding"}


def test_a_stored_response_is_found_and_cancelled_by_its_id(
    ways: dict[str, list[http.client.HTTPConnection]],
) -> None:
    through, straight = ways["generation"]
    made = json.loads(ask(through, Case("generation", "POST", "/v1/responses", RESPONSES)).body)
    path = f"/v1/responses/{made['id']}"
    stored = Case("generation", "GET", path)
    assert comparable(ask(through, stored)) == comparable(ask(straight, stored))
    assert json.loads(ask(through, stored).body)["id"] == made["id"]
    cancelled = Case("generation", "POST", f"{path}/cancel")
    assert comparable(ask(through, cancelled)) == comparable(ask(straight, cancelled))


@pytest.mark.parametrize(
    ("engine", "path", "body"),
    [
        ("embedding", "/v1/embeddings", {"input": "one"}),
        ("generation", "/v1/completions", TEXT),
        ("generation", "/v1/chat/completions", CHAT | STREAM | {"user": "stream 3"}),
    ],
)
def test_the_relays_benchmark_measures_heads_as_vllm_writes_them(
    ways: dict[str, list[http.client.HTTPConnection]],
    tmp_path: Path,
    engine: str,
    path: str,
    body: dict[str, Any],
) -> None:
    """memoria knows a head again by its bytes: the fields, their order and their lines must be the same."""
    text = json.dumps({"model": NAMES[engine], **body}, separators=(",", ":"))
    with Load(build(tmp_path)) as load:
        load.listen(f"unix:{tmp_path / 'stub'}")
        heads = []
        for way in (ways[engine][1], EngineSocket(tmp_path / "stub")):
            way.request("POST", path, text, {"Content-Type": "application/json", "X-Request-Id": "the-same"})
            fields = way.getresponse().getheaders()
            way.close()
            heads.append(
                [(name, "" if name in {"date", "content-length"} else value) for name, value in fields]
            )
    assert heads[0] == heads[1]


def test_models_are_those_of_the_engines(
    daemon: RealDaemon, ways: dict[str, list[http.client.HTTPConnection]]
) -> None:
    """This list is memoria's own, of all engines together."""
    listed = json.loads(ask(ways["generation"][0], Case("generation", "GET", "/v1/models")).body)["data"]
    by_engine = [
        model
        for name in NAMES
        for model in json.loads(ask(ways[name][1], Case(name, "GET", "/v1/models")).body)["data"]
    ]
    assert {model["id"] for model in listed} == {model["id"] for model in by_engine}
