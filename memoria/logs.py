"""memoria's own log: text lines, or one JSON object per line. Never prompts, bodies or keys."""

from __future__ import annotations

import io
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, TextIO

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

# In text form the screen already shows the journal.
SHOWN_BY_SCREEN = "memoria.engine.events"
# Too chatty at INFO.
QUIET = ("uvicorn", "uvicorn.error", "asyncio", "aiohttp")


logger = logging.getLogger(__name__)

MOST_QUEUED = 2000  # writes; a log line is one
CLOSE_TIMEOUT = 2.0  # seconds

_writers: set[BackgroundWriter] = set()  # of standard output and error


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key in ("engine", "event", "detail", "data"):
            if value := getattr(record, key, None):
                line[key] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = f"{timestamp(record.created)} {record.levelname.lower():8} {printable(record.getMessage())}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the present `sys.stderr`, which the terminal's screen replaces while it draws."""

    def __init__(self) -> None:
        super().__init__()
        self._reported = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        before = dropped_writes()
        super().emit(record)
        if before == dropped_writes() != self._reported:  # written again
            missing, self._reported = before - self._reported, before
            logger.warning("%d lines are missing here: standard output or error was not read", missing)


class BackgroundWriter:
    """Text written by a thread of its own: a disk or a reader that takes nothing delays nothing else.

    `write` runs in the thread and returns whether it succeeded. What waits may have a size of `most`, in any
    unit; more is dropped."""

    def __init__(self, name: str, write: Callable[[str], bool], *, most: int) -> None:
        self._write, self._most = write, most
        self._queue: queue.SimpleQueue[tuple[str, int] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._accepted = self._refused = 0
        self._done = self._failed = 0  # of the accepted; counted by the thread
        # a daemon thread: a write that hangs must not keep the process from ending
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """The size of what was not written."""
        return self._refused + self._failed

    def reserve(self, size: int) -> bool:
        """Whether there is room for a text of this size, which then must be `put`."""
        with self._lock:
            if self._accepted - self._done + size > self._most:
                self._refused += size
                return False
            self._accepted += size
            return True

    def put(self, text: str, size: int) -> None:
        self._queue.put((text, size))

    def close(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds for what was put; whether all was written or has failed."""
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            text, size = item
            if not self._write(text):
                self._failed += size
            self._done += size


class QueuedOutput(io.TextIOBase):
    """A standard stream of the daemon's, written by a thread: a terminal that was stopped with Ctrl-S, or a
    journal that is stuck, takes nothing. Its descriptor is written to, and never the stream: at exit Python
    would wait for the lock of a stream that another thread is writing to."""

    def __init__(self, stream: TextIO, *, beside: QueuedOutput | None = None) -> None:
        """`beside`: the other stream, where both are the same file, so that their lines keep their order."""
        stream.flush()
        self._stream = stream
        self.writer: BackgroundWriter
        self.writer = beside.writer if beside else BackgroundWriter("output", self._write, most=MOST_QUEUED)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """One surrogate in a path must not cost the whole text."""
        return "backslashreplace" if self._stream.errors == "strict" else self._stream.errors

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.writer.reserve(1):
            self.writer.put(text, 1)
        return len(text)

    def _write(self, text: str) -> bool:
        """In the writer's thread."""
        data = text.encode(self.encoding, self.errors or "backslashreplace")
        try:
            while data:
                data = data[os.write(self.fileno(), data) :]
        except OSError:  # the terminal has gone, the pipe's reader has ended
            return False
        return True


@contextmanager
def queued_output() -> Iterator[None]:
    """Standard output and error while an event loop runs. At the end waits a moment for what they have."""
    before = sys.stdout, sys.stderr
    out = QueuedOutput(sys.stdout)
    err = QueuedOutput(sys.stderr, beside=out if os.path.sameopenfile(1, 2) else None)
    writers = {out.writer, err.writer}
    sys.stdout, sys.stderr = out, err
    _writers.update(writers)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for writer in writers:
            writer.close(CLOSE_TIMEOUT)
        _writers.difference_update(writers)


def dropped_writes() -> int:
    """How many writes to standard output and error were dropped because nothing read them."""
    return sum(writer.dropped for writer in _writers)


def printable(text: str) -> str:
    """Escapes control characters: a model's or a client's text must not move the cursor or forge a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def configure(level: str, form: Literal["text", "json"], stream: TextIO | None = None) -> None:
    """Logs to `stream` (default: standard error); replaces any earlier configuration."""
    handler = logging.StreamHandler(stream) if stream else StderrHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    wanted = logging.getLevelNamesMapping()[level]
    for name in QUIET:
        logging.getLogger(name).setLevel(max(wanted, logging.WARNING))
    shown_twice = form == "text" and wanted >= logging.INFO
    logging.getLogger(SHOWN_BY_SCREEN).setLevel(logging.WARNING if shown_twice else logging.NOTSET)


def timestamp(at: float) -> str:
    """Local time with milliseconds."""
    return f"{_second(int(at))}.{int(at % 1 * 1000):03d}"


@lru_cache(maxsize=8)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(at))
