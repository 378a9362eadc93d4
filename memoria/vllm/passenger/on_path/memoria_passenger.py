"""The passenger: runs in every process of a vLLM engine, as a `vllm.general_plugins` entry point.

It ties each process's life to its parent's, reports each process to the supervisor, and stops EngineCore at
the GPU gate until it may go. vLLM calls `register` in the API server (while it parses arguments), in
EngineCore (first thing in its constructor: all imported, no device touched yet), in each worker, and in
short-lived helpers.

The supervisor listens on a Unix stream socket, MEMORIA_GATE: one connection per process, one JSON object per
line.

    passenger   {"hello": ROLE, "pid": ..., "engine": MEMORIA_ENGINE, "start": MEMORIA_START}
    supervisor  {"go": true}      EngineCore may touch the device (other roles do not wait)
    supervisor  {"dump": true}    write every thread's stack to stderr
    supervisor  end of file       the supervisor is gone: die at once

Without MEMORIA_GATE it does nothing. vLLM may run on another Python than memoria, so this file uses only the
standard library, and nothing newer than Python 3.10.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_STDERR = 2  # the descriptor: vLLM wraps sys.stderr
# Set by the first process of an engine, inherited by all others.
_LEADER = "MEMORIA_LEADER"

_registered_in: int | None = None


def register() -> None:
    """Called by vLLM, possibly twice in a process. In EngineCore it returns when the gate opens."""
    global _registered_in  # noqa: PLW0603 - vLLM may call plugins twice
    gate = os.environ.get("MEMORIA_GATE")
    if not gate or _registered_in == os.getpid():
        return
    _registered_in = os.getpid()
    role = _role()
    _die_with_parent()
    if role == "helper":
        return
    try:
        connection = _say_hello(gate, role)
    except OSError as error:
        _exit(f"cannot reach memoria at {gate}: {error.strerror}")
    go = threading.Event()
    threading.Thread(target=_listen, args=(connection, go), name="memoria-passenger", daemon=True).start()
    if role == "engine_core":
        go.wait()


def _role() -> str:
    """Process names are vLLM's (v1/engine/utils.py, v1/executor/multiproc_executor.py). A helper is anything
    else, such as the subprocess that inspects a model's class (model_executor/models/registry.py)."""
    name = multiprocessing.current_process().name
    if name.startswith("EngineCore"):
        return "engine_core"
    if name.startswith("VllmWorker"):
        return "worker"
    pid = str(os.getpid())
    # Not by its parent's pid: a wrapper script may run between the supervisor and the API server.
    return "api_server" if os.environ.setdefault(_LEADER, pid) == pid else "helper"


def _die_with_parent() -> None:
    """A parent-death signal is lost on fork (prctl(2)), so every process sets its own."""
    parent = multiprocessing.parent_process()
    expected = parent.pid if parent else os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        _say(f"cannot tie this process to its parent: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != expected:
        _exit("the parent process is gone")


def _say_hello(gate: str, role: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(gate)
    # A forked child's copy would hide this process's end from the supervisor.
    os.register_at_fork(after_in_child=connection.close)
    hello = {
        "hello": role,
        "pid": os.getpid(),
        "engine": os.environ.get("MEMORIA_ENGINE"),
        "start": os.environ.get("MEMORIA_START"),
    }
    connection.sendall(json.dumps(hello).encode() + b"\n")
    return connection


def _listen(connection: socket.socket, go: threading.Event) -> None:
    unread = b""
    try:
        while data := connection.recv(4096):
            *lines, unread = (unread + data).split(b"\n")
            for order in map(json.loads, lines):
                if order.get("go"):
                    go.set()
                if order.get("dump"):
                    faulthandler.dump_traceback(_STDERR, all_threads=True)
    finally:
        # vLLM swallows SIGTERM while it starts, and an engine without a supervisor must not keep the GPU.
        os.kill(os.getpid(), signal.SIGKILL)


def _say(message: str) -> None:
    os.write(_STDERR, f"memoria: {message} (pid {os.getpid()}, {sys.argv[0]})\n".encode())


def _exit(message: str) -> NoReturn:
    _say(message)
    os._exit(1)
