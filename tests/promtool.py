"""Prometheus's own opinion, by the tools of Debian's package `prometheus`."""

from __future__ import annotations

import subprocess


def complaints(exposition: str) -> list[str]:
    """Of `promtool check metrics`, on syntax and names; vLLM's own names, which it does not like, left out.
    Needs `apt-get install prometheus`."""
    ended = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition, capture_output=True, text=True, check=False
    )
    said = (ended.stdout + ended.stderr).splitlines()
    assert ended.returncode in (0, 3), said  # 3: there are complaints
    return [line for line in said if not line.startswith("vllm:")]
