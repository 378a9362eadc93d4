"""The program of the stand-in."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

CONTROL = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"]) / "control"


def tell(what: str, pid: int) -> None:
    with Path(os.environ["STUB_MPS_EVENTS"]).open("a") as file:
        file.write(f"{what} {pid}\n")


def serve() -> None:
    server: subprocess.Popen[bytes] | None = None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(CONTROL))
        listener.listen()
        tell("control up", os.getpid())
        while True:
            client, _ = listener.accept()
            with client:
                if client.recv(64) == b"quit\n":
                    break
                if server is None or server.poll() is not None:
                    server = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])
                    tell("server up", server.pid)
                client.sendall(b"ok\n")
    tell("quit", os.getpid())
    if server is not None:
        server.send_signal(signal.SIGKILL)
        server.wait()


def command() -> int:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(CONTROL))
            client.sendall(sys.stdin.buffer.readline())
    except OSError:
        sys.stdout.write("Cannot find MPS control daemon process\n")
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["-f"]:
        serve()
    else:
        sys.exit(command())
