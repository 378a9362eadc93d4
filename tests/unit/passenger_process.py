"""Plays vLLM's processes for test_passenger.py: loads plugins as vllm/plugins/__init__.py does, then idles.

Arguments: "core" starts a child named EngineCore; "fork" forks one that loads nothing; "twice" calls twice.
A file named as the second argument is a FIFO: the child opens it before it loads its plugins.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from importlib.metadata import entry_points
from pathlib import Path


def load_plugins() -> None:
    for plugin in entry_points(group="vllm.general_plugins"):
        plugin.load()()


def run_engine_core(fifo: str | None) -> None:
    if fifo:
        Path(fifo).read_bytes()
    load_plugins()
    print("core through", flush=True)
    signal.pause()


def main() -> None:
    play, *more = sys.argv[1:]
    load_plugins()
    if play == "twice":
        load_plugins()
    if play == "core":
        context = multiprocessing.get_context("spawn")
        core = context.Process(target=run_engine_core, args=(more[0] if more else None,), name="EngineCore")
        core.start()
        print(f"core {core.pid}", flush=True)
    if play == "fork":
        child = os.fork()
        if child == 0:
            signal.pause()
        print(f"child {child}", flush=True)
    print("leader through", flush=True)
    if play != "once":
        signal.pause()


if __name__ == "__main__":
    main()
