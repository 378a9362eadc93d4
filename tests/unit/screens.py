"""Every screen by name: the pure ones for any width, and the output of commands with a fake daemon.

`test_cli_screens.py` holds them against golden files.
"""

from __future__ import annotations

import io
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

from click import Context

from memoria import cli as command_line
from memoria.cli.commands import cli
from memoria.cli.commands.logs import Line, render
from memoria.cli.commands.requests import header, render_requests
from memoria.cli.commands.service import unit_text
from memoria.cli.screens.layout import render_problems
from memoria.cli.screens.status import render_starts, render_status, render_top
from memoria.engine.events import Entry, EventKind
from memoria.errors import MemoriaError, Problem
from tests.unit import plan_examples
from tests.unit.impostor import Impostor, ok, refusal, stream
from tests.unit.status_examples import AT, EVENTS, HEALTHY, STARTED, STATUSES

Screen = Callable[[int, bool], str]  # columns, and whether in colour

REQUEST: dict[str, Any] = {
    "number": 1,
    "at": AT,
    "id": "abc",
    "client": "127.0.0.1",
    "key": None,
    "method": "POST",
    "route": "/v1/chat/completions",
    "engine": "generation",
    "status": 200,
    "request_bytes": 100,
    "response_bytes": 4511,
    "first_byte_s": 0.18,
    "duration_s": 12.25,
    "prompt_tokens": 1024,
    "completion_tokens": 512,
    "aborted": False,
    "replays": 0,
}
UNANSWERED = {"engine": None, "route": None, "status": 401, "first_byte_s": None, "prompt_tokens": None}
EMBEDDED = {"engine": "embedding", "route": "/v1/embeddings", "completion_tokens": 0, "duration_s": 0.0123}
LONG = {"engine": "generation-thinking-2507", "route": "/v1/audio/transcriptions", "duration_s": 9.999}
REQUESTS = [
    REQUEST,
    {**REQUEST, **UNANSWERED, "duration_s": 0.0004},
    {**REQUEST, **EMBEDDED},
    {**REQUEST, "status": 502, "key": "nightly-batch", "aborted": True, "replays": 1, "duration_s": 0.5},
    {**REQUEST, **LONG},
    {**REQUEST, "engine": "\033[2J", "route": "/\r\n"},
]
ENGINES = ("embedding", "generation")
LINES = [
    Line(datetime(2026, 1, 2, 10), "embedding", "(APIServer pid=1) INFO 01-02 10:00:00 [core.py:1] Starting"),
    Line(datetime(2026, 1, 2, 10, 1), "generation", "ERROR 01-02 10:01:00 [core.py:2] out of memory"),
    Line(datetime(2026, 1, 2, 10, 1), "generation", "\033]0;title\007a line that sets the title"),
]
PROBLEMS = [
    Problem(
        "fractions add up to 1.05, the limit is 0.95",
        ("memoria.yaml:12  embedding.gpu_memory_utilization   0.45   62.9 GiB",),
        "lower generation to 0.50",
    ),
    Problem("memoria is not running with this configuration", hint="start it with `memoria run`"),
]


def _requests(width: int, color: bool) -> str:
    rows = [render_requests(row, width=width, color=color) for row in REQUESTS]
    return "\n".join([header(width), *rows])


def _status(name: str) -> Screen:
    return lambda width, color: render_status(STATUSES[name], width=width, color=color)


def _top(name: str) -> Screen:
    return lambda width, color: render_top(STATUSES[name], EVENTS, width=width, color=color)


# Drawn at 80 and 120 columns, with and without colour.
DRAWN: Mapping[str, Screen] = {
    **{f"status-{name}": _status(name) for name in STATUSES},
    **{f"top-{name}": _top(name) for name in STATUSES},
    "starts": lambda width, _: render_starts(STARTED, width=width),
    "starts-none": lambda width, _: render_starts(HEALTHY, width=width),
    "plan-unfit": plan_examples.unfit,
    "plan-unfit-problems": plan_examples.unfit_problems,
    "plan-wishes": plan_examples.wishes,
    "plan-wishes-refused": plan_examples.wishes_refused,
    "requests": _requests,
    "errors": lambda _, color: render_problems(PROBLEMS, color),
    "logs": lambda _, color: "\n".join(map(render(ENGINES, as_json=False, color=color), LINES)),
    "logs-of-one": lambda _, color: "\n".join(
        map(render(ENGINES[1:], as_json=False, color=color), LINES[1:])
    ),
}


# ---------------------------------------------------------------------- what commands say in a pipe


def _entry(what: str, detail: str = "", subject: str = "generation") -> tuple[str, dict[str, Any]]:
    data = {"state": what, "cause": "start"}
    return "journal", Entry(AT, 0.0, subject, EventKind.TRANSITION, detail, data, 7).to_json()


def _asked(state: str) -> bytes:
    return ok({"engine": "generation", "asked": "start", "state": state, "event": 3}, status="202 Accepted")


START, STOP, RESTART = (f"/engines/generation/{wish}" for wish in ("start", "stop", "restart"))
RESTARTING = ("draining", "stopping", "releasing", "queued", "starting", "ready")
CHANGES: dict[str, Any] = {
    "applied": True,
    "failed": [],
    "live": ["keys", "timeouts.idle"],
    "fixed": [],
    "restarts": [{"engine": "generation", "keys": ["max_num_seqs"]}],
    "added": ["reranker"],
    "removed": ["old"],
    "warnings": [],
}
NONE: dict[str, Any] = {key: value if key == "applied" else [] for key, value in CHANGES.items()}
TAKEN = {"what": "port 8200 is in use", "where": ["memoria.yaml:1  listen"], "hint": "choose another"}
NOT_THERE = refusal("there is no engine `generation`; did you mean `generator`?", "engine_not_found")
STATUS = {"/status": ok(HEALTHY.to_json())}
EVENTS_OF = {"/events": stream(*(("journal", event) for event in EVENTS), ("status", HEALTHY.to_json()))}

# The command, and what the daemon answers.
SAID: Mapping[str, tuple[str, Mapping[str, bytes]]] = {
    "pipe-status": ("status", STATUS),
    "pipe-starts": ("status --starts", {"/status": ok(STARTED.to_json())}),
    "pipe-status-degraded": ("status", {"/status": ok(STATUSES["degraded"].to_json())}),
    "pipe-status-json": ("status --json", STATUS),
    "pipe-watch": ("status --watch", EVENTS_OF),
    "pipe-watch-json": ("status --watch --json", EVENTS_OF),
    "pipe-top": ("top", EVENTS_OF),
    "pipe-requests": ("requests", {"/requests": ok({"requests": REQUESTS, "not_logged": 0})}),
    "pipe-start": (
        "start generation",
        {START: _asked("stopped"), "/events": stream(*map(_entry, ("queued", "starting", "ready")))},
    ),
    "pipe-start-already": ("start generation", {START: _asked("ready")}),
    "pipe-start-fails": (
        "start generation",
        {
            START: _asked("stopped"),
            "/events": stream(
                _entry("starting"),
                _entry("ready", subject="embedding"),
                _entry("backoff", "exited 1: CUDA out of memory"),
                _entry("failed", "5 starts in a row: \033[31mCUDA out of memory"),
            ),
        },
    ),
    "pipe-stop": (
        "stop generation --now",
        {STOP: _asked("ready"), "/events": stream(_entry("stopping"), _entry("stopped"))},
    ),
    "pipe-restart": (
        "restart generation",
        {RESTART: _asked("ready"), "/events": stream(*map(_entry, RESTARTING))},
    ),
    "pipe-restart-json": (
        "restart generation --json",
        {RESTART: _asked("ready"), "/events": stream(_entry("stopping"), _entry("ready"))},
    ),
    "pipe-restart-unknown": ("restart generation", {RESTART: NOT_THERE}),
    "pipe-restart-daemon-ends": ("restart generation", {RESTART: _asked("ready"), "/events": stream()}),
    "pipe-reload": ("reload", {"/reload": ok(CHANGES)}),
    "pipe-reload-dry-run": ("reload --dry-run", {"/reload": ok({**CHANGES, "applied": False})}),
    "pipe-reload-nothing": ("reload", {"/reload": ok(NONE)}),
    "pipe-reload-refused": (
        "reload",
        {"/reload": ok({"exit_code": 69, "problems": [TAKEN]}, status="422 Unprocessable")},
    ),
    "pipe-logs": ("logs -n 3", {}),
    "pipe-logs-json": ("logs embedding -n 1 --json", {}),
    "pipe-config": ("config", {}),
    "pipe-not-understood": ("status", {"*": ok({})}),
    "pipe-service": ("service", {}),
    "pipe-nothing": ("", {}),
    "pipe-usage": ("restart", {}),
}
FILE = """\
runtime_dir: ./run
log: {dir: ./logs}
gpu_limit: ${LIMIT:-0.9}
engines:
  embedding: {model: org/embedder, runner: pooling, gpu_memory_utilization: 0.3}
  generation: {model: org/writer, gpu_memory_utilization: 0.6}
"""


def said(name: str) -> str:
    """The command line, what it wrote, and how it ended."""
    line, answers = SAID[name]
    with _machine() as folder:
        (folder / "memoria.yaml").write_text(FILE, encoding="utf-8")
        (folder / "logs").mkdir()
        for engine in ENGINES:
            text = "".join(f"{line.text}\n" for line in LINES if line.engine == engine)
            (folder / "logs" / f"{engine}.log").write_text(text, encoding="utf-8")
        (folder / "run").mkdir()
        with Impostor(folder / "run/admin.sock", answers):
            return f"$ memoria {line}\n{run(shlex.split(line))}".replace(str(folder), "/here")


def run(arguments: Sequence[str]) -> str:
    """In this process, as if in a pipe: standard output, standard error, the exit code where it is not 0."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = command_line._run(arguments)
        except MemoriaError as error:
            code = command_line._report(error.problems, error.exit_code, arguments)
    parts = [out.getvalue(), err.getvalue(), f"[exit {int(code)}]\n" if code else ""]
    return "".join(parts).rstrip("\n")


@contextmanager
def _machine() -> Iterator[Path]:
    """A folder to be in, in an environment without anything of the tests'."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as name:  # as long everywhere
        folder = Path(name)
        environ = {"HOME": str(folder), "PATH": os.environ["PATH"], "TZ": "UTC", "COLUMNS": "80"}
        with mock.patch.dict(os.environ, environ, clear=True):
            os.chdir(folder)
            time.tzset()
            try:
                yield folder
            finally:
                os.chdir(before)
    time.tzset()


# ---------------------------------------------------------------------- what never changes


def helps() -> str:
    """Of every command."""
    context = Context(cli)
    names: list[list[str]] = [[]]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        names.append([name])
        names += [[name, inner] for inner in sorted(getattr(command, "commands", {}))]
    with _machine():
        return "\n\n".join(f"$ memoria {' '.join([*n, '--help'])}\n{run([*n, '--help'])}" for n in names)


OPT, ETC = Path("/opt/memoria/bin/memoria"), Path("/etc/memoria/memoria.yaml")
FIXED: Mapping[str, Callable[[], str]] = {
    "help": helps,
    "service-unit-machine": lambda: unit_text(OPT, ETC, "memoria"),
    "service-unit-user": lambda: unit_text(OPT, ETC, None),
}
