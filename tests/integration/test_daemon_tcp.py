"""`transport: tcp`: vLLM has the port itself, and nobody else gets its requests."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from memoria.errors import ExitCode
from tests.faults.report import Figure
from tests.integration.daemon import Box

PROMPT = {"model": "writer", "prompt": "a", "max_tokens": 2}
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"


def over_tcp(box: Box) -> None:
    box.configure(top="hold: {seconds: 0}")
    box.file.write_text(box.file.read_text() + "    transport: tcp\n")


@contextmanager
def stranger(port: int) -> Iterator[None]:
    """Answers everything as an engine that is ready would."""
    with socket.create_server(("127.0.0.1", port)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(ANSWER)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_an_engine_on_its_own_port_serves_dies_and_comes_back(box: Box) -> None:
    over_tcp(box)
    daemon = box.start()
    daemon.until_ready()
    for port in (box.ports.main, box.ports.generation):
        assert daemon.ask("POST", "/v1/completions", PROMPT, port=port).status == 200
    os.kill(daemon.leader("generation"), signal.SIGKILL)
    daemon.told("generation", "ready", times=2)
    assert daemon.ask("POST", "/v1/completions", PROMPT).status == 200
    assert daemon.stop() == 0
    assert box.survivors() == []


def test_a_port_that_is_taken_is_told_with_its_holder_before_anything_is_spawned(
    box: Box, figure: Figure
) -> None:
    over_tcp(box)
    began = time.monotonic()
    with stranger(box.ports.generation):
        done = box.call("run")
        figure(18, "`memoria run` to its refusal", time.monotonic() - began, "s")
    assert done.returncode == ExitCode.UNAVAILABLE
    assert f"port {box.ports.generation} is in use" in done.stderr
    assert f"pid {os.getpid()} " in done.stderr
    assert box.vllm.events("spawned") == []


def test_whoever_takes_the_port_between_two_starts_gets_no_request(box: Box) -> None:
    over_tcp(box)
    daemon = box.start()
    daemon.until_ready()
    go = box.folder / "go"
    box.vllm.set_faults("generation", import_until=str(go))
    os.kill(daemon.leader("generation"), signal.SIGKILL)
    daemon.told("generation", "starting", times=2)
    with stranger(box.ports.generation):
        go.touch()
        told = daemon.told("generation", "cannot_spawn")
        assert told.startswith(f"port {box.ports.generation} is in use; pid {os.getpid()} ")
        answer = daemon.ask("POST", "/v1/completions", PROMPT)
        assert answer.status == 503
        assert f"pid {os.getpid()}" not in answer.error["message"]
    daemon.told("generation", "ready", times=2)
    assert daemon.ask("POST", "/v1/completions", PROMPT).status == 200


def test_a_reload_takes_the_port_over_from_its_engine_and_gives_it_back(box: Box) -> None:
    over_tcp(box)
    tcp = box.file.read_text()
    daemon = box.start()
    daemon.until_ready()
    box.file.write_text(tcp.replace("    transport: tcp\n", ""))
    done = box.call("reload")
    assert (done.returncode, done.stdout) == (0, "restarted: generation (transport)\n"), done.stderr
    assert str(box.ports.generation) in daemon.told("memoria", "listening", times=2)
    daemon.told("generation", "ready", times=2)
    assert daemon.ask("POST", "/v1/completions", PROMPT, port=box.ports.generation).status == 200
    assert daemon.ask("GET", "/metrics", port=box.ports.generation).status == 200
    box.file.write_text(tcp)
    assert box.call("reload").returncode == 0
    daemon.told("generation", "ready", times=3)
    assert daemon.ask("POST", "/v1/completions", PROMPT, port=box.ports.generation).status == 200
    assert daemon.stop() == 0
    assert box.survivors() == []


def test_a_new_engine_gets_the_port_of_one_that_goes(box: Box) -> None:
    over_tcp(box)
    text = box.file.read_text()
    daemon = box.start()
    daemon.until_ready()
    box.file.write_text(text.replace("  generation:", "  second:").replace("    transport: tcp\n", ""))
    done = box.call("reload")
    assert done.returncode == 0, done.stderr
    daemon.told("second", "ready")
    assert daemon.ask("POST", "/v1/completions", PROMPT, port=box.ports.generation).status == 200
    assert daemon.stop() == 0


def test_a_reload_does_not_wait_for_a_strangers_end(box: Box) -> None:
    over_tcp(box)
    text = box.file.read_text()
    daemon = box.start()
    daemon.until_ready()
    assert box.call("stop", "generation").returncode == 0
    with stranger(box.ports.generation):
        box.file.write_text(text.replace("    transport: tcp\n", ""))
        done = box.call("reload")
    assert done.returncode == ExitCode.UNAVAILABLE
    assert f"port {box.ports.generation} is in use" in done.stderr
    assert box.call("reload").returncode == 0
