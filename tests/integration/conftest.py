"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.daemon import Box
from tests.stub_engine import StubVllm
from tests.stub_engine.process import StartStub, StubProcess


@pytest.fixture
def stub_vllm(tmp_path: Path) -> StubVllm:
    return StubVllm(tmp_path)


@pytest.fixture
def start_stub(stub_vllm: StubVllm, tmp_path: Path) -> Iterator[StartStub]:
    """Starts stub engines without memoria, one at a time; what is left of them is killed afterwards."""
    started: list[StubProcess] = []

    def start(*argv: str, env: Mapping[str, str] | None = None) -> StubProcess:
        started.append(StubProcess(stub_vllm, tmp_path, argv, env))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def box(tmp_path: Path, nvml_library: Path) -> Iterator[Box]:
    """A machine with `memoria` on it; whatever runs there is killed afterwards."""
    box = Box(tmp_path, nvml_library)
    yield box
    box.close()
