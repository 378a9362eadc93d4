"""The TCP port of an engine (`transport: tcp`): whether it is free, and whether the engine itself listens
there. Another process would get its requests. Every call blocks."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection

from memoria.errors import Problem
from memoria.gpu.host import describe

HOST = "127.0.0.1"


def problem_of(port: int) -> Problem | None:
    """Why an engine could not listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return taken(port, holders(port))
            return Problem(f"cannot listen on port {port}: {error.strerror}")
    return None


def taken(port: int, where: Collection[str]) -> Problem:
    return Problem(f"port {port} is in use", tuple(where), "stop that process, or choose another port")


def holders(port: int) -> list[str]:
    """The processes that listen on a port, as far as this user may see them."""
    import psutil  # noqa: PLC0415 - only needed to explain a failure

    found = []
    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.laddr.port != port:
            continue
        if connection.pid is None:
            found.append("held by a process of another user")
            continue
        user, command = describe(connection.pid)
        found.append(f"pid {connection.pid}  {user or '-'}  {command or '-'}")
    return sorted(set(found))


def listens(pids: Collection[int], port: int) -> bool:
    """Whether one of these processes listens on that port."""
    import psutil  # noqa: PLC0415 - most engines listen on a Unix socket

    for pid in pids:
        try:
            connections = psutil.Process(pid).net_connections("tcp")
        except psutil.Error:  # it has ended
            continue
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
            return True
    return False
