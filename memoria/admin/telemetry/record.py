"""One request that is over, as the request log and the recent requests tell it."""

from __future__ import annotations

import re
from typing import NamedTuple

from memoria.proxy.exchange.record import RequestRecord

# OpenAI's names, and those of /v1/responses and /v1/messages. Within a JSON text the quotes of a model that
# writes about "usage" are escaped, so that it cannot be mistaken for this.
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,12})')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,12})')


class Record(NamedTuple):  # a tuple, as there may be one for each of 20 000 requests a second
    """`at` is the wall-clock time of its end; times in seconds. None: not known, or not reached. `aborted`:
    its answer did not reach the client whole."""

    number: int
    at: float
    id: str
    client: str
    key: str | None
    method: str
    route: str | None
    engine: str | None
    status: int
    request_bytes: int
    response_bytes: int
    first_byte_s: float | None
    duration_s: float
    prompt_tokens: int | None
    completion_tokens: int | None
    aborted: bool
    replays: int


def make_record(number: int, at: float, record: RequestRecord) -> Record:
    prompt, completion = tokens(record.ends)
    return Record(
        number,
        at,
        record.request_id,
        record.client,
        record.key,
        record.method,
        record.route,
        record.engine,
        record.status,
        record.request_bytes,
        record.response_bytes,
        record.first_byte_s,
        record.duration_s,
        prompt,
        completion,
        not record.complete,
        record.replays,
    )


def tokens(ends: bytes) -> tuple[int | None, int | None]:
    """Of the prompt and of the completion, by what an answer begins and ends with; None where that does not
    say."""
    at = ends.rfind(b'"usage"')
    if at < 0 or _USAGE.match(ends, at) is None:
        return None, None
    prompt, completion = _PROMPT.search(ends, at), _COMPLETION.search(ends, at)
    return (int(prompt[1]) if prompt else None, int(completion[1]) if completion else None)
