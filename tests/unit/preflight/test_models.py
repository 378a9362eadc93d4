"""Is the model there: on the disk, in the cache, on a hub that is a server of this test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from memoria.preflight import models
from memoria.preflight.models import hub_token, look_for_models
from tests.unit.plans import config


@dataclass
class Hub:
    """Answers every request with `status` and `headers`, and records the requests."""

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    may_answer: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()
    state.may_answer.set()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            state.requests.append((self.path, self.headers.get("Authorization")))
            state.may_answer.wait()
            self.send_response(state.status)
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        state.may_answer.set()
        server.shutdown()
        thread.join()


def problems(model: str, environ: dict[str, str], *, env: dict[str, str] | None = None) -> list[str]:
    """What the preflight says of one engine with that model."""
    planned = config({"generation": "0.5"})
    engine = replace(planned.engines[0], model=model, env=env or {})
    looked = look_for_models(replace(planned, engines=(engine,)), environ)
    assert all(problem.hint for problem in looked.problems + looked.unknown)
    assert not (looked.problems and looked.unknown)
    return [problem.what for problem in looked.problems + looked.unknown]


def test_a_directory_with_a_model_is_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    assert problems(str(tmp_path), {}) == []


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.touch()
    assert problems(str(file), {}) == []


def test_a_path_without_a_model_is_a_problem(tmp_path: Path) -> None:
    assert problems(str(tmp_path), {}) == [f"no model in {tmp_path}: it has no config.json"]
    nowhere = tmp_path / "nowhere"
    assert problems(str(nowhere), {}) == [f"model not found: {nowhere} is not a directory"]


def test_a_path_that_cannot_be_looked_at_is_a_problem() -> None:
    (problem,) = problems("/" + "x" * 5000, {})
    assert problem.startswith("model cannot be read: /xxx")


@pytest.mark.parametrize("name", ["config.json", "params.json"])
def test_a_cached_model_needs_no_hub(tmp_path: Path, hub: Hub, name: str) -> None:
    snapshot = tmp_path / "hub" / "models--who--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / name).touch()
    assert problems("who/tiny", {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}) == []
    assert hub.requests == []


def test_offline_a_model_must_be_cached(tmp_path: Path) -> None:
    (problem,) = problems("who/tiny", {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"})
    assert problem == "model `who/tiny` is not in the local cache, and downloads are off (HF_HUB_OFFLINE)"


CANNOT_TELL = "cannot tell whether the hub has `who/tiny`"


@pytest.fixture
def environ(tmp_path: Path, hub: Hub) -> dict[str, str]:
    return {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}


def test_a_model_on_the_hub_is_there(environ: dict[str, str], hub: Hub) -> None:
    assert problems("who/tiny", environ) == []
    assert hub.requests == [("/who/tiny/resolve/main/config.json", None)]


@pytest.mark.parametrize("status", [401, 404])
def test_a_misnamed_model_is_a_problem(environ: dict[str, str], hub: Hub, status: int) -> None:
    hub.status, hub.headers = status, {"X-Error-Code": "RepoNotFound"}
    assert problems("who/tiny", environ) == ["model `who/tiny` is not on the hub, or it is private"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_is_a_problem(environ: dict[str, str], hub: Hub, status: int) -> None:
    hub.status, hub.headers = status, {"X-Error-Code": "GatedRepo"}
    (problem,) = problems("who/tiny", environ)
    assert problem == "model `who/tiny` is gated: its licence must be accepted on its page"


def test_a_repository_without_a_config_is_left_to_vllm(environ: dict[str, str], hub: Hub) -> None:
    hub.status, hub.headers = 404, {"X-Error-Code": "EntryNotFound"}
    assert problems("who/tiny", environ) == []


def test_an_engines_own_token_is_sent(environ: dict[str, str], hub: Hub) -> None:
    assert problems("who/tiny", environ, env={"HF_TOKEN": "secret"}) == []
    assert hub.requests[0][1] == "Bearer secret"


def test_the_token_is_found_where_huggingface_hub_finds_it(tmp_path: Path) -> None:
    """In the order of its places, each empty one passed by."""
    for name in ("home", "cache/huggingface", ".cache/huggingface"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "token").write_text(f"of {name}\n")
    (tmp_path / "written").write_text("of a\n path")
    places = {
        "HF_TOKEN": "first",
        "HUGGING_FACE_HUB_TOKEN": "second",
        "HF_TOKEN_PATH": str(tmp_path / "written"),
        "HF_HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    found = []
    for name in list(places):
        found.append(hub_token(places))
        places[name] = ""
    assert found == ["first", "second", "ofapath", "ofhome", "ofcache/huggingface", "of.cache/huggingface"]
    assert hub_token({"HOME": str(tmp_path / "nowhere")}) is None


def test_the_token_of_a_login_is_sent(environ: dict[str, str], hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    assert problems("who/tiny", environ) == []
    assert hub.requests[0][1] == "Bearer secret"


def test_a_redirect_is_an_answer_and_takes_the_token_nowhere(environ: dict[str, str], hub: Hub) -> None:
    hub.status, hub.headers = 307, {"Location": f"{hub.url.replace('127.0.0.1', 'localhost')}/elsewhere"}
    assert problems("who/tiny", {**environ, "HF_TOKEN": "secret"}) == []
    assert len(hub.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_in_trouble_is_no_reason_not_to_start(environ: dict[str, str], hub: Hub, status: int) -> None:
    hub.status = status
    assert problems("who/tiny", environ) == [f"{CANNOT_TELL}: it answered {status}"]


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://127.0.0.1:1", "it cannot be reached: Connection refused"),
        ("nonsense", "it cannot be reached: unknown url type: 'nonsense/who/tiny/resolve/main/config.json'"),
    ],
)
def test_a_hub_that_cannot_be_reached_is_no_reason_not_to_start(
    environ: dict[str, str], endpoint: str, reason: str
) -> None:
    environ["HF_ENDPOINT"] = endpoint
    assert problems("who/tiny", environ) == [f"{CANNOT_TELL}: {reason}"]


def test_a_token_that_the_hub_does_not_take_says_nothing_of_the_model(
    environ: dict[str, str], hub: Hub
) -> None:
    hub.status = 401
    (problem,) = problems("who/tiny", {**environ, "HF_TOKEN": "out-of-date"})
    assert problem.startswith(f"{CANNOT_TELL}: it refuses the token")
    assert "out-of-date" not in problem


def test_a_hub_that_does_not_answer_is_waited_for_no_longer_than_patience(
    environ: dict[str, str], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "HUB_TIMEOUT", 0.05)
    hub.may_answer.clear()
    assert problems("who/tiny", environ) == [f"{CANNOT_TELL}: no answer within 0.05 s"]


@pytest.mark.parametrize(
    "model", ["s3://bucket/tiny", "who/tiny:Q4_K_M", "who/tiny/tiny-q4.gguf", "my model"]
)
def test_what_is_no_name_of_the_hubs_is_left_to_vllm(environ: dict[str, str], hub: Hub, model: str) -> None:
    assert problems(model, environ) == []
    assert hub.requests == []


def test_another_hub_is_left_to_vllm(environ: dict[str, str], hub: Hub) -> None:
    assert problems("who/tiny", {**environ, "VLLM_USE_MODELSCOPE": "True"}) == []
    assert hub.requests == []


def test_every_missing_model_is_told_with_its_place_in_the_files_order(tmp_path: Path) -> None:
    planned = config({"one": "0.4", "two": "0.4"})
    engines = tuple(replace(e, model=str(tmp_path / e.name)) for e in planned.engines)
    found = look_for_models(replace(planned, engines=engines), {})
    assert [problem.where for problem in found.problems] == [("one.model",), ("two.model",)]
