"""The request log: a line for each request, written by a thread of its own: a slow disk holds up nobody. That
thread only writes: lines that it made would hold the interpreter's lock, and with it the event loop.

2026-11-24T03:22:33.123 200 POST /v1/embeddings engine=embedding total=12.3ms first=11.0ms in=52 out=4511
tokens=5+0 key=chat client=127.0.0.1 id=5b0c6f0e          (one line; or the same as a JSON object)
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Collection
from functools import lru_cache
from typing import Literal

from memoria.admin.telemetry.record import make_record, tokens
from memoria.config.model import Logging
from memoria.engine.log.file import LogFile
from memoria.logs import printable
from memoria.proxy.exchange.record import RequestRecord

logger = logging.getLogger(__name__)

# No engine's log has this name: engines' names have no dots.
NAME = "memoria.requests"
MOST_WAITING = 10_000  # lines
EVERY = 0.2  # seconds until lines are written
BATCH = 1000  # lines that are written at once
END_PATIENCE = 2.0  # seconds

Form = Literal["text", "json"]
Done = tuple[float, RequestRecord]  # with the wall-clock time of its end


class RequestLog:
    """Raises `UnavailableError` where the file cannot be written."""

    def __init__(self, logging_: Logging, form: Form) -> None:
        self._file = LogFile(logging_.dir / f"{NAME}.log", max_bytes=logging_.max_bytes, keep=logging_.keep)
        self._form = form
        self._descriptor = self._file.open()
        self._queue: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        self._lines: list[str] = []
        self._taken = self._refused = 0
        self._done = self._failed = 0  # of those that were taken; counted by the thread
        self._failing = False
        # a daemon: a disk that hangs must not keep the process from ending
        self._thread = threading.Thread(target=self._run, name="request log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Requests that were not written down, because the disk was too slow or full."""
        return self._refused + self._failed

    def write(self, done: Collection[Done]) -> None:
        """Does not wait for the disk. To be called by the event loop."""
        if self._taken - self._done + len(done) > MOST_WAITING:
            self._refused += len(done)
            return
        self._taken += len(done)
        if not self._lines:
            asyncio.get_running_loop().call_later(EVERY, self._hand_over)
        self._lines += [line(at, over, self._form) for at, over in done]
        if len(self._lines) >= BATCH:
            self._hand_over()

    def close(self) -> None:
        """Gives what waits a moment to be written."""
        self._hand_over()
        self._queue.put(None)
        self._thread.join(END_PATIENCE)

    def _hand_over(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            self._queue.put(lines)

    def _run(self) -> None:
        while (lines := self._queue.get()) is not None:
            if not self._write("".join(lines)):
                self._failed += len(lines)
            self._done += len(lines)
            self._file.rotate_if_large()
        os.close(self._descriptor)

    def _write(self, text: str) -> bool:
        try:
            os.write(self._descriptor, text.encode(errors="replace"))
        except OSError as error:
            if not self._failing:
                logger.warning("requests are not logged: %s: %s", self._file.path, error.strerror)
            self._failing = True
            return False
        self._failing = False
        return True


def line(at: float, record: RequestRecord, form: Form) -> str:
    time_ = f"{_second(int(at))}.{int(at % 1 * 1000):03d}"
    if form == "text":
        return f"{time_} {text(record)}\n"
    fields = make_record(0, at, record)._asdict()
    known = {key: value for key, value in fields.items() if value is not None and key not in ("at", "number")}
    return json.dumps({"time": time_, **known}, separators=(",", ":")) + "\n"


def text(record: RequestRecord) -> str:
    """Without the time; what is not known is left out."""
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


@lru_cache(maxsize=8)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(at))
