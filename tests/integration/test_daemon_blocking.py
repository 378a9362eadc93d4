"""Calls in which a slow disk, a hanging network file system or a DNS server could keep the event loop, found
by Python's audit hooks (PEP 578) during a daemon's typical life. stat(2) has none."""

from __future__ import annotations

import ast
import os
import signal
import urllib.request
from typing import NamedTuple

from tests.integration.daemon import PATIENCE, ROOT, Box

HOOK = """\
import asyncio, os, sys, threading

CALLS = {{"open", "shutil.copyfile", "subprocess.Popen", "socket.getaddrinfo", "socket.gethostbyname"}}
CHANGES = "chmod link listdir mkdir remove rename rmdir scandir symlink truncate"
CALLS |= {{"os." + name for name in CHANGES.split()}}
here = threading.local()
file = os.open({path!r} + str(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def hook(event, arguments):
    if event not in CALLS or hasattr(here, "busy") or asyncio._get_running_loop() is None:
        return
    here.busy = True
    frame, stack = sys._getframe(1), []
    while frame is not None:
        place, found, inner = frame.f_code.co_filename.rpartition("/memoria/")
        if found:
            stack.append(inner + ":" + frame.f_code.co_qualname)
        frame = frame.f_back
    os.write(file, (repr((event, str(arguments[0]), stack)) + "\\n").encode())
    del here.busy

sys.addaudithook(hook)
"""

STARTS = "daemon/daemon.py:Daemon.__init__"  # nothing is served yet
FILES = {
    "/proc/": "the kernel's memory",
    "/sys/": "the kernel's memory",
    "/dev/": "no disk",
    "{run}/": "the runtime directory, which is in memory (tmpfs)",
}
CALLERS = {
    "engine/process/process.py:EngineProcess.spawn": "a child must be forked by the main thread (prctl(2))",
    "cli/commands/run.py:_serve": "imports, before anything is served",
}


class Call(NamedTuple):
    event: str
    what: str
    stack: list[str]  # memoria's part, from within


def test_no_call_on_the_event_loop_waits_for_a_disk_or_a_name(box: Box) -> None:
    place = box.folder / "audited"
    place.mkdir()
    (place / "sitecustomize.py").write_text(HOOK.format(path=str(box.folder / "calls-")))
    box.configure()
    daemon = box.start(PYTHONPATH=f"{place}:{ROOT}")
    daemon.until_ready()
    for path in ("/", "/metrics", "/health", "/v1/models", "/admin/status", "/admin/logs/generation"):
        assert daemon.ask("GET", path).status == 200
    follow = f"http://127.0.0.1:{box.ports.main}/admin/logs/generation?follow=true"
    with urllib.request.urlopen(follow, timeout=PATIENCE) as log:
        assert log.readline()
    assert daemon.ask("POST", "/v1/completions", {"model": "writer", "prompt": "a"}).status == 200
    box.file.write_text(box.file.read_text() + "\n")
    for command in (("reload",), ("restart", "generation")):
        assert box.call(*command).returncode == 0
    daemon.until_ready()
    os.kill(daemon.leader("embedding"), signal.SIGKILL)
    daemon.told("embedding", "backoff")
    daemon.until_ready()
    pid = daemon.pid
    assert daemon.stop() == 0

    calls = [Call(*ast.literal_eval(line)) for line in (box.folder / f"calls-{pid}").read_text().splitlines()]
    assert any(CALLERS.keys() & call.stack[:1] for call in calls)  # it does look
    files = tuple(name.format(run=box.runtime) for name in FILES)
    waits = {
        (event, what, *stack[:3])
        for event, what, stack in calls
        if not (STARTS in stack or what.startswith(files) or CALLERS.keys() & stack[:1])
    }
    assert not waits
