"""The examples for clients in configs/README.md, run as they stand there against real engines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import need
from tests.vllm.daemon import REPOSITORY, RealDaemon

SHOWN = "http://127.0.0.1:8200"  # the address in the examples
PATIENCE = 120.0  # seconds; importing some of them takes a while
OPENAI = "openai@6"  # of npm


def _examples() -> dict[str, tuple[str, str]]:
    """Language and code of each example, by the name of its client."""
    text = (REPOSITORY / "configs" / "README.md").read_text()
    section = text.partition("\n## Clients\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\*\*(\w+)\*\*.*?^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return {name: (language, code) for name, language, code in found}


EXAMPLES = _examples()
ENDINGS = {"python": ".py", "js": ".mjs", "sh": ".sh"}


def test_every_client_that_is_tried_has_an_example() -> None:
    assert list(EXAMPLES) == ["openai", "LangChain", "LlamaIndex", "LiteLLM", "Node", "fetch", "curl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


@pytest.fixture(scope="module")
def openai_for_node(folder: Path) -> None:
    """npm's `openai`, where a script in `folder` finds it."""
    install = [need("npm"), "install", "--no-audit", "--no-fund", "--prefix", str(folder), OPENAI]
    done = subprocess.run(install, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def _command(language: str) -> list[str]:
    if language == "python":
        return [sys.executable]
    if language == "js":
        return [need("node")]
    need("curl")
    return ["bash", "-e"]


def run(daemon: RealDaemon, name: str, folder: Path) -> str:
    language, code = EXAMPLES[name]
    command = _command(language)
    assert SHOWN in code
    script = folder / f"with_{name.lower()}{ENDINGS[language]}"
    script.write_text(code.replace(SHOWN, daemon.url))
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "ignore"}  # no prices from the network
    ended = subprocess.run(
        [*command, str(script)],
        env={**os.environ, **quiet},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "curl"])
def test_an_example_embeds_and_writes(
    daemon: RealDaemon, name: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    if name == "Node":
        request.getfixturevalue("openai_for_node")
    dimensions, _, text = run(daemon, name, folder).partition("\n")
    assert dimensions == "64"
    assert len(text.strip()) > 3


def test_the_example_for_curl_embeds_and_writes(daemon: RealDaemon, folder: Path) -> None:
    embedded, _, streamed = run(daemon, "curl", folder).partition("data: ")
    assert len(json.loads(embedded)["data"][0]["embedding"]) == 64
    assert streamed.rstrip().endswith("data: [DONE]")
