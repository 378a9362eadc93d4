"""`mps` and the limits that depend on it."""

from __future__ import annotations

import pytest

from tests.unit.config_files import ConfigFolder, folder

__all__ = ["folder"]

ENGINE = "engines: {a: {model: m/x, gpu_memory_utilization: 0.4%s}}"


def test_limits_are_read(folder: ConfigFolder) -> None:
    keys = ", compute_percent: 30, pinned_memory: 12GiB"
    config = folder.load("mps: true\n" + ENGINE % keys)
    assert config.mps
    assert (config.engines[0].compute_percent, config.engines[0].pinned_memory) == (30, 12 * 2**30)
    assert folder.load("mps: true\n" + ENGINE % ", pinned_memory: budget").engines[0].pinned_memory == 0
    plain = folder.load(ENGINE % "")
    assert (plain.mps, plain.engines[0].compute_percent, plain.engines[0].pinned_memory) == (
        False,
        None,
        None,
    )


@pytest.mark.parametrize("key", ["compute_percent: 30", "pinned_memory: budget"])
def test_a_limit_without_mps_is_refused(folder: ConfigFolder, key: str) -> None:
    problem = folder.problem(ENGINE % f", {key}")
    assert problem.what == f"`{key.partition(':')[0]}` has no effect without MPS"
    assert problem.hint == "write `mps: true` at the top, or remove it"


def test_mps_on_a_cpu_is_refused(folder: ConfigFolder) -> None:
    assert folder.problem("mps: true\ndevice: cpu\n" + ENGINE % "").what == "`mps` is for GPUs"


@pytest.mark.parametrize(
    "key", ["compute_percent: 0", "compute_percent: 101", "compute_percent: half", "pinned_memory: 12"]
)
def test_a_limit_that_is_none_is_refused(folder: ConfigFolder, key: str) -> None:
    assert f"`{key.partition(':')[0]}` must be" in folder.problem("mps: true\n" + ENGINE % f", {key}").what
