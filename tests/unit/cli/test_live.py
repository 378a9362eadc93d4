"""A region of a terminal that is redrawn below printed lines."""

from __future__ import annotations

import io
import os
import re
import sys

import pytest

from memoria.cli.screens.live import Region


class Terminal(io.StringIO):
    """Understands what a region writes; a line that is too long wraps."""

    columns = 20

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        rows, at = [""], 0
        text = re.sub(r"\033\[\?25[lh]", "", self.getvalue())
        for up, clear, line in re.findall(r"\033\[(\d+)A|(\033\[J)|(\n|[^\033\n\r]+)", text):
            if up:
                at -= int(up)
                assert at >= 0
            elif clear:
                rows[at:] = [""]
            elif line == "\n":
                at = len(rows)
                rows.append("")
            else:
                wrapped = [line[i : i + self.columns] for i in range(0, len(line), self.columns)]
                rows[at:] = wrapped
                at = len(rows) - 1
        return rows[:-1]


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def region(terminal: Terminal, lines: int = 24) -> Region:
    return Region(terminal, size=os.terminal_size((terminal.columns, lines)))


def test_it_is_replaced_and_what_is_printed_stays_above_it(terminal: Terminal) -> None:
    with region(terminal) as shown:
        shown.show(["one", "two"])
        shown.print("first\n")
        shown.show(["three"])
        shown.print("second\nthird\n")
        assert terminal.screen() == ["first", "second", "third", "three"]
        shown.show([])
    assert terminal.screen() == ["first", "second", "third"]


def test_the_cursor_is_hidden_only_meanwhile(terminal: Terminal) -> None:
    with region(terminal) as shown:
        shown.show(["one"])
        assert terminal.getvalue().startswith("\033[?25l")
        assert "\033[?25h" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\033[?25h")


def test_what_is_too_wide_or_too_high_is_cut(terminal: Terminal) -> None:
    with region(terminal, lines=3) as shown:
        shown.show(["lost", "a" * 30, "b"])
        assert terminal.screen() == ["a" * 20, "b"]


def test_lines_that_a_narrower_terminal_has_wrapped_are_erased_whole(terminal: Terminal) -> None:
    shown = region(terminal)
    with shown:
        shown.show(["a" * 18, "b"])
        shown._size = os.terminal_size((10, 24))
        shown.show(["c"])
    assert "\033[3A" in terminal.getvalue()


def test_lines_of_standard_error_stand_above_it(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    with region(terminal) as shown:
        shown.show(["one"])
        sys.stderr.write("a line")
        assert terminal.screen() == ["one"]
        sys.stderr.write(" of a log\n")
        assert terminal.screen() == ["a line of a log", "one"]
        sys.stderr.write("unfinished")
    assert sys.stderr is terminal
    assert terminal.screen() == ["a line of a log", "one"]
    assert "unfinished" in terminal.getvalue()


def test_standard_error_that_is_a_file_is_left_alone(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    with region(terminal) as shown:
        shown.show(["one"])
        sys.stderr.write("a line\n")
    assert (file.getvalue(), terminal.screen()) == ("a line\n", ["one"])
