"""A machine with `memoria` on it, as in the integration tests; one daemon for the tests of a module."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from memoria.text import GIB
from tests.browser.acts import ADMIN, READY, write_keys
from tests.browser.chromium import Page, browser_page
from tests.integration.conftest import box
from tests.integration.daemon import Box, RunningDaemon
from tests.stub_nvml import StubProcess

__all__ = ["box"]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"), nvml_library)
    write_keys(box.folder / "admins", ana=ADMIN)
    box.configure(top="admin_keys: ./admins")
    box.use_gpu(processes=[StubProcess(os.getpid(), 2)])
    box.vllm.set_faults("embedding", gpu_bytes=29 * GIB)
    box.vllm.set_faults("generation", token_seconds=0.02)
    yield box
    box.close()


@pytest.fixture(scope="module")
def daemon(machine: Box) -> Iterator[RunningDaemon]:
    daemon = machine.start()
    daemon.until_ready()
    yield daemon
    assert daemon.stop() == 0


@pytest.fixture
async def page(daemon: RunningDaemon) -> AsyncIterator[Page]:
    await asyncio.to_thread(daemon.until_ready)
    async with browser_page(f"http://127.0.0.1:{daemon.box.ports.main}/") as page:
        await page.until(READY)
        yield page
