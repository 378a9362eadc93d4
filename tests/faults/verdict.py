"""How an answer looks to its client: whole, refused, broken off with or without an error, or wrong.

Pure: bytes in, verdict out. A stream is whole when it has its finish, its usage, `[DONE]` and the end of its
framing; one that lacks any of them without an error is silently truncated, and that is wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    WHOLE = "whole"
    REFUSED = "refused"  # an error status in OpenAI's shape
    ERROR = "ended by an error event"  # no `[DONE]`, no end of the framing: memoria's own manner
    ENDED = "an error event and a clean end"  # vLLM's own manner when its core dies
    CUT = "cut without an event"  # only the broken framing shows it, as in the middle of a JSON body
    WRONG = "wrong"  # looks whole and is not: a silent truncation, or another's text
    LEFT = "left"  # by the client's own wish


FAILED = (Verdict.REFUSED, Verdict.ERROR, Verdict.ENDED, Verdict.CUT)
"""Every client can see these."""

TRUNCATED = "truncated in silence"

Judged = tuple[Verdict, str]
"""With the error's code, or another detail."""


@dataclass(frozen=True, slots=True)
class Result:
    """One request. `at` and `seconds` by the monotonic clock."""

    kind: str
    verdict: Verdict
    cause: str
    at: float
    seconds: float


@dataclass(slots=True)
class Streamed:
    """A streamed completion as read. `usage`: the tokens reported at its end; `after`: what came after an
    error or after `[DONE]` and does not belong there."""

    ended: bool
    texts: list[str]
    errors: list[str]
    usage: int | None = None
    finished: bool = False
    done: bool = False
    after: bool = False


def read_stream(body: bytes, *, ended: bool) -> Streamed:
    """`ended`: by its own framing. Half an event counts for nothing."""
    read = Streamed(ended, [], [])
    for event in body.decode().split("\n\n"):
        data = event.removeprefix("data: ")
        if data == "[DONE]":
            read.after |= read.done
            read.done = True
            continue
        try:
            value: dict[str, Any] = json.loads(data)
        except ValueError:
            continue
        if "error" in value:
            read.after |= read.done
            read.errors.append(str(value["error"]["code"]))
            continue
        read.after |= read.done or bool(read.errors)
        for choice in value["choices"]:
            read.texts.append(choice["text"])
            read.finished |= choice["finish_reason"] is not None
        if usage := value.get("usage"):
            read.usage = usage["completion_tokens"]
    return read


def judge_stream(read: Streamed, tokens: int) -> Judged:
    """The verdict on a stream of `tokens` tokens that should end with its usage."""
    if read.after:
        return Verdict.WRONG, "went on behind its end"
    if read.errors:
        return (Verdict.ENDED if read.done or read.ended else Verdict.ERROR), read.errors[-1]
    if read.finished and read.usage == tokens and read.done and read.ended:
        return Verdict.WHOLE, ""
    return (Verdict.WRONG, TRUNCATED) if read.done or read.ended else (Verdict.CUT, "no error event")


def judge_refusal(status: int, body: bytes, *, ended: bool) -> Judged:
    if not ended:
        return Verdict.CUT, f"half a {status}"
    try:
        return Verdict.REFUSED, str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError):
        return Verdict.WRONG, f"{status} without an error"
