"""A model's sizes from a hub: a small one on the loopback, with what the metadata calls need."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from memoria.errors import UnavailableError
from memoria.plan.checkpoint import INDEX, Choice, read_model
from tests.unit.checkpoints import LLAMA_8B
from tests.unit.plan.test_checkpoint import write_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Hub(ThreadingHTTPServer):
    """`files` by revision and path; `requests` and the `tokens` they came with are recorded."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[tuple[str, str], bytes] = {}
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.sent = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub = self.server
        hub.requests.append(f"{self.command} {self.path}")
        hub.tokens.add(self.headers.get("Authorization"))
        match = re.fullmatch(r"/org/name/resolve/([^/]+)/(.+)", self.path)
        content = hub.files.get((match[1], match[2])) if match else None
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if match else "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = _RANGE.fullmatch(self.headers.get("Range") or "")
        body = content[int(part[1]) : int(part[2]) + 1] if part else content
        self.send_response(206 if part else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            hub.sent += len(body)
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    server = Hub()
    weights = tmp_path / "model.safetensors"
    write_weights(weights, {"model.layers.0.mlp.up_proj.weight": ("BF16", [1024, 1024], 2 * 2**20)})
    for revision in ("main", "v2"):
        server.files[revision, "config.json"] = json.dumps(LLAMA_8B).encode()
        server.files[revision, "model.safetensors"] = weights.read_bytes()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def environ(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """An engine's own, which the package has not seen when it was imported."""
    return {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret"}


def test_headers_come_from_the_hub_without_the_weights(hub: Hub, environ: dict[str, str]) -> None:
    files = read_model("org/name", environ, may_ask_hub=True)
    assert files.config == LLAMA_8B
    assert [(tensor.name, tensor.shape) for tensor in files.tensors] == [
        ("model.layers.0.mlp.up_proj.weight", (1024, 1024))
    ]
    assert hub.sent < 200_000
    assert hub.tokens == {"Bearer hf_secret"}
    assert (Path(environ["HF_HOME"]) / "hub" / "models--org--name").is_dir()


def test_lengths_beside_the_configuration_are_fetched(hub: Hub, environ: dict[str, str]) -> None:
    hub.files["main", "tokenizer_config.json"] = b'{"model_max_length": 512}'
    hub.files["main", "sentence_bert_config.json"] = b'{"max_seq_length": 256}'
    files = read_model("org/name", environ, may_ask_hub=True)
    assert (files.tokenizer_length, files.encoder_length) == (512, 256)


def test_shards_are_all_read(hub: Hub, environ: dict[str, str]) -> None:
    content = hub.files.pop(("main", "model.safetensors"))
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = {
        "metadata": {"total_size": 4 * 2**20},
        "weight_map": {f"{n}": name for n, name in enumerate(shards)},
    }
    hub.files["main", INDEX] = json.dumps(index).encode()
    for name in shards:
        hub.files["main", name] = content
    assert len(read_model("org/name", environ, may_ask_hub=True).tensors) == 2


def test_weights_of_another_format_leave_the_configuration(hub: Hub, environ: dict[str, str]) -> None:
    del hub.files["main", "model.safetensors"]
    files = read_model("org/name", environ, may_ask_hub=True)
    assert (files.tensors, files.config) == ((), LLAMA_8B)


def test_the_engines_revision_is_requested(hub: Hub, environ: dict[str, str]) -> None:
    hub.files.pop(("main", "config.json"))
    assert read_model("org/name", environ, Choice(revision="v2"), may_ask_hub=True).config == LLAMA_8B
    with pytest.raises(UnavailableError, match="has no metadata of `org/name`"):
        read_model("org/name", environ, may_ask_hub=True)


def test_what_the_cache_has_is_requested_again_only_for_its_weights(
    hub: Hub, environ: dict[str, str]
) -> None:
    read_model("org/name", environ, may_ask_hub=True)
    hub.requests.clear()
    assert read_model("org/name", environ).config == LLAMA_8B
    assert hub.requests == []
    assert len(read_model("org/name", environ, may_ask_hub=True).tensors) == 1


def test_an_engine_that_is_offline_sends_no_request(hub: Hub, environ: dict[str, str]) -> None:
    with pytest.raises(UnavailableError, match="HF_HUB_OFFLINE is set"):
        read_model("org/name", {**environ, "HF_HUB_OFFLINE": "1"}, may_ask_hub=True)
    assert hub.requests == []


def test_a_name_that_the_hub_does_not_know_is_reported(environ: dict[str, str]) -> None:
    with pytest.raises(UnavailableError, match="has no metadata of `org/other`"):
        read_model("org/other", environ, may_ask_hub=True)
