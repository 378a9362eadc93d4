"""memoria's own log: text lines, or one JSON object per line. Never prompts, bodies or keys."""

from __future__ import annotations

import json
import logging
import sys
import time
from functools import lru_cache
from typing import Literal, TextIO

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

# In text form the screen already shows the journal.
SHOWN_BY_SCREEN = "memoria.engine.events"
# Too chatty at INFO.
QUIET = ("uvicorn", "uvicorn.error", "asyncio", "aiohttp")


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

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


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
