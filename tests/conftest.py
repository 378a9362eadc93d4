"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import settings

from memoria.admin.telemetry.loop_lag import LoopLag
from tests.faults.report import figure, pytest_terminal_summary
from tests.programs import need_compiler
from tests.stub_nvml import NvmlStub, build_library

__all__ = ["figure", "pytest_terminal_summary"]  # pytest finds fixtures and hooks here by their names

# A quarter of the examples will do while one changes something and waits; `.ci/run` tries all. No deadline:
# how long one example takes says more about the machine's other work than about memoria.
settings.register_profile("here", deadline=None, max_examples=25)
settings.register_profile("ci", deadline=None, max_examples=100)
settings.load_profile("ci" if os.environ.get("CI") else "here")

# A background job may have these ignored (`nohup`, a shell without job control), and hands that on: what the
# tests start must see them as in a terminal.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler)


# Each of these wants the machine's cores for itself: two real engines, a browser, a measurement.
ONE_AT_A_TIME = ("bench", "browser", "gpu", "vllm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups for `pytest -n 2 --dist loadgroup`: a file's tests share its fixtures, and so one process. What
    wants the machine for itself is one group, and comes last."""

    def is_alone(item: pytest.Item) -> bool:
        return item.path.relative_to(Path(__file__).parent).parts[0] in ONE_AT_A_TIME

    items.sort(key=is_alone)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("alone" if is_alone(item) else str(item.path)))


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_compiler()
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
async def loop_lag() -> AsyncIterator[LoopLag]:
    """Watches the event loop of an asynchronous test: `longest` is its longest delay, to a millisecond."""
    lag = LoopLag(busy=0.001, idle=0.001)
    with lag.watching():
        yield lag


@pytest.fixture
def nvml_stub(tmp_path: Path, nvml_library: Path) -> NvmlStub:
    return NvmlStub(tmp_path, nvml_library)
