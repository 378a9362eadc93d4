"""What processes hold of a device."""

from __future__ import annotations

import os
from dataclasses import replace

from memoria.admin.holdings import held_bytes
from memoria.gpu.device import DeviceProcess
from tests.fakes import GIB, device

GPU = replace(
    device(50),
    processes=(
        DeviceProcess(1, None, None, 10 * GIB),
        DeviceProcess(2, None, None, 5 * GIB),
        DeviceProcess(3, None, None, None),
    ),
)


def test_a_gpus_memory_is_what_the_driver_says_of_these_processes() -> None:
    assert held_bytes(GPU, {1, 2, 9}) == 15 * GIB
    assert held_bytes(GPU, {9}) == 0


def test_what_the_driver_does_not_tell_is_not_known() -> None:
    assert held_bytes(GPU, {1, 3}) is None


def test_without_a_process_nothing_is_known() -> None:
    assert held_bytes(GPU, set()) is None


def test_on_a_host_it_is_the_resident_memory_and_a_process_that_is_gone_has_none() -> None:
    host = device(is_host=True)
    assert (held_bytes(host, {os.getpid()}) or 0) > 2**20
    assert held_bytes(host, {2**22 + 1}) == 0
