"""One line of a vLLM log without its decoration."""

from __future__ import annotations

import re

LONGEST = 4096  # characters; what follows is never looked at

# ECMA-48: control sequences (colours), strings such as a window's title or a link, and all shorter ones
_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]|$)|\x9b[0-?]*[ -/]*[@-~]"
)

# `(EngineCore pid=4501) INFO 11-23 14:22:28 [core.py:402] text`; a message of several lines repeats it
# (vllm/logging_utils, NewLineFormatter). tqdm, tracebacks and uvicorn's lines carry a part of it, or none.
_PREFIX = re.compile(
    r"(?:\([A-Za-z][\w ]{0,60} pid=\d{1,10}\) ?)?"
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]{1,80}\] ?)?"
)


def text_of(line: str) -> str:
    """Without terminal escapes and without vLLM's prefix of process, level, time and place.
    Takes time linear in the line's length, whatever it holds."""
    line = _ESCAPE.sub("", line[:LONGEST])
    match = _PREFIX.match(line)
    return line[match.end() :] if match else line
