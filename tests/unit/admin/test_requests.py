"""The most recent requests, and the request log."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from memoria.admin.telemetry import requests as requests_module
from memoria.admin.telemetry.requests import BATCH, KEPT, RequestLog, Requests, line, tokens
from memoria.config.model import Logging
from memoria.errors import UnavailableError
from memoria.proxy.exchange.record import RequestRecord

USAGE = b'..."finish_reason":"stop"}],"usage":{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3}}'
EXCHANGE = RequestRecord(
    "abc",
    "generation",
    "/v1/completions",
    200,
    4511,
    0.011,
    0.0123,
    True,
    0,
    "POST",
    "chat",
    "::1",
    52,
    USAGE,
)


@pytest.fixture
def logging_(tmp_path: Path) -> Logging:
    return Logging(dir=tmp_path)


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        (USAGE, (5, 3)),
        (
            b'data: {"choices":[],"usage": {"prompt_tokens": 5, "completion_tokens": 3}}\n\ndata: [DONE]\n\n',
            (5, 3),
        ),
        (b'"usage":{"prompt_tokens":7,"total_tokens":7,"completion_tokens":0}}', (7, 0)),
        (b'"usage":{"input_tokens":5,"output_tokens":3,"x":1}}', (5, 3)),
        (b'"usage":null}', (None, None)),
        (rb'{"text":"\"usage\":{\"prompt_tokens\":1}"}', (None, None)),
        (b"", (None, None)),
    ],
)
def test_tokens_are_read_from_the_end_of_an_answer(tail: bytes, found: tuple[int | None, int | None]) -> None:
    assert tokens(tail) == found


async def test_the_last_requests_are_kept_in_order_without_their_text() -> None:
    requests = Requests(None)
    for number in range(KEPT + 3):
        requests.add_request(EXCHANGE._replace(request_id=str(number)))
    found = requests.requests_after(0, KEPT)
    assert [record["id"] for record in found] == [str(number) for number in range(3, KEPT + 3)]
    assert [record["number"] for record in found[:2]] == [4, 5]
    assert [record["id"] for record in requests.requests_after(KEPT + 1, 10)] == [
        str(KEPT + 1),
        str(KEPT + 2),
    ]
    assert [record["id"] for record in requests.requests_after(0, 1)] == [str(KEPT + 2)]
    assert requests.requests_after(KEPT + 3, 10) == []
    another_daemons = requests.requests_after(999_999, 1)
    assert [record["id"] for record in another_daemons] == [str(KEPT + 2)]
    assert b"finish_reason" not in repr(found).encode()
    assert (found[0]["prompt_tokens"], found[0]["completion_tokens"], found[0]["key"]) == (5, 3, "chat")


def test_a_line_is_text_or_json(logging_: Logging) -> None:
    rows = written(logging_, [EXCHANGE, EXCHANGE._replace(complete=False, replays=1, key=None, ends=b"")])
    whole, aborted = (row.partition(" ")[2] for row in rows)
    assert whole == (
        "200 POST /v1/completions engine=generation total=12.3ms first=11.0ms in=52 out=4511 tokens=5+3 "
        "key=chat client=::1 id=abc"
    )
    assert aborted.endswith("out=4511 client=::1 id=abc aborted replayed")
    row = json.loads(written(replace(logging_, dir=logging_.dir / "json"), [EXCHANGE], "json")[0])
    assert (row["status"], row["completion_tokens"], row["aborted"]) == (200, 3, False)
    assert row["time"][4] == "-"


def test_no_client_forges_a_line(logging_: Logging) -> None:
    (row,) = written(logging_, [EXCHANGE._replace(client="x\n200 GET /forged", route=None, engine=None)])
    assert "\\n200 GET" in row


def written(logging_: Logging, exchanges: list[RequestRecord], form: str = "text") -> list[str]:
    async def answer() -> None:
        requests = Requests(RequestLog(logging_, form))  # type: ignore[arg-type]
        for record in exchanges:
            requests.add_request(record)
        requests.close()

    asyncio.run(answer())
    return (logging_.dir / "memoria.requests.log").read_text().splitlines()


def test_the_log_is_rotated(logging_: Logging) -> None:
    for _ in range(3):
        written(replace(logging_, max_bytes=1000, keep=2), [EXCHANGE] * BATCH)
    assert sorted(path.name for path in logging_.dir.iterdir()) == [
        "memoria.requests.log",
        "memoria.requests.log.1",
        "memoria.requests.log.2",
    ]


def test_a_slow_disk_delays_no_request_and_what_it_misses_is_counted(
    logging_: Logging, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(logging_.dir / "memoria.requests.log")
    reader = os.open(logging_.dir / "memoria.requests.log", os.O_RDONLY | os.O_NONBLOCK)
    monkeypatch.setattr(requests_module, "CLOSE_TIMEOUT", 0.05)

    log = RequestLog(logging_, "text")

    async def answer() -> None:
        batch = [(0.0, EXCHANGE)] * BATCH
        for _ in range(requests_module.MAX_QUEUED // BATCH + 2):
            log.write(batch)
        log.close()

    asyncio.run(answer())
    assert log.dropped == 2 * BATCH
    os.close(reader)
    monkeypatch.undo()
    log.close()


def test_a_full_disk_is_logged_once_and_counted(logging_: Logging, caplog: pytest.LogCaptureFixture) -> None:
    (logging_.dir / "memoria.requests.log").symlink_to("/dev/full")

    async def answer() -> int:
        requests = Requests(RequestLog(logging_, "text"))
        for _ in range(BATCH * 2):
            requests.add_request(EXCHANGE)
        requests.close()
        return requests.not_logged

    assert asyncio.run(answer()) == BATCH * 2
    assert caplog.text.count("requests are not logged") == 1


def test_a_log_that_cannot_be_written_is_an_error_before_anything_starts(logging_: Logging) -> None:
    (logging_.dir / "memoria.requests.log").mkdir()
    with pytest.raises(UnavailableError, match="cannot write the log file"):
        RequestLog(logging_, "text")


def test_what_is_not_known_is_not_written() -> None:
    refused = RequestRecord("a", None, None, 401, 10, None, 0.001, True, 0)
    assert not json.loads(line(0.0, refused, "json")).keys() & {"key", "engine", "route", "prompt_tokens"}
    assert line(0.0, refused, "text").endswith(" 401 - - total=1.0ms in=0 out=10 client=- id=a\n")
