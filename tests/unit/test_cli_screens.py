"""Every picture of the running daemon, at 80 and 120 columns, with and without colour: golden files.

`MEMORIA_UPDATE_GOLDEN=1` writes them anew; look at what changed.
"""

from __future__ import annotations

import re

import pytest

from memoria.cli.live import cut
from memoria.cli.render_requests import HEADER, render_requests
from memoria.cli.render_status import render_status
from memoria.cli.render_top import render_top
from tests.unit.status_examples import DEGRADED, EVENTS, HEALTHY
from tests.unit.test_cli_render_plan import check_golden

SIZES = [80, 120]
PAINTS = [True, False]
STATUSES = {"healthy": HEALTHY, "degraded": DEGRADED}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(time, "localtime", time.gmtime)


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("color", PAINTS)
@pytest.mark.parametrize("name", STATUSES)
def test_the_status_table(name: str, width: int, color: bool) -> None:
    picture = render_status(STATUSES[name], width=width, color=color)
    check_golden(f"status-{name}-{width}-{'color' if color else 'plain'}", picture)


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("color", PAINTS)
@pytest.mark.parametrize("name", STATUSES)
def test_top(name: str, width: int, color: bool) -> None:
    picture = render_top(STATUSES[name], EVENTS, width=width, color=color)
    check_golden(f"top-{name}-{width}-{'color' if color else 'plain'}", picture)
    plain = [re.sub(r"\033\[\d+m", "", line) for line in picture.splitlines()]
    table_only = [line for line in plain if not line.startswith("generation:")]  # a reason may wrap
    assert max(map(len, table_only)) <= width


@pytest.mark.parametrize(
    ("line", "width", "shown"),
    [
        ("abcdef", 3, "abc"),
        ("\033[31mabcdef\033[0m", 3, "\033[31mabc\033[0m"),
        ("ab\033[31mcd\033[0mef", 5, "ab\033[31mcd\033[0me"),
        ("abc", 80, "abc"),
    ],
)
def test_a_line_is_cut_at_the_terminals_width_and_its_colour_ends(line: str, width: int, shown: str) -> None:
    assert cut(line, width) == shown


REQUEST = {
    "number": 1,
    "at": 1_700_000_000.0,
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
REQUESTS = [
    REQUEST,
    {**REQUEST, **UNANSWERED, "duration_s": 0.0004},
    {**REQUEST, "status": 502, "key": "chat", "aborted": True, "replays": 1, "duration_s": 0.5},
]


@pytest.mark.parametrize("color", PAINTS)
def test_requests(color: bool) -> None:
    picture = "\n".join([HEADER, *(render_requests(row, color=color) for row in REQUESTS)])
    check_golden(f"requests-{'color' if color else 'plain'}", picture)
