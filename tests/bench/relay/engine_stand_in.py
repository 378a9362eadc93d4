"""What memoria supervises in the benchmark in place of `vllm serve`: it passes the GPU gate as vLLM's engine
core does, and then does nothing. Where it should listen the benchmark's upstream answers: its socket is
$UPSTREAM, or it takes the port's socket at $PASS.

Started as a script, with vLLM's arguments; only the standard library is there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from importlib.metadata import entry_points
from pathlib import Path


def main() -> None:
    multiprocessing.current_process().name = "EngineCore"  # memoria's passenger knows its role by this
    for plugin in entry_points(group="vllm.general_plugins"):
        plugin.load()()
    if "--uds" in sys.argv:
        Path(sys.argv[sys.argv.index("--uds") + 1]).symlink_to(os.environ["UPSTREAM"])
    else:
        listener = socket.create_server(
            ("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), backlog=4096
        )
        with socket.socket(socket.AF_UNIX) as upstream:
            upstream.connect(os.environ["PASS"])
            socket.send_fds(upstream, [b"."], [listener.fileno()])
    print("INFO:     Application startup complete.", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
