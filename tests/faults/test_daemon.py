"""Faults around the daemon itself: a blocked loop, a driver that hangs, a disk that is full."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import psutil
import pytest

from memoria.text import GIB
from tests.faults.inside import change_stub, observed
from tests.faults.report import Figure
from tests.faults.traffic import Traffic, percentile
from tests.faults.verdict import Verdict
from tests.integration.daemon import Box, RunningDaemon, until
from tests.integration.notify_socket import NotifySocket
from tests.stub_nvml import StubError, StubGpu

READING = "nvmlDeviceGetMemoryInfo_v2"
GPU = (StubGpu(total=100 * GIB),)
HANGS_MS = 10_000  # twice as long as memoria waits for a reading
UNAFFECTED_MS = 100  # a loop that waited for the driver would be late by seconds
MIB = 1 << 20


@pytest.fixture
def systemd(box: Box) -> Iterator[NotifySocket]:
    notify = NotifySocket(box.runtime.parent)
    yield notify
    notify.close()


@pytest.mark.parametrize(
    ("how", "what"), [(signal.SIGSTOP, "process"), (signal.SIGUSR2, "loop")], ids=["process", "loop"]
)
def test_a_blocked_daemon_misses_its_watchdog_and_is_replaced(
    box: Box, systemd: NotifySocket, figure: Figure, how: signal.Signals, what: str
) -> None:
    """The test is systemd here: after WatchdogSec without a sign of life SIGABRT, then a new start. Threads
    that live on beside a blocked loop must not feed the watchdog."""
    box.configure()
    environment = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "1000000"}
    daemon = box.start(PYTHONPATH=observed(box.folder), **environment)
    daemon.until_ready()
    systemd.until("WATCHDOG=1", times=2)
    daemon.signal(how)
    began = time.monotonic()
    systemd.until_silent(1.0)
    noticed = time.monotonic()
    threads = [psutil.Process(thread.id).status() for thread in psutil.Process(daemon.pid).threads()]
    assert len(threads) > 1
    assert (set(threads) == {psutil.STATUS_STOPPED}) == (how is signal.SIGSTOP)
    daemon.signal(signal.SIGABRT)
    daemon.signal(signal.SIGCONT)
    assert daemon.exit_code() == -signal.SIGABRT
    until(lambda: box.survivors() == [])
    gone = time.monotonic()
    box.start(**environment).until_ready()
    figure(15, f"blocked {what} noticed after, of 1 s", noticed - began, "s")
    figure(15, f"blocked {what}: noticed to nothing left", gone - noticed, "s")
    figure(15, f"blocked {what}: noticed to ready again", time.monotonic() - noticed, "s")
    # systemd waits WatchdogSec from the last sign of life, and one may have been under way
    assert noticed - began <= 2
    assert gone - noticed <= 2


def test_a_driver_that_hangs_or_fails_does_not_touch_the_proxy(box: Box, figure: Figure) -> None:
    box.configure()
    daemon = box.start()
    daemon.until_ready()
    usual = _p99(daemon)
    box.nvml.set(gpus=GPU, errors=[StubError(READING, 999)])
    failing = _p99(daemon)
    box.nvml.set(gpus=GPU, delays_ms={READING: 60_000})
    hanging = _p99(daemon)
    figure(19, "p99 usual", usual, "ms")
    figure(19, "p99 driver fails", failing, "ms")
    figure(19, "p99 driver hangs", hanging, "ms")
    assert max(failing, hanging) <= usual + UNAFFECTED_MS


def test_an_engine_that_dies_while_the_driver_hangs_waits_for_it(box: Box, figure: Figure) -> None:
    """Nothing starts on a device whose memory cannot be read; no serving engine is touched."""
    box.configure()
    daemon = box.start()
    daemon.until_ready()
    usual = _p99(daemon)
    box.nvml.set(gpus=GPU, delays_ms={READING: HANGS_MS})
    passed = len(box.vllm.events("through the gate"))
    daemon.forget()
    os.kill(daemon.leader("generation"), signal.SIGKILL)
    daemon.told("generation", "releasing")
    hanging = _p99(daemon, kinds={"embeddings": 2}, states=("ready", "releasing"))
    assert len(box.vllm.events("through the gate")) == passed
    box.nvml.set(gpus=GPU)
    back = time.monotonic()
    daemon.told("generation", "ready")
    figure(19, "neighbour's p99 after a death, driver hangs", hanging, "ms")
    figure(19, "driver answers to ready again", time.monotonic() - back, "s")
    assert hanging <= usual + UNAFFECTED_MS
    assert daemon.engine("embedding").restarts == 0


def _p99(
    daemon: RunningDaemon,
    kinds: Mapping[str, int] = MappingProxyType({"embeddings": 2, "streams": 1}),
    states: Sequence[str] = ("ready", "ready"),
) -> float:
    """In milliseconds, of embeddings while the status is requested, which reads the driver."""
    with Traffic(daemon.box.ports.main, **kinds) as traffic:
        for _ in range(2):
            assert tuple(engine.state for engine in daemon.status().engines) == tuple(states)
        until(lambda: traffic.count(Verdict.WHOLE, kind="embeddings") >= 300)
    assert traffic.failures() == {}
    return percentile(traffic.seconds("embeddings"), 0.99) * 1000


def _can_mount() -> bool:
    tried = subprocess.run(
        [*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return tried.returncode == 0


UNSHARE = ("unshare", "--mount") if os.getuid() == 0 else ("unshare", "--map-root-user", "--mount")


@pytest.mark.skipif(
    not (shutil.which("unshare") and _can_mount()), reason="no file system can be mounted here"
)
def test_a_full_disk_stops_neither_engines_nor_requests(box: Box, figure: Figure) -> None:
    """The logs lie on a file system of 1.5 MiB, in a mount namespace of the daemon's own."""
    box.configure()
    box.file.write_text(box.file.read_text().replace("log: {", "log: {max_mb: 1, keep: 2, "))
    logs = box.folder / "logs"
    logs.mkdir()
    script = f'mount -t tmpfs -o size=1536k none "{logs}" && exec "$@"'
    box.launcher = (*UNSHARE, "sh", "-c", script, "sh")
    daemon = box.start()
    daemon.until_ready()
    within = f"/proc/{daemon.pid}/root{logs}"
    with Traffic(box.ports.main, embeddings=2, streams=2) as traffic:
        change_stub(daemon, "generation", stderr_bytes_per_second=10_000_000)
        until(lambda: os.statvfs(within).f_bfree == 0)
        full = time.monotonic()
        until(lambda: sum(result.at > full for result in traffic.results) > 200)
    _nothing_lost(daemon, traffic)
    figure(22, "requests on a full disk", sum(result.at > full for result in traffic.results))


def test_a_log_that_takes_no_byte_more_stops_nothing(box: Box) -> None:
    """Where nothing can be mounted: a limit on the size of files (RLIMIT_FSIZE) fails the same writes."""
    box.configure()
    box.file.write_text(box.file.read_text().replace("log: {", "log: {max_mb: 1, "))
    box.launcher = ("prlimit", f"--fsize={MIB}", "--")
    daemon = box.start()
    daemon.until_ready()
    log = box.folder / "logs" / "generation.log"
    with Traffic(box.ports.main, embeddings=2, streams=2) as traffic:
        change_stub(daemon, "generation", stderr_bytes_per_second=10_000_000)
        until(lambda: log.stat().st_size == MIB)
        full = time.monotonic()
        until(lambda: sum(result.at > full for result in traffic.results) > 200)
    _nothing_lost(daemon, traffic)


def _nothing_lost(daemon: RunningDaemon, traffic: Traffic) -> None:
    assert traffic.failures() == {}
    assert [engine.restarts for engine in daemon.status().engines] == [0, 0]
    assert daemon.stop() == 0
