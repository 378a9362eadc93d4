"""What memoria supervises in the benchmark in place of `vllm serve`: it passes the GPU gate as vLLM's engine
core does, and then does nothing: at its socket the benchmark's upstream ($UPSTREAM) answers.

Started as a script, with vLLM's arguments; only the standard library is there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from importlib.metadata import entry_points


def main() -> None:
    multiprocessing.current_process().name = "EngineCore"  # memoria's passenger knows its role by this
    for plugin in entry_points(group="vllm.general_plugins"):
        plugin.load()()
    os.symlink(os.environ["UPSTREAM"], sys.argv[sys.argv.index("--uds") + 1])  # noqa: PTH211
    print("INFO:     Application startup complete.", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
