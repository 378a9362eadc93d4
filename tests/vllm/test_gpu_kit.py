"""The GPU kit with real vLLM on the CPU: what it reads and does is vLLM's, not the stub's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_kit_starts_real_engines_with_memoria_and_by_hand_and_reads_their_kv_caches() -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            "-m",
            "gpu",
            "tests/gpu",
            "-k",
            "race",
        ],
        cwd=ROOT,
        env={**os.environ, "MEMORIA_GPU_DRY_RUN": "cpu", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    assert "1 passed" in ended.stdout
    assert ended.stdout.count('"kv_tokens": 131072') == 2
