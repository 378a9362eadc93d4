"""The passenger, in real processes that load it as vLLM does, against a real gate socket."""

from __future__ import annotations

import ast
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import IO, Any

import pytest

from memoria.vllm.command import PLUGIN_NAME
from memoria.vllm.passenger import PLUGIN_DIR

SCRIPT = Path(__file__).parents[1] / "passenger_process.py"
PATIENCE_S = 60  # against a hang, never against a figure


class Gate:
    """The supervisor's end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.settimeout(PATIENCE_S)
        self.connections: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, dict[str, Any]]:
        connection, _ = self.listener.accept()
        self.connections.append(connection)
        connection.settimeout(PATIENCE_S)
        with connection.makefile("rb") as lines:
            return connection, json.loads(lines.readline())

    def has_caller(self) -> bool:
        return bool(select.select([self.listener], [], [], 0)[0])

    def close(self) -> None:
        for connection in (*self.connections, self.listener):
            connection.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


def environment(**more: str) -> dict[str, str]:
    """Of an engine, without a gate."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MEMORIA_")}
    return own | {"PYTHONPATH": str(PLUGIN_DIR), "MEMORIA_ENGINE": "embedding", "MEMORIA_START": "s1", **more}


@contextmanager
def engine(*arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """One engine's leader in a session of its own; nothing of it is left afterwards."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def read_until(stream: IO[str] | None, text: str) -> str:
    assert stream is not None
    for line in stream:
        if text in line:
            return line
    pytest.fail(f"it ended without saying {text!r}")


def wait_until_gone(descriptor: int) -> None:
    """`descriptor` is a pidfd: readable once its process has ended."""
    assert select.select([descriptor], [], [], PATIENCE_S)[0]


@contextmanager
def watch(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def order(connection: socket.socket, **orders: bool) -> None:
    connection.sendall(json.dumps(orders).encode() + b"\n")


def test_the_folder_names_the_plugin_that_the_engines_ask_for() -> None:
    (passenger,) = distributions(path=[str(PLUGIN_DIR)])
    (point,) = passenger.entry_points
    assert (point.group, point.name) == ("vllm.general_plugins", PLUGIN_NAME)


def test_the_passenger_parses_as_python_3_10() -> None:
    ast.parse((PLUGIN_DIR / "memoria_passenger.py").read_text(), feature_version=(3, 10))


def test_without_a_gate_it_does_nothing() -> None:
    with engine("once") as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, output, errors) == (0, "leader through\n", "")


def test_the_api_server_says_who_it_is_and_does_not_wait(gate: Gate) -> None:
    with engine("idle", MEMORIA_GATE=str(gate.path)) as process:
        _, hello = gate.accept()
        assert hello == {"hello": "api_server", "pid": process.pid, "engine": "embedding", "start": "s1"}
        read_until(process.stdout, "leader through")


def test_a_second_call_says_nothing_again(gate: Gate) -> None:
    with engine("twice", MEMORIA_GATE=str(gate.path)) as process:
        gate.accept()
        read_until(process.stdout, "leader through")
        assert not gate.has_caller()


def test_engine_core_waits_until_it_may_go_and_shows_its_stacks_on_request(gate: Gate) -> None:
    with engine("core", MEMORIA_GATE=str(gate.path)) as process:
        gate.accept()
        connection, hello = gate.accept()
        core = int(read_until(process.stdout, "core ").split()[1])
        assert (hello["hello"], hello["pid"]) == ("engine_core", core)
        read_until(process.stdout, "leader through")
        order(connection, dump=True)
        read_until(process.stderr, "in register")
        order(connection, go=True)
        read_until(process.stdout, "core through")


@pytest.mark.parametrize("goes", [False, True])
def test_engine_core_dies_with_its_api_server(gate: Gate, goes: bool) -> None:
    with engine("core", MEMORIA_GATE=str(gate.path)) as process:
        gate.accept()
        connection, hello = gate.accept()
        if goes:
            order(connection, go=True)
            read_until(process.stdout, "core through")
        with watch(hello["pid"]) as core:
            process.kill()
            wait_until_gone(core)


def test_a_frozen_engine_core_dies_with_its_api_server(gate: Gate) -> None:
    with engine("core", MEMORIA_GATE=str(gate.path)) as process:
        gate.accept()
        _, hello = gate.accept()
        os.kill(hello["pid"], signal.SIGSTOP)
        with watch(hello["pid"]) as core:
            process.kill()
            wait_until_gone(core)


def test_everybody_dies_when_the_supervisor_hangs_up(gate: Gate) -> None:
    with engine("core", MEMORIA_GATE=str(gate.path)) as process, ExitStack() as watched:
        gate.accept()
        _, hello = gate.accept()
        core = watched.enter_context(watch(hello["pid"]))
        gate.close()
        wait_until_gone(core)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL


def test_an_api_server_that_cannot_reach_the_supervisor_ends_and_says_so(tmp_path: Path) -> None:
    with engine("idle", MEMORIA_GATE=str(tmp_path / "absent")) as process:
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "memoria: cannot reach memoria at" in errors


def test_engine_core_ends_when_its_api_server_was_gone_before_it_looked(gate: Gate, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with engine("core", str(fifo), MEMORIA_GATE=str(gate.path)) as process:
        core = int(read_until(process.stdout, "core ").split()[1])
        with fifo.open("wb"):
            process.kill()
            process.wait()
        assert f"pid {core}" in read_until(process.stderr, "the parent process is gone")


def test_a_helper_dies_with_its_parent_and_stays_away_from_the_gate(gate: Gate) -> None:
    """As the subprocess in which vLLM inspects a model's class: a main process below the API server."""
    run_helper = f"{sys.executable} {SCRIPT} idle; true"
    more = {"MEMORIA_GATE": str(gate.path), "MEMORIA_LEADER": str(os.getpid())}
    shell = subprocess.Popen(
        ["sh", "-c", run_helper],
        env=environment(**more),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with shell:
        read_until(shell.stdout, "leader through")
        shell.kill()
        assert shell.stdout is not None
        assert shell.stdout.read() == ""  # the end of the pipe: no process has it open any more
    assert not gate.has_caller()


def test_an_api_server_behind_a_wrapper_script_is_known_as_one(gate: Gate) -> None:
    shell = subprocess.Popen(
        ["sh", "-c", f"{sys.executable} {SCRIPT} idle; true"],
        env=environment(MEMORIA_GATE=str(gate.path)),
        start_new_session=True,
    )
    with shell:
        connection, hello = gate.accept()
        assert hello["hello"] == "api_server"
        assert hello["pid"] != shell.pid
        shell.kill()
        assert connection.recv(1) == b""


def test_a_forked_child_does_not_hide_the_death_of_its_parent(gate: Gate) -> None:
    with engine("fork", MEMORIA_GATE=str(gate.path)) as process:
        connection, _ = gate.accept()
        read_until(process.stdout, "child ")
        process.kill()
        assert connection.recv(1) == b""
