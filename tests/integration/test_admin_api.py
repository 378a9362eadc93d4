"""The admin API of a running daemon. One daemon serves most tests here."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from memoria.admin.api import openapi
from memoria.cli.client import events
from memoria.cli.client import request as ask_admin
from memoria.errors import MemoriaError
from tests.integration.daemon import PATIENCE, Box, RunningDaemon, slug
from tests.integration.http_client import Answer, Streaming

ADMIN, API = "a" * 32, "k" * 32
AFTERS = (0, 5, 999_999, 2**53 - 1)
SPEC: dict[str, Any] = json.loads(openapi.document())


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"), nvml_library)
    (box.folder / "admins").write_text(f"ana: {ADMIN}\n")
    (box.folder / "admins").chmod(0o600)
    box.configure(top='admin_keys: ./admins\ncors: {origins: ["https://app.example.org"]}')
    yield box
    box.close()


@pytest.fixture(scope="module")
def daemon(machine: Box) -> Iterator[RunningDaemon]:
    daemon = machine.start()
    daemon.until_ready()
    yield daemon
    assert daemon.stop() == 0


def over_http(daemon: RunningDaemon, method: str, path: str, **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", daemon.box.ports.main, timeout=PATIENCE)
    try:
        connection.request(method, path, headers=names)
        answer = connection.getresponse()
        return Answer(answer.status, {n.lower(): v for n, v in answer.getheaders()}, answer.read().decode())
    finally:
        connection.close()


def over_socket(daemon: RunningDaemon, path: str, method: str = "GET") -> Any:
    return ask_admin(daemon.box.runtime / "admin.sock", path, method)


def follow(daemon: RunningDaemon, path: str) -> Iterator[tuple[str, Any]]:
    return events(daemon.box.runtime / "admin.sock", path)


def conforms(value: Any, name: str) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": SPEC["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


def until_event(daemon: RunningDaemon, after: int, engine: str, what: str) -> dict[str, Any]:
    for _, entry in follow(daemon, f"/events?status=false&after={after}"):
        if (entry["subject"], slug(entry)) == (engine, what):
            return dict(entry)
    raise AssertionError("the stream has ended")


def test_the_status_is_what_its_description_says(daemon: RunningDaemon) -> None:
    conforms(over_socket(daemon, "/status"), "Status")
    assert over_http(daemon, "GET", "/admin/status").json["status"] == "healthy"


def test_events_begin_with_what_has_happened(daemon: RunningDaemon) -> None:
    stream = follow(daemon, "/events?status=false")
    first = [next(stream) for _ in range(3)]
    assert [entry["number"] for _, entry in first] == [1, 2, 3]
    assert {kind for kind, _ in first} == {"journal"}
    for _, entry in first:
        conforms(entry, "JournalEvent")
    assert first[0][1]["kind"] == "listening"


def test_a_status_comes_with_the_events_and_after_every_change(daemon: RunningDaemon) -> None:
    asked = over_socket(daemon, "/engines/embedding/restart", "POST")
    states = set()
    for kind, value in follow(daemon, f"/events?after={asked['event']}"):
        if kind == "status":
            conforms(value, "Status")
            states.add(value["engines"][0]["state"])
            if len(states) > 1 and value["status"] == "healthy":
                break
    assert "ready" in states


def test_the_last_minutes_figures_come_with_the_events_where_they_are_wanted(daemon: RunningDaemon) -> None:
    told = (value for kind, value in follow(daemon, "/events?history=true") if kind == "history")
    first = next(told)
    conforms(first, "HistoryEvent")
    assert first["samples"][-1]["engines"].keys() == {"embedding", "generation"}
    after = next(told)
    assert after["samples"][0]["number"] == first["samples"][-1]["number"] + 1


def test_every_client_can_read_its_own_rights(daemon: RunningDaemon) -> None:
    mine = over_socket(daemon, "/access")
    conforms(mine, "Rights")
    assert all(mine[right]["allowed"] for right in ("look", "logs", "control"))
    answer = over_http(daemon, "GET", "/admin/access", x_api_key="wrong" * 4)
    conforms(answer.json, "Rights")
    assert answer.status == 200
    assert (answer.json["look"]["allowed"], answer.json["control"]["allowed"]) == (True, False)
    assert over_http(daemon, "GET", "/admin/access", x_api_key=ADMIN).json["key"] == "ana"


def test_an_engine_is_stopped_and_started(daemon: RunningDaemon) -> None:
    asked = over_socket(daemon, "/engines/embedding/stop", "POST")
    conforms(asked, "Accepted")
    assert (asked["engine"], asked["asked"], asked["state"]) == ("embedding", "stop", "ready")
    until_event(daemon, asked["event"], "embedding", "stopped")
    assert daemon.engine("embedding").pid is None
    assert daemon.engine("generation").state == "ready"
    asked = over_socket(daemon, "/engines/embedding/start", "POST")
    assert asked["state"] == "stopped"
    until_event(daemon, asked["event"], "embedding", "ready")


def test_a_restart_drains_unless_it_is_to_be_now(daemon: RunningDaemon) -> None:
    before = daemon.leader("embedding")
    for query, steps in (("", ["draining", "stopping"]), ("?now=true", ["stopping"])):
        asked = over_socket(daemon, f"/engines/embedding/restart{query}", "POST")
        seen = []
        for _, entry in follow(daemon, f"/events?status=false&after={asked['event']}"):
            seen.append(slug(entry))
            if seen[-1] == "ready":
                break
        assert [what for what in seen if what in ("draining", "stopping")] == steps
    assert daemon.leader("embedding") != before


def test_the_sender_of_a_request_is_in_the_journal(daemon: RunningDaemon) -> None:
    asked = over_http(daemon, "POST", "/admin/engines/embedding/start", x_api_key=ADMIN)
    assert asked.status == 202
    entry = until_event(daemon, asked.json["event"], "embedding", "start_requested")
    assert entry["detail"] == "with ana's key"


def test_an_unknown_engine_is_a_404_with_a_suggestion(daemon: RunningDaemon) -> None:
    for path in ("/logs/generatio", "/engines/generatio/stop"):
        with pytest.raises(MemoriaError, match="`generatio`\\nhint: did you mean `generation`"):
            over_socket(daemon, path, "POST" if "stop" in path else "GET")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/admin/engines/embedding/stop?now=perhaps"),
        ("GET", "/admin/logs/embedding?lines=-1"),
        ("GET", "/admin/logs/embedding?follow=1"),
        ("GET", "/admin/events?after=x"),
    ],
)
def test_a_wrong_parameter_is_named(daemon: RunningDaemon, method: str, path: str) -> None:
    answer = over_http(daemon, method, path, x_api_key=ADMIN)
    assert answer.status == 400
    assert answer.error["param"] == path.partition("?")[2].partition("=")[0]


def test_a_log_is_shown_and_followed(daemon: RunningDaemon) -> None:
    answer = over_http(daemon, "GET", "/admin/logs/generation?lines=1")
    assert answer.text == "INFO:     Application startup complete.\n"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    connection = http.client.HTTPConnection("127.0.0.1", daemon.box.ports.main, timeout=PATIENCE)
    connection.request("GET", "/admin/logs/embedding?lines=0&follow=true")
    followed = connection.getresponse()
    over_socket(daemon, "/engines/embedding/restart?now=true", "POST")
    assert b"non-default args" in followed.readline()
    connection.close()
    daemon.until_ready()


def test_reading_needs_no_key_here_and_acting_does(daemon: RunningDaemon) -> None:
    assert over_http(daemon, "GET", "/admin/status").status == 200
    path = "/admin/engines/embedding/restart"
    missing = over_http(daemon, "POST", path)
    wrong = over_http(daemon, "POST", path, authorization=f"Bearer {API}")
    assert (missing.status, wrong.status) == (401, 401)
    assert missing.error["message"].startswith("An API key is required (send it as")
    assert wrong.error["message"].startswith("The API key is not valid")
    assert missing.headers["www-authenticate"].startswith("Bearer")
    assert daemon.engine("embedding").state == "ready"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example", "origin": "http://evil.example"}, 421),  # a page that has rebound its name
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "https://app.example.org"}, 403),  # may use the engines, not control them
    ],
)
def test_other_hosts_and_other_sites_pages_are_refused(
    daemon: RunningDaemon, headers: dict[str, str], status: int
) -> None:
    for method, path in (("GET", "/admin/status"), ("POST", "/admin/engines/embedding/stop")):
        assert over_http(daemon, method, path, x_api_key=ADMIN, **headers).status == status
    assert daemon.engine("embedding").state == "ready"


def test_a_program_with_a_key_may_call_this_machine_by_any_name(daemon: RunningDaemon) -> None:
    assert (
        over_http(daemon, "GET", "/admin/status", x_api_key=ADMIN, host="box.tailnet.example").status == 200
    )
    assert over_http(daemon, "GET", "/admin/status", host="box.tailnet.example").status == 421


def test_an_engines_own_port_has_no_admin_routes(daemon: RunningDaemon) -> None:
    assert daemon.ask("GET", "/admin/status", port=daemon.box.ports.embedding).status == 404


@pytest.mark.parametrize("path", ["/admin/", "/admin/nothing", "/admin//status", "/%61dmin/status"])
def test_what_is_not_there_is_a_404(daemon: RunningDaemon, path: str) -> None:
    assert over_http(daemon, "GET", path, x_api_key=ADMIN).error["code"] == "route_not_found"


def test_a_method_that_a_route_does_not_have_is_a_405(daemon: RunningDaemon) -> None:
    answer = over_http(daemon, "POST", "/admin/status", x_api_key=ADMIN)
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD"


def test_the_description_holds_against_generated_requests(
    daemon: RunningDaemon, machine: Box, tmp_path: Path
) -> None:
    """schemathesis sends requests that the description allows, and others, for an engine that exists: it is
    started, stopped and restarted in any order. The two endless streams are left out."""
    spec = over_socket(daemon, "/openapi.json")
    assert spec == SPEC
    spec["components"]["parameters"]["engine"]["schema"] = {"enum": ["embedding"]}
    follow = next(
        p for p in spec["paths"]["/logs/{engine}"]["get"]["parameters"] if p.get("name") == "follow"
    )
    follow["schema"] = {"enum": [False]}
    for methods in spec["paths"].values():  # a wrong key beside the right one is not the right one's fault
        for operation in methods.values():
            operation["security"] = [way for way in operation["security"] if "x-api-key" not in way]
    (tmp_path / "openapi.json").write_text(json.dumps(spec))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", str(tmp_path / "openapi.json")),
            *(
                "--url",
                f"http://127.0.0.1:{machine.ports.main}/admin",
                "--header",
                f"Authorization: Bearer {ADMIN}",
            ),
            *("--exclude-path", "/events", "--checks", "all", "--max-examples", "40", "--seed", "1"),
            *("--no-color", "--generation-database", "none", "--request-timeout", "5"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"Tested: {len(SPEC['paths']) - 1}" in done.stdout
    over_socket(daemon, "/engines/embedding/start", "POST")
    daemon.until_ready()


@pytest.mark.parametrize(
    "path",
    [
        *(f"/admin/events?status={status}&after={after}" for status in ("true", "false") for after in AFTERS),
        *(f"/admin/logs/embedding?follow=true&lines={lines}" for lines in (0, 1, 10_000)),
    ],
)
def test_a_stream_delays_no_other_request(daemon: RunningDaemon, path: str) -> None:
    """schemathesis leaves the endless streams out."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.box.ports.main, timeout=PATIENCE)
    connection.request("GET", path)
    try:
        answer = connection.getresponse()
        assert answer.status == 200
        if path.startswith("/admin/events"):
            assert answer.readline().split(b":")[0] in {b"id", b"event"}
        asked = [over_http(daemon, "GET", "/livez") for _ in range(20)]
        assert {answer.status for answer in asked} == {200}
    finally:
        connection.close()


def test_an_event_number_of_another_daemon_is_none_of_this_one(daemon: RunningDaemon) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.box.ports.main, timeout=PATIENCE)
    connection.request("GET", "/admin/events?status=false", headers={"Last-Event-ID": "999999"})
    assert connection.getresponse().readline() == b"id: 1\n"
    connection.close()


def test_streams_end_with_the_daemon(box: Box) -> None:
    box.configure()
    daemon = box.start()
    daemon.until_ready()
    stream = follow(daemon, "/events?status=false")
    next(stream)
    connection = http.client.HTTPConnection("127.0.0.1", box.ports.main, timeout=PATIENCE)
    connection.request("GET", "/admin/logs/embedding?follow=true")
    log = connection.getresponse()
    assert daemon.stop() == 0
    assert [slug(entry) for _, entry in stream][-1] == "stopped"
    log.read()
    connection.close()


def test_nothing_is_started_once_memoria_stops(box: Box) -> None:
    box.configure()
    box.vllm.set_faults("generation", token_seconds=0.2)
    daemon = box.start()
    daemon.until_ready()
    with Streaming(box.ports.main, {"prompt": "a", "max_tokens": 20}) as stream:
        stream.event()
        daemon.signal(signal.SIGTERM)
        daemon.told("embedding", "stopped")
        with pytest.raises(MemoriaError, match="memoria is stopping"):
            over_socket(daemon, "/engines/embedding/start", "POST")
        assert stream.rest()[-1] == "[DONE]"
    assert daemon.exit_code() == 0
    assert box.survivors() == []
