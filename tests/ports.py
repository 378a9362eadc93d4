"""TCP ports for the servers that tests start."""

from __future__ import annotations

import itertools
import os
import socket

# Below the range from which Linux gives outgoing connections theirs, so that none takes a port between the
# choice and the server's start; and each process of the tests chooses from a part of its own.
FIRST, PART, PARTS = 10_000, 400, 56
_candidates = itertools.cycle(range(PART))


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free; none is given out twice before the whole part was."""
    start = FIRST + os.getpid() % PARTS * PART
    found: list[int] = []
    while len(found) < count:
        port = start + next(_candidates)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.append(port)
    return found
