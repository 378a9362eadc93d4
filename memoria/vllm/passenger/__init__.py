"""memoria's vLLM plugin: a passenger in every process of an engine, imported only by vLLM.

On an engine's PYTHONPATH, `PLUGIN_DIR` is all that vLLM's plugin loader needs: one module, and metadata that
names it. Nothing is installed into vLLM's environment.
"""

from __future__ import annotations

from pathlib import Path

PLUGIN_DIR = Path(__file__).parent / "on_path"
