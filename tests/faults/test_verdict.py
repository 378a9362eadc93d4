"""The verdict on an answer must itself be right."""

from __future__ import annotations

import pytest

from tests.faults.verdict import Judged, Verdict, judge_refusal, judge_stream, read_stream
from tests.stub_engine import answers

TOKENS = 2
FIRST = answers.chunk("id", "m", 0, "a", last=False, chat=False)
LAST = answers.chunk("id", "m", 0, "b", last=True, chat=False)
USAGE = answers.event({"id": "id", "choices": [], "usage": answers.usage("x", TOKENS)})
ERROR = answers.event(answers.error("gone", "server_error", 500))
WHOLE = (Verdict.WHOLE, "")
TRUNCATED = (Verdict.WRONG, "truncated in silence")
CUT = (Verdict.CUT, "no error event")
BEHIND = (Verdict.WRONG, "went on behind its end")


@pytest.mark.parametrize(
    ("parts", "ended", "judged"),
    [
        ((FIRST, LAST, USAGE, answers.DONE), True, WHOLE),
        ((FIRST, LAST, USAGE, answers.DONE), False, TRUNCATED),
        ((FIRST, LAST, USAGE), True, TRUNCATED),
        ((FIRST, LAST, answers.DONE), True, TRUNCATED),
        ((FIRST, USAGE, answers.DONE), True, TRUNCATED),
        ((FIRST,), True, TRUNCATED),
        ((), True, TRUNCATED),
        ((FIRST,), False, CUT),
        ((FIRST, LAST[:9]), False, CUT),
        ((FIRST, ERROR), False, (Verdict.ERROR, "500")),
        ((FIRST[:9], b"\n\n", ERROR), False, (Verdict.ERROR, "500")),
        ((FIRST, ERROR, ERROR), False, (Verdict.ERROR, "500")),
        ((FIRST, ERROR), True, (Verdict.ENDED, "500")),
        ((FIRST, ERROR, answers.DONE), True, (Verdict.ENDED, "500")),
        ((FIRST, ERROR, answers.DONE), False, (Verdict.ENDED, "500")),
        ((FIRST, ERROR, LAST), False, BEHIND),
        ((FIRST, answers.DONE, ERROR), True, BEHIND),
        ((FIRST, LAST, USAGE, answers.DONE, answers.DONE), True, BEHIND),
    ],
)
def test_a_stream_is_whole_or_says_why_not(parts: tuple[bytes, ...], ended: bool, judged: Judged) -> None:
    assert judge_stream(read_stream(b"".join(parts), ended=ended), TOKENS) == judged


@pytest.mark.parametrize(
    ("body", "ended", "verdict"),
    [
        (b'{"error":{"code":"engine_lost"}}', True, Verdict.REFUSED),
        (b'{"error":{"code":"engine_lost"}}', False, Verdict.CUT),
        (b"{}", True, Verdict.WRONG),
        (b"Internal Server Error", True, Verdict.WRONG),
    ],
)
def test_a_refusal_has_an_error(body: bytes, ended: bool, verdict: Verdict) -> None:
    assert judge_refusal(503, body, ended=ended)[0] is verdict
