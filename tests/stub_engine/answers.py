"""Bodies in vLLM's shapes (0.32). Text and embeddings depend on the input alone."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import time
from typing import Any

DIMENSIONS = 8


def word(seed: str, number: int) -> str:
    return f"{hashlib.sha256(f'{seed} {number}'.encode()).hexdigest()[:4]} "


def embedding(text: object) -> list[float]:
    """Of length one."""
    numbers = struct.unpack(f"{DIMENSIONS}i", hashlib.sha256(repr(text).encode()).digest())
    length = sum(number * number for number in numbers) ** 0.5
    return [number / length for number in numbers]


def error(message: str, kind: str, code: int, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def no_such_model(model: object, names: list[str]) -> dict[str, Any]:
    aliases = ", ".join(names)
    return error(
        f"The model `{model}` does not exist. Valid aliases: {aliases}.", "NotFoundError", 404, "model"
    )


def models(names: list[str], root: str, max_model_len: int) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [
            {
                "id": name,
                "object": "model",
                "created": int(time.time()),
                "owned_by": "vllm",
                "root": root,
                "parent": None,
                "max_model_len": max_model_len,
            }
            for name in names
        ],
    }


def usage(prompt: str, tokens: int) -> dict[str, int]:
    count = len(prompt.split())
    return {"prompt_tokens": count, "total_tokens": count + tokens, "completion_tokens": tokens}


def whole(
    request_id: str, model: str, prompt: str, texts: list[str], tokens: int, *, chat: bool
) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": "length"})
    return {
        "id": request_id,
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": usage(prompt, tokens * len(texts)),
    }


def chunk(
    request_id: str,
    model: str,
    index: int,
    text: str,
    *,
    last: bool,
    chat: bool,
    usage: dict[str, int] | None = None,
) -> bytes:
    said = {"delta": {"content": text}} if chat else {"text": text}
    return event(
        {
            "id": request_id,
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": int(time.time()),
            "model": model,
            "choices": [
                {"index": index, **said, "logprobs": None, "finish_reason": "length" if last else None}
            ],
            **({} if usage is None else {"usage": usage}),
        }
    )


def event(value: object) -> bytes:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def embeddings(model: str, inputs: list[object], encoding: str) -> dict[str, Any]:
    def encoded(values: list[float]) -> object:
        if encoding == "base64":
            return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
        return values

    count = sum(len(str(text).split()) for text in inputs)
    return {
        "id": f"embd-{hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [
            {"index": index, "object": "embedding", "embedding": encoded(embedding(text))}
            for index, text in enumerate(inputs)
        ],
        "usage": {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0},
    }


def metrics(model: str, running: int, in_cache: int, tokens_made: int) -> bytes:
    label = f'{{engine="0",model_name="{model}"}}'
    cache = (
        '{block_size="16",engine="0",kv_cache_max_concurrency="18.28",kv_cache_size_tokens="37440",'
        'num_gpu_blocks="2340"}'
    )
    families = (
        ("process_open_fds", "gauge", "Number of open file descriptors.", "", 33),
        ("vllm:num_requests_running", "gauge", "Number of requests in execution.", label, running),
        ("vllm:num_requests_waiting", "gauge", "Number of requests waiting.", label, 0),
        ("vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 is 100 %.", label, min(in_cache / 100, 1.0)),
        ("vllm:generation_tokens_total", "counter", "Number of tokens made.", label, tokens_made),
        ("vllm:cache_config_info", "gauge", "Information of the LLMEngine CacheConfig", cache, 1),
    )
    return "".join(
        f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name}{labels} {float(value)}\n"
        for name, kind, text, labels, value in families
    ).encode()
