"""A line of a log without its decoration."""

from __future__ import annotations

import pytest

from memoria.vllm.log_lines import text_of


@pytest.mark.parametrize(
    "escape",
    [
        "\x1b[1;31m",
        "\x1b[?25l",
        "\x1b[2J",
        "\x9b31m",
        "\x1b]0;a title\x07",
        "\x1b]8;;https://example.org\x1b\\",
        "\x1bPq#0;2;0;0;0\x1b\\",
        "\x1b(B",
        "\x1b7",
        "\x1bc",
        "\x1bM",
    ],
)
def test_terminal_escapes_of_every_kind_are_taken_out(escape: str) -> None:
    assert text_of(f"{escape}CUDA out {escape}of memory{escape}") == "CUDA out of memory"


@pytest.mark.parametrize("unfinished", ["\x1b", "\x1b[", "\x1b[31", "\x1b]0;title", "\x1b]0;ti\x1b"])
def test_an_escape_that_is_cut_off_does_no_harm(unfinished: str) -> None:
    assert "\x1b" not in text_of(f"text{unfinished}")
    assert text_of(f"text{unfinished}").startswith("text")


def test_vllms_prefix_is_taken_out() -> None:
    line = "\x1b[0;36m(EngineCore pid=4501)\x1b[0;0m INFO 11-23 14:22:28 [core.py:402] text"
    assert text_of(line) == "text"
