"""Every test here is marked `gpu`, and skipped where there is none. The report is written after each test,
and printed at the end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from memoria.gpu import open_reader
from tests.gpu import report as reports
from tests.gpu import starts
from tests.gpu.box import GpuBox
from tests.gpu.budget import Budget, in_order, part_of
from tests.gpu.dry import CpuBox, StubBox

HERE = Path(__file__).parent
DRY_RUN = "MEMORIA_GPU_DRY_RUN"
BOXES: dict[str, type[GpuBox]] = {"": GpuBox, "stub": StubBox, "cpu": CpuBox}
DAY = time.strftime("%Y-%m-%d")

Report = dict[str, Any]
_outcome = pytest.StashKey[str | None]()
_facts: dict[str, Any] = {}
_parts: dict[str, Any] = {}
_written: set[str] = set()
_budget = Budget.of_environment()


def kind() -> str:
    return os.environ.get(DRY_RUN, "")


def why_not() -> str | None:
    """Why nothing can be measured here; None where it can."""
    if kind():
        return None
    reader = open_reader("cuda")
    try:
        reader.snapshot(0)
    except Exception as error:
        return f"no NVIDIA GPU: {error} ({DRY_RUN}=stub tries the kit without one)"
    finally:
        reader.close()
    return None


@pytest.fixture(scope="session")
def gpu() -> None:
    assert kind() in BOXES, f"{DRY_RUN} is none of {sorted(BOXES)}"
    if reason := why_not():
        pytest.skip(reason)
    _facts.update(_machine())


def _machine() -> dict[str, Any]:
    vllm = os.environ.get("MEMORIA_GPU_VLLM", "auto")
    if kind() == "":
        return {"machine": reports.machine(), "versions": reports.versions(vllm, "cuda")}
    machine = {"gpu": kind()}
    return {
        "dry_run": kind(),
        "machine": machine,
        "versions": reports.versions(vllm, "cpu") if kind() == "cpu" else {},
    }


@pytest.fixture(scope="module")
def make_box(
    gpu: None, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[], GpuBox]:
    def make() -> GpuBox:
        library = request.getfixturevalue("nvml_library") if kind() == "stub" else None
        return BOXES[kind()](tmp_path_factory.mktemp("box"), library)

    return make


@pytest.fixture
def gpu_box(make_box: Callable[[], GpuBox]) -> Iterator[GpuBox]:
    with ExitStack() as stack:
        box = make_box()
        stack.callback(box.close)
        yield box


@pytest.fixture(scope="module")
def first_start(make_box: Callable[[], GpuBox]) -> Iterator[dict[str, Any]]:
    """What three tests look at: a start takes minutes."""
    with ExitStack() as stack:
        box = make_box()
        stack.callback(box.close)
        yield starts.first_start(box)


@pytest.fixture
def report(gpu: None, request: pytest.FixtureRequest) -> Iterator[Report]:
    """What a test puts into it is in the report, also where the test fails then."""
    figures: Report = {}
    yield figures
    failure = request.node.stash.get(_outcome, "it was broken off")
    _parts.update({name: reports.part(found, failure) for name, found in figures.items()})
    if figures and not kind():
        _written.add(str(reports.save(reports.RESULTS, DAY, _facts, _parts)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    told = yield
    if told.when == "call":
        error = call.excinfo
        item.stash[_outcome] = error.exconly() if told.failed and error is not None else None
    return told


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    own = [item for item in items if HERE in item.path.parents]
    for item in own:
        item.add_marker(pytest.mark.gpu)
    if _budget is not None:
        items[:] = [*(item for item in items if item not in own), *in_order(own)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    if _budget is None or HERE not in item.path.parents:
        return (yield)
    if reason := _budget.why_not(part_of(item)):
        pytest.skip(reason)
    with _budget.limited():  # the first start is in a fixture
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    if _budget is None or HERE not in item.path.parents:
        return (yield)
    with _budget.limited():
        return (yield)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _parts:
        terminalreporter.section("GPU report")
        terminalreporter.write_line(json.dumps({**_facts, "parts": _parts}, indent=2))
        for path in sorted(_written):
            terminalreporter.write_line(f"written to {path}")
