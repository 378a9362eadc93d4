"""memoria's own log."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal

import pytest

from memoria import logs
from memoria.engine.events import EventKind, Journal
from memoria.logs import MOST_QUEUED, QueuedOutput, configure, printable

logger = logging.getLogger("memoria.test")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    configure("DEBUG", "json", io.StringIO())
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(form: Literal["text", "json"], *, level: str = "INFO") -> io.StringIO:
    stream = io.StringIO()
    configure(level, form, stream)
    return stream


def test_a_line_for_people_has_its_time_and_level() -> None:
    stream = logged("text")
    logger.warning("%s is late", "it")
    line = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} warning  it is late\n"
    assert re.fullmatch(line, stream.getvalue())


def test_a_json_line_is_one_object_with_its_engine() -> None:
    stream = logged("json")
    logger.info("first\nsecond", extra={"engine": "generation"})
    (line,) = stream.getvalue().splitlines()
    told = json.loads(line)
    assert told.pop("time")
    assert told == {
        "level": "info",
        "logger": "memoria.test",
        "message": "first\nsecond",
        "engine": "generation",
    }


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_exception_is_told_with_its_traceback(form: Literal["text", "json"]) -> None:
    stream = logged(form)
    try:
        int("a word")
    except ValueError:
        logger.exception("it went wrong")
    text = stream.getvalue() if form == "text" else json.loads(stream.getvalue())["exception"]
    assert "Traceback (most recent call last)" in text
    assert "ValueError: invalid literal" in text


def test_a_foreign_text_can_neither_forge_a_line_nor_move_the_cursor() -> None:
    stream = logged("text")
    logger.warning("model %s", "a\n2026-01-01 all is well\r\x1b[2J\x9b1m\u2028")
    assert stream.getvalue().count("\n") == 1
    assert printable(stream.getvalue().rstrip("\n")) == stream.getvalue().rstrip("\n")


def test_printable_leaves_words_as_they_are() -> None:
    assert printable("Größe 1 × 2 – 日本") == "Größe 1 × 2 – 日本"
    assert printable("a\nb\x1b") == "a\\nb\\x1b"


def test_below_the_level_nothing_is_told() -> None:
    stream = logged("text", level="WARNING")
    logger.info("a detail")
    assert stream.getvalue() == ""


def test_libraries_are_quiet_about_their_own_business() -> None:
    stream = logged("json")
    logging.getLogger("uvicorn.error").info("Started server process")
    assert stream.getvalue() == ""


def test_the_journal_is_told_in_json_but_not_twice_in_text() -> None:
    for form, told in (("text", False), ("json", True), ("text", False)):
        stream = logged(form)  # type: ignore[arg-type]
        Journal().add_event(EventKind.STANDBY_WAITING, "generation")
        assert bool(stream.getvalue()) is told


def test_verbose_text_tells_the_journal_too() -> None:
    stream = logged("text", level="DEBUG")
    Journal().add_event(EventKind.GATE_PASSED, "generation", device="gpu 0")
    assert stream.getvalue().endswith(" generation: passed the gate: gpu 0\n")


def test_configuring_again_replaces_what_was() -> None:
    before, after = logged("text"), logged("text")
    logger.warning("once")
    assert before.getvalue() == ""
    assert after.getvalue().count("once") == 1


# ---------------------------------------------------------------------- output that nothing reads


@pytest.fixture
def unread() -> Iterator[tuple[QueuedOutput, IO[bytes]]]:
    """A stream to a pipe that is full, and the pipe's other end."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    with suppress(BlockingIOError):
        while True:
            os.write(theirs, b"\0" * 4096)
    os.set_blocking(theirs, True)
    with os.fdopen(ours, "rb", closefd=False) as reader, os.fdopen(theirs, "w", encoding="utf-8") as stream:
        output = QueuedOutput(stream)
        yield output, reader
        os.close(ours)
        assert output.writer.close(10)


def test_a_write_that_nothing_reads_returns_at_once_and_what_is_dropped_is_counted(
    unread: tuple[QueuedOutput, IO[bytes]],
) -> None:
    output, reader = unread
    for number in range(MOST_QUEUED + 3):
        output.write(f"{number}\n")
    assert output.writer.dropped == 3
    lines = iter(reader.readline, b"")
    assert next(lines).strip(b"\0") == b"0\n"


def test_the_log_says_how_many_lines_are_missing(
    unread: tuple[QueuedOutput, IO[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, reader = unread
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setattr(logs, "_writers", {output.writer})
    configure("INFO", "text")
    for number in range(MOST_QUEUED + 3):
        logger.warning("line %d", number)
    lines = (line.decode().strip("\0\n") for line in reader)
    assert next(lines).endswith("line 0")
    while not next(lines).endswith(f"line {MOST_QUEUED - 1}"):
        pass
    logger.warning("it goes on")
    assert next(lines).endswith("it goes on")
    assert next(lines).endswith(" 3 lines are missing here: standard output or error was not read")


def test_a_surrogate_in_a_path_does_not_end_the_output(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="utf-8") as stream:
        output = QueuedOutput(stream)
        output.write(os.fsdecode(b"model-\xff") + "\nnext\n")
        assert output.writer.close(10)
    assert (tmp_path / "out").read_text() == "model-\\udcff\nnext\n"
