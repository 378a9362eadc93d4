"""How a client's connection ends where a plain close would say too much, or too little."""

from __future__ import annotations

import asyncio
import socket
import struct

_LINGER_S = 1.0  # for a client that is still sending when it has been told no
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


def linger(transport: asyncio.Transport) -> None:
    """Says that no more will be sent, and lets the client read it: a close with bytes unread could take the
    answer away again."""
    transport.write_eof()
    asyncio.get_running_loop().call_later(_LINGER_S, transport.abort)


def reset(transport: asyncio.Transport) -> None:
    """So that what the client has of an answer is not taken for the whole."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
