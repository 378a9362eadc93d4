"""Memory of a device by process."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from memoria.admin.status.memory_sampler import MemorySampler, used_bytes
from memoria.engine.process.table import ProcessTable
from memoria.gpu.device import Device, DeviceProcess
from memoria.supervisor.device_memory import DeviceMemory
from memoria.supervisor.supervisor import Supervisor
from tests.fakes import GIB, FakeReader, device

GPU = replace(
    device(50),
    processes=(
        DeviceProcess(1, None, None, 10 * GIB),
        DeviceProcess(2, None, None, 5 * GIB),
        DeviceProcess(3, None, None, None),
    ),
)


def test_a_gpus_memory_is_what_the_driver_says_of_these_processes() -> None:
    assert used_bytes(GPU, {1: 7, 2: 7, 9: 7}) == 15 * GIB
    assert used_bytes(GPU, {9: 7}) == 0


def test_what_the_driver_does_not_report_is_not_known() -> None:
    assert used_bytes(GPU, {1: 7, 3: 7}) is None


def test_without_a_process_nothing_is_known() -> None:
    assert used_bytes(GPU, {}) is None


def test_on_a_host_it_is_the_resident_memory() -> None:
    assert used_bytes(device(is_host=True), {1: 3 * GIB, 2: GIB}) == 4 * GIB


@pytest.fixture
def engine() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is marked as one of the start `of-the-test`."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", "import sys; print(flush=True); sys.stdin.read()"],
        env={"MEMORIA_START": "of-the-test"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def supervisor(reader: FakeReader, *starts: str) -> Supervisor:
    """One engine, `engine`, whose start is the first of these."""
    actor = SimpleNamespace(
        snapshot=SimpleNamespace(start_id=starts[0] if starts else None), standby_start_id=None
    )
    made = SimpleNamespace(
        actors={"engine": actor},
        memories={"GPU-0": DeviceMemory(reader, 0)},
        plan=SimpleNamespace(device=lambda _: device()),
        start_ids=lambda: set(starts),
        process_table=ProcessTable(),
    )
    return cast("Supervisor", made)


def holding(*pids: int) -> Device:
    return replace(device(50), processes=tuple(DeviceProcess(pid, "ana", "python", 5 * GIB) for pid in pids))


async def test_an_engines_processes_are_distinguished_from_others(engine: subprocess.Popen[bytes]) -> None:
    found = await MemorySampler(supervisor(FakeReader(holding(engine.pid, 1)), "of-the-test")).sample()
    assert found.used == {"engine": 5 * GIB}
    assert [process.pid for process in found.others["GPU-0"]] == [1]


async def test_on_a_host_an_engine_uses_its_resident_memory(engine: subprocess.Popen[bytes]) -> None:
    found = await MemorySampler(supervisor(FakeReader(device(is_host=True)), "of-the-test")).sample()
    assert found.used["engine"] > 2**20


async def test_the_processes_are_looked_for_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    listed = os.scandir

    def scandir(path: str) -> os._ScandirIterator[str]:
        looked.append(threading.current_thread().name)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "listdir", lambda path: [entry.name for entry in scandir(path)])
    await MemorySampler(supervisor(FakeReader(device()), "of-the-test")).sample()
    assert looked
    assert threading.current_thread().name not in looked


async def test_a_driver_that_hangs_is_logged_once_and_so_is_its_return(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    reader = FakeReader(device())
    reader.block()
    sampler = MemorySampler(supervisor(reader))
    flight = sampler._reading("GPU-0")
    monkeypatch.setattr(flight, "_timeout", 0.01)
    for _ in range(5):
        assert (await sampler.sample()).devices == {}
    assert [record.getMessage() for record in caplog.records] == ["no figures for device GPU-0: no answer"]
    reader.unblock()
    while not (await sampler.sample()).devices:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert [record.getMessage() for record in caplog.records][1:] == ["figures for device GPU-0 again"]
