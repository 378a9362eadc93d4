"""Pieces of a body whose length is not known (RFC 9112 7.1).

Engines write an event, and with it a chunk, at a time, so that a read mostly brings a whole one. It is known
by its length: of the chunks, only one has that, and one size line to begin with.
"""

from __future__ import annotations

LONGEST = 2048  # bytes of a chunk that is known by its length
END = b"\r\n"
LAST = b"0\r\n\r\n"


def chunk(piece: bytes) -> bytes:
    """Of a piece that is not empty."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def data_of(chunk: bytes) -> bytes:
    """Of a chunk without extensions."""
    return chunk[chunk.index(END) + len(END) : -len(END)]


def _by_length() -> list[tuple[bytes, int]]:
    found = [(b"", 0)] * (LONGEST + 1)
    for size in range(1, LONGEST):
        line = b"%x\r\n" % size
        whole = len(line) + size + len(END)
        if whole <= LONGEST:
            found[whole] = line, size
    return found


# By a chunk's length: its size line, and the bytes of its data (0: no chunk has that length)
BY_LENGTH = _by_length()
