"""The most recent requests, and the request log. Prompts and answers are never kept.

A request pays for one append to a list; everything else waits until the event loop has done the work at hand.
A line of the log as text (the other form is one JSON object a line):

2026-11-24T03:22:33.123 200 POST /v1/embeddings engine=embedding total=12.3ms first=11.0ms in=52 out=4511
tokens=5+0 key=chat client=127.0.0.1 id=5b0c6f0e          (one line)
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections import deque
from collections.abc import Collection
from itertools import islice
from typing import Literal

from starlette.requests import Request
from starlette.routing import Route
from typing_extensions import TypedDict

from memoria.admin.api.responses import MAX_NUMBER, Json, number
from memoria.config.model import Logging
from memoria.engine.log import LogFile
from memoria.logs import BackgroundWriter, printable, timestamp
from memoria.proxy.exchange.record import RequestRecord

logger = logging.getLogger(__name__)

KEPT = 500  # requests that `/requests` can show
# No engine's log has this name: engines' names have no dots.
NAME = "memoria.requests"
MAX_QUEUED = 10_000  # lines
FLUSH_INTERVAL = 0.2  # seconds
BATCH = 1000  # lines written at once
CLOSE_TIMEOUT = 2.0  # seconds

Form = Literal["text", "json"]
Completed = tuple[float, RequestRecord]  # with the wall-clock time of its end

# OpenAI's names, and those of /v1/responses and /v1/messages. A model that writes about "usage" cannot be
# mistaken for this: within a JSON string its quotes are escaped.
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,12})')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,12})')


class RequestFacts(TypedDict):
    """One completed request. Null: not known, or not reached."""

    number: int
    """Counts from 1, without gaps."""
    at: float
    """Unix time of its end."""
    id: str
    client: str
    key: str | None
    """Name of its API key."""
    method: str
    route: str | None
    engine: str | None
    status: int
    """499: the client disconnected before the answer began."""
    request_bytes: int
    response_bytes: int
    first_byte_s: float | None
    duration_s: float
    prompt_tokens: int | None
    completion_tokens: int | None
    aborted: bool
    """The client did not receive the whole answer."""
    replays: int
    """How many times it was sent again because an engine was lost."""


class RequestList(TypedDict):
    requests: list[RequestFacts]
    not_logged: int
    """Requests missing from the request log because its disk was too slow or full."""


def request_facts(number: int, at: float, record: RequestRecord) -> RequestFacts:
    prompt, completion = tokens(record.ends)
    return {
        "number": number,
        "at": at,
        "id": record.request_id,
        "client": record.client,
        "key": record.key,
        "method": record.method,
        "route": record.route,
        "engine": record.engine,
        "status": record.status,
        "request_bytes": record.request_bytes,
        "response_bytes": record.response_bytes,
        "first_byte_s": record.first_byte_s,
        "duration_s": record.duration_s,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "aborted": not record.complete,
        "replays": record.replays,
    }


def tokens(ends: bytes) -> tuple[int | None, int | None]:
    """Prompt and completion tokens, from the first and last bytes of an answer; None where those lack
    them."""
    at = ends.rfind(b'"usage"')
    if at < 0 or _USAGE.match(ends, at) is None:
        return None, None
    prompt, completion = _PROMPT.search(ends, at), _COMPLETION.search(ends, at)
    return (int(prompt[1]) if prompt else None, int(completion[1]) if completion else None)


class Requests:
    """The last `KEPT` requests. `log` None: no request log is written."""

    def __init__(self, log: RequestLog | None) -> None:
        self._log = log
        self._recent: deque[Completed] = deque(maxlen=KEPT)
        self._new: list[Completed] = []
        self._count = 0

    def add_request(self, record: RequestRecord) -> None:
        self._new.append((time.time(), record))
        if len(self._new) == 1:
            asyncio.get_running_loop().call_soon(self._keep_new)

    def _keep_new(self) -> None:
        new, self._new = self._new, []
        self._count += len(new)
        self._recent.extend(new)
        if self._log is not None and new:
            self._log.write(new)

    def requests_after(self, number: int, limit: int) -> list[RequestFacts]:
        """The latest, oldest first. A number not reached yet is from an earlier daemon and counts as 0."""
        self._keep_new()
        if number > self._count:
            number = 0
        first = self._count - len(self._recent) + 1
        skipped = max(0, number + 1 - first, len(self._recent) - limit)
        found = islice(enumerate(self._recent, first), skipped, None)
        return [request_facts(each, at, record) for each, (at, record) in found]

    @property
    def not_logged(self) -> int:
        return 0 if self._log is None else self._log.dropped

    def close(self) -> None:
        self._keep_new()
        if self._log is not None:
            self._log.close()


class RequestLog:
    """The request log's file, written by a thread: a slow disk delays no request. The thread only writes;
    formatting lines there would hold the interpreter's lock, and with it the event loop.

    Raises `UnavailableError` where the file cannot be written."""

    def __init__(self, logging_: Logging, form: Form) -> None:
        self._file = LogFile(logging_.dir / f"{NAME}.log", max_bytes=logging_.max_bytes, keep=logging_.keep)
        self._form = form
        self._descriptor = self._file.open()
        self._lines: list[str] = []
        self._failing = False
        self._writer = BackgroundWriter("request log", self._write, most=MAX_QUEUED)

    @property
    def dropped(self) -> int:
        """Requests not written because the disk was too slow or full."""
        return self._writer.dropped

    def write(self, completed: Collection[Completed]) -> None:
        """Does not wait for the disk. Call it on the event loop."""
        if not self._writer.reserve(len(completed)):
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_INTERVAL, self._flush)
        self._lines += [line(at, record, self._form) for at, record in completed]
        if len(self._lines) >= BATCH:
            self._flush()

    def close(self) -> None:
        """Waits up to `CLOSE_TIMEOUT` for queued lines to be written."""
        self._flush()
        if self._writer.close(CLOSE_TIMEOUT):
            os.close(self._descriptor)

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            self._writer.put("".join(lines), len(lines))

    def _write(self, text: str) -> bool:
        """In the writer's thread."""
        try:
            os.write(self._descriptor, text.encode(errors="replace"))
        except OSError as error:
            if not self._failing:
                logger.warning("requests are not logged: %s: %s", self._file.path, error.strerror)
            self._failing = True
        else:
            self._failing = False
        self._file.rotate_if_large()
        return not self._failing


def line(at: float, record: RequestRecord, form: Form) -> str:
    if form == "text":
        return f"{timestamp(at)} {text(record)}\n"
    facts = request_facts(0, at, record)
    known = {key: value for key, value in facts.items() if value is not None and key not in ("at", "number")}
    return json.dumps({"time": timestamp(at), **known}, separators=(",", ":")) + "\n"


def text(record: RequestRecord) -> str:
    """A line without its time and without what is not known."""
    made = f"{record.status} {record.method or '-'} {record.route or '-'}"
    if record.engine is not None:
        made += f" engine={record.engine}"
    made += f" total={record.duration_s * 1000:.1f}ms"
    if record.first_byte_s is not None:
        made += f" first={record.first_byte_s * 1000:.1f}ms"
    made += f" in={record.request_bytes} out={record.response_bytes}"
    prompt, completion = tokens(record.ends)
    if prompt is not None:
        made += f" tokens={prompt}+{completion or 0}"
    if record.key is not None:
        made += f" key={record.key}"
    made += f" client={record.client or '-'} id={record.request_id}"
    if not record.complete:
        made += " aborted"
    if record.replays:
        made += " replayed"
    return made if made.isprintable() else printable(made)


def routes(requests: Requests) -> list[Route]:
    async def recent(request: Request) -> Json:
        after, limit = number(request, "after", 0, most=MAX_NUMBER), number(request, "limit", 100, most=KEPT)
        found: RequestList = {
            "requests": requests.requests_after(after, limit),
            "not_logged": requests.not_logged,
        }
        return Json(found)

    return [Route("/requests", recent, methods=["GET"])]
