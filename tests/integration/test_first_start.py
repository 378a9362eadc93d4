"""The first hour: `memoria pull`, and engines whose models are not here yet, with a hub on the loopback."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoria.engine.lifecycle import State
from tests.hub import Hub, serving
from tests.integration.daemon import Box, until

MIB = 2**20


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        hub.files["main", "config.json"] = b"{}"
        hub.files["main", "model.safetensors"] = os.urandom(9 * MIB)
        yield hub


@pytest.fixture
def first(box: Box, hub: Hub, tmp_path: Path) -> dict[str, str | None]:
    """The environment of a box whose `generation` is on the hub."""
    box.configure()
    text = box.file.read_text()
    box.file.write_text(text.replace("model: ./models/writer", "model: org/name"))
    return {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}


def test_an_engine_starts_while_the_model_of_another_comes(
    box: Box, hub: Hub, first: dict[str, str | None]
) -> None:
    hub.open.clear()
    daemon = box.start(**first)
    daemon.told("generation", "fetching")
    daemon.told("embedding", "ready")
    until(lambda: daemon.engine("generation").fetch_total_bytes == 9 * MIB)  # the plan had its config.json
    engine = daemon.engine("generation")
    assert (engine.state, engine.percent is not None) == ("fetching", True)
    assert "of 9.0 MiB" in engine.detail
    metrics = daemon.ask("GET", "/metrics").text
    assert f'memoria_engine_fetch_total_bytes{{engine="generation"}} {9 * MIB}' in metrics
    assert "of 9.0 MiB" in box.call("status", **first).stdout
    refused = daemon.ask("POST", "/v1/completions", {"model": "org/name", "prompt": "hi"})
    assert refused.status == 503
    assert "is fetching its model" in refused.text
    hub.open.set()
    daemon.told("generation", "ready")
    assert daemon.story("fetching", "fetched", "ready")[-1] == ("generation", "ready")
    _, fetch, *_ = spans = daemon.engine("generation").start_spans
    assert [span.part for span in spans][:4] == ["queue", "fetch", "queue", "import"]
    assert fetch.part == "fetch"
    for span in daemon.engine("embedding").start_spans:  # all of it while the other's model came
        assert fetch.began - 0.5 <= span.began
        assert span.began + span.seconds <= fetch.began + fetch.seconds
    status = json.loads(box.call("status", "--json", **first).stdout)
    last = spans[-1]
    assert last.began + last.seconds <= status["ready_after"] < status["uptime"] + 30
    shown = box.call("status", "--starts", **first).stdout
    assert f"all ready {status['ready_after']:.1f} s after memoria's start" in shown
    assert f"fetch {fetch.seconds:.1f} s" in shown
    assert daemon.stop() == 0


def test_a_stop_while_a_model_comes_leaves_nothing_behind(
    box: Box, hub: Hub, first: dict[str, str | None]
) -> None:
    hub.open.clear()
    daemon = box.start(**first)
    daemon.told("embedding", "ready")
    until(lambda: daemon.engine("generation").state == State.FETCHING)
    assert daemon.stop() == 0
    hub.open.set()
    assert box.survivors() == []


def test_an_engine_whose_hub_is_down_comes_up_when_it_is_back(
    box: Box, hub: Hub, first: dict[str, str | None]
) -> None:
    hub.refusal = (503, None)
    daemon = box.start(**first)
    daemon.told("generation", "backoff", times=3)  # more often than `attempts`
    assert daemon.engine("generation").hint == "it is tried again; see https://status.huggingface.co"
    hub.refusal = None
    daemon.told("generation", "ready")
    assert daemon.stop() == 0


def test_pull_fetches_and_says_what(box: Box, hub: Hub, first: dict[str, str | None]) -> None:
    done = box.call("pull", **first)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "embedding   " in lines[0]
    assert lines[0].endswith("not of the hub, nothing to fetch")
    assert lines[-1].startswith("generation  org/name: 9.0 MiB in ")
    again = box.call("pull", "generation", **first)
    assert again.stdout == "generation  org/name: is here\n"


def test_pull_in_json(box: Box, first: dict[str, str | None]) -> None:
    rows = json.loads(box.call("pull", "--json", **first).stdout)
    assert rows[1] == {
        "engine": "generation",
        "model": "org/name",
        "fetched_bytes": 9 * MIB + 2,
        "problem": None,
    }
    assert rows[0]["fetched_bytes"] == 0


def test_an_export_serves_a_machine_without_a_network(
    box: Box, hub: Hub, first: dict[str, str | None], tmp_path: Path
) -> None:
    done = box.call("pull", "--export", str(tmp_path / "stick"), **first)
    assert done.stdout.splitlines()[-1] == (
        f"on the other machine: HF_HOME={tmp_path}/stick HF_HUB_OFFLINE=1 memoria run"
    )
    box.call("pull", "--export", str(tmp_path / "stick"), **first)  # can be repeated
    hub.requests.clear()
    offline = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "stick"), "HF_HUB_OFFLINE": "1"}
    assert box.call("pull", "generation", **offline).stdout == "generation  org/name: is here\n"
    assert box.call("check", **offline).returncode == 0
    assert hub.requests == []


@pytest.mark.parametrize(
    ("refusal", "ending"),
    [
        ((401, "GatedRepo"), (78, "model `org/name` is gated: its licence must be accepted on its page")),
        ((404, "RepoNotFound"), (78, "model `org/name` is not on the hub, or it is private")),
        ((503, None), (69, "the hub answered 503")),
    ],
)
def test_what_pull_cannot_fetch_is_an_error_with_its_place(
    box: Box, hub: Hub, first: dict[str, str | None], refusal: tuple[int, str | None], ending: tuple[int, str]
) -> None:
    hub.refusal = refusal
    done = box.call("pull", **first)
    lines = done.stderr.splitlines()
    assert (done.returncode, lines[0].removeprefix("error: ")) == ending
    assert lines[1].strip().endswith("generation.model")
    assert lines[2].startswith("hint: ")
    assert "Traceback" not in done.stderr


def test_downloads_that_are_off_and_an_engine_that_is_not_there(
    box: Box, first: dict[str, str | None]
) -> None:
    off = box.call("pull", **{**first, "HF_HUB_OFFLINE": "1"})
    assert (off.returncode, "downloads are off" in off.stderr) == (78, True)
    unknown = box.call("pull", "generatoin", **first)
    assert unknown.returncode == 2
    assert "did you mean `generation`?" in unknown.stderr
