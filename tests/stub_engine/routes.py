"""The API server's routes. Which of them exist depends on the runner, as in vLLM."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncGenerator
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

from tests.stub_engine import answers
from tests.stub_engine.core_client import CoreClient, EngineDeadError
from tests.stub_engine.faults import Faults
from tests.stub_engine.http_server import Request, Response
from tests.stub_engine.sleep_mode import ROUTES as DEVELOPMENT
from tests.stub_engine.sleep_mode import SleepMode

BOTH = {"/health", "/ping", "/version", "/metrics", "/v1/models", "/tokenize", "/stub/fault"}
GENERATE = {"/v1/completions", "/v1/chat/completions"}
POOLING = {"/v1/embeddings"}
LORA = {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}
POST = {"/tokenize", "/stub/fault", *GENERATE, *POOLING, *LORA}


@dataclass(slots=True)
class Routes:
    model: str
    names: list[str]
    runner: str
    max_model_len: int
    core: CoreClient
    faults: Faults
    sleeps: InitVar[bool] = False
    sleep_mode: SleepMode = field(init=False)

    def __post_init__(self, sleeps: bool) -> None:
        self.sleep_mode = SleepMode(self.core.pid, lambda: self.faults, moves_memory=sleeps)

    async def __call__(self, request: Request) -> Response:
        path = request.path
        allowed = LORA if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "1" else set()
        if path in DEVELOPMENT and os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            if request.method != DEVELOPMENT[path]:
                return Response.of_json({"detail": "Method Not Allowed"}, 405)
            return await self.sleep_mode.answer(request)
        if path not in BOTH | (POOLING if self.runner == "pooling" else GENERATE) | allowed:
            return Response.of_json({"detail": "Not Found"}, 404)
        if (request.method == "POST") != (path in POST):
            return Response.of_json({"detail": "Method Not Allowed"}, 405)
        try:
            return await (self._post(request) if path in POST else self._get(path))
        except EngineDeadError as dead:
            return Response.of_json(answers.error(str(dead), "InternalServerError", 500), 500)

    async def _get(self, path: str) -> Response:
        match path:
            case "/health" | "/ping":
                await asyncio.sleep(self.faults.health_seconds)
                return Response(503 if self.core.dead.is_set() else self.faults.health)
            case "/version":
                return Response.of_json({"version": "0.32.0"})
            case "/metrics":
                await asyncio.sleep(self.faults.metrics_seconds)
                core = self.core
                text = answers.metrics(
                    self.names[0], core.requests_running, core.blocks_in_cache, core.tokens_made
                )
                return Response(body=text, content_type="text/plain; version=0.0.4; charset=utf-8")
            case _:
                return Response.of_json(answers.models(self.names, self.model, self.max_model_len))

    async def _post(self, request: Request) -> Response:
        try:
            body = request.json()
        except ValueError:
            return Response.of_json(answers.error("JSON decode error", "Bad Request", 400, "body.0"), 400)
        if request.path in {"/stub/fault", *LORA}:
            return self._fault(body) if request.path == "/stub/fault" else self._adapt(request.path, body)
        model = body.get("model", self.names[0])
        if model not in self.names:
            return Response.of_json(answers.no_such_model(model, self.names), 404)
        match request.path:
            case "/tokenize":
                return self._tokenize(body)
            case "/v1/embeddings":
                return await self._embed(model, body)
            case path:
                return await self._complete(model, body, request, chat=path == "/v1/chat/completions")

    def _adapt(self, path: str, body: dict[str, Any]) -> Response:
        name = body["lora_name"]
        if "unload" not in path:
            self.names.append(name)
        elif name in self.names:
            self.names.remove(name)
        else:
            text = f"The lora adapter '{name}' cannot be found."
            return Response.of_json(answers.error(text, "NotFoundError", 404), 404)
        return Response(body=b"Success", content_type="text/plain")

    def _tokenize(self, body: dict[str, Any]) -> Response:
        tokens = list(str(body.get("prompt", "")).encode())
        return Response.of_json(
            {"count": len(tokens), "max_model_len": self.max_model_len, "tokens": tokens, "token_strs": None}
        )

    async def _embed(self, model: str, body: dict[str, Any]) -> Response:
        given = body["input"]
        await self.sleep_mode.awake.wait()
        if self.sleep_mode.is_wrong:
            given = "wrong"
        one = not isinstance(given, list) or (bool(given) and isinstance(given[0], int))
        async for _ in self._tokens(1):
            pass
        inputs = [given] if one else given
        answer = answers.embeddings(model, inputs, body.get("encoding_format", "float"))
        return Response.of_json(answer, cut=self.faults.cut_body)

    async def _complete(self, model: str, body: dict[str, Any], request: Request, *, chat: bool) -> Response:
        request_id = request.headers.get("x-request-id", uuid.uuid4().hex)
        ask = _Ask(
            f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
            model,
            str(body["messages"] if chat else body["prompt"]),
            body.get("max_completion_tokens") or body.get("max_tokens") or 16,
            chat,
        )
        await self.sleep_mode.awake.wait()
        if self.sleep_mode.is_wrong:
            ask = replace(ask, prompt="wrong")
        if body.get("stream"):
            options = body.get("stream_options") or {}
            stream = self._stream(
                ask,
                include_usage=options.get("include_usage", False),
                continuous=options.get("continuous_usage_stats", False),
            )
            return Response(content_type="text/event-stream; charset=utf-8", stream=stream)
        text = "".join([answers.word(ask.prompt, number) async for number in self._tokens(ask.tokens)])
        texts = [text] * body.get("n", 1)
        answer = answers.whole(ask.request_id, model, ask.prompt, texts, ask.tokens, chat=chat)
        return Response.of_json(answer, cut=self.faults.cut_body)

    async def _stream(
        self, ask: _Ask, *, include_usage: bool, continuous: bool
    ) -> AsyncGenerator[bytes, None]:
        text = ""
        try:
            async for number in self._tokens(ask.tokens):
                text += answers.word(ask.prompt, number)
                last = number == ask.tokens - 1
                if (number + 1) % self.faults.event_tokens and not last:
                    continue
                usage = answers.usage(ask.prompt, number + 1) if include_usage and continuous else None
                yield answers.chunk(ask.request_id, ask.model, 0, text, last=last, chat=ask.chat, usage=usage)
                text = ""
        except EngineDeadError as dead:
            yield answers.event(answers.error(str(dead), "InternalServerError", 500))
        else:
            if include_usage:
                usage = answers.usage(ask.prompt, ask.tokens)
                yield answers.event({"id": ask.request_id, "choices": [], "usage": usage})
        yield answers.DONE

    async def _tokens(self, count: int) -> AsyncGenerator[int, None]:
        async for number in self.core.generate(count, self.faults.token_seconds, self.faults.prefill_chunks):
            if number == self.faults.vanish_after_tokens:
                os._exit(1)
            yield number

    def _fault(self, body: dict[str, Any]) -> Response:
        if number := body.pop("core_signal", 0):
            self.core.signal(signal.Signals(number))
        self.faults = replace(self.faults, **body)
        return Response.of_json({"ok": True})


@dataclass(frozen=True, slots=True)
class _Ask:
    request_id: str
    model: str
    prompt: str
    tokens: int
    chat: bool
