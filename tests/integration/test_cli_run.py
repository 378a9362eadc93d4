"""`memoria run` in a pipe, with text logs: what it prints."""

from __future__ import annotations

from tests.integration.daemon import Box


def test_with_v_the_engines_logs_are_shown_between_memorias_own_lines(box: Box) -> None:
    box.configure()
    daemon = box.start("-v", LOG_FORMAT="text")
    daemon.out.wait(lambda line: line.startswith("generation | ") and "Application startup complete" in line)
    daemon.out.wait(lambda line: line.startswith("memoria     all ready   page http://127.0.0.1:"))
    assert daemon.stop() == 0


def test_without_v_they_are_not(box: Box) -> None:
    box.configure()
    daemon = box.start(LOG_FORMAT="text")
    daemon.out.wait(lambda line: "all ready" in line)
    assert daemon.stop() == 0
    assert [line for line in daemon.out.lines if "|" in line or "Application" in line] == []
