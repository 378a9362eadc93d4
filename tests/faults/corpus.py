r"""Requests that no client should send, as data: tests/data/requests/*.txt, by what must come of them.

A file holds several: `== NAME`, then the request's bytes as text with \r, \n, \t, \\ and \xNN; ends of lines
in the file mean nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "data" / "requests"
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|[rnt\\])")
_PLAIN = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"\\": b"\\"}


def requests(name: str) -> dict[str, bytes]:
    """Of one file, by their names."""
    found: dict[str, bytes] = {}
    current = ""
    for line in (FOLDER / f"{name}.txt").read_bytes().splitlines():
        if line.startswith(b"== "):
            current = line[3:].decode()
            assert current not in found, f"{current} is there twice"
            found[current] = b""
        elif line and not line.startswith(b"#"):
            found[current] += _ESCAPE.sub(_unescape, line)
    return found


def written(data: bytes) -> str:
    """As it would stand in a file, a line for each end of line."""
    text = data.replace(b"\\", b"\\\\").replace(b"\r", b"\\r").replace(b"\t", b"\\t").replace(b"\n", b"\\n\n")
    return "".join(chr(byte) if 0x20 <= byte < 0x7F or byte == 0x0A else f"\\x{byte:02x}" for byte in text)


def _unescape(match: re.Match[bytes]) -> bytes:
    what = match[1]
    return bytes([int(what[1:], 16)]) if what[:1] == b"x" else _PLAIN[what]
