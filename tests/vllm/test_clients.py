"""The README's examples for other programs, run as they stand there against real engines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vllm.daemon import REPOSITORY, RealDaemon

SHOWN = "http://127.0.0.1:8200"  # the address in the README
PATIENCE = 120.0  # seconds; importing some of them takes a while


def _examples() -> dict[str, str]:
    """Under the README's headings for programs, by name."""
    section = (REPOSITORY / "README.md").read_text().partition("\n## Integration\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\*\*(\w+)\*\*.*?^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return {name: code for name, language, code in found if language == "python"}


EXAMPLES = _examples()


def test_the_readme_shows_every_client_that_is_tried() -> None:
    assert list(EXAMPLES) == ["openai", "LangChain", "LlamaIndex", "LiteLLM"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_readme_embeds_and_writes(daemon: RealDaemon, name: str, tmp_path: Path) -> None:
    script = tmp_path / f"with_{name.lower()}.py"
    assert SHOWN in EXAMPLES[name]
    script.write_text(EXAMPLES[name].replace(SHOWN, daemon.url))
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "ignore"}  # no prices from the network
    ended = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, **quiet},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    dimensions, _, text = ended.stdout.partition("\n")
    assert dimensions == "64"
    assert len(text.strip()) > 3
