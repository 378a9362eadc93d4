"""Plugins as vLLM loads them (vllm/plugins/__init__.py)."""

from __future__ import annotations

import os
from importlib.metadata import entry_points

from tests.stub_engine.faults import Faults


def load_general_plugins(faults: Faults) -> None:
    if faults.without_plugins:
        return
    allowed = os.environ["VLLM_PLUGINS"].split(",") if "VLLM_PLUGINS" in os.environ else None
    for plugin in entry_points(group="vllm.general_plugins"):
        if allowed is None or plugin.name in allowed:
            plugin.load()()
