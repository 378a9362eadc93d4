"""A stand-in for NVIDIA's `nvidia-cuda-mps-control`: a control daemon with its server, without a GPU.

    stub = StubMps(folder)
    box.start(PATH=stub.path)         # memoria finds it there
    stub.events()                     # "control up", "server up", "quit", each with its pid

As far as is documented: `-f` stays in the foreground, the socket `control` is in CUDA_MPS_PIPE_DIRECTORY, the
first client starts the server, the next one does so again after it has died, and without `-f` commands are
read from standard input. `connect` is what a client's CUDA does.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

_SCRIPT = Path(__file__).with_name("control.py")


class StubMps:
    """`broken`: the control daemon says so, and ends at once."""

    def __init__(self, folder: Path, *, broken: bool = False) -> None:
        self._events = folder / "mps_events.txt"
        self._events.touch()
        program = folder / "mps-bin" / "nvidia-cuda-mps-control"
        program.parent.mkdir()
        run = f"export STUB_MPS_EVENTS='{self._events}'\nexec '{sys.executable}' -S '{_SCRIPT}' \"$@\"\n"
        program.write_text("#!/bin/sh\n" + ("echo no GPU for MPS >&2; exit 1\n" if broken else run))
        program.chmod(0o755)
        self.path = f"{program.parent}:{os.environ['PATH']}"

    def events(self) -> list[tuple[str, int]]:
        lines = (line.rpartition(" ") for line in self._events.read_text().splitlines())
        return [(what, int(pid)) for what, _, pid in lines]

    def pids(self, what: str) -> list[int]:
        return [pid for name, pid in self.events() if name == what]


def connect() -> None:
    """Has a server started, if there is a control daemon; else, as CUDA does, goes on without MPS."""
    if not (pipes := os.environ.get("CUDA_MPS_PIPE_DIRECTORY")):
        return
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{pipes}/control")
            client.sendall(b"client\n")
            client.recv(64)
    except OSError:
        return
