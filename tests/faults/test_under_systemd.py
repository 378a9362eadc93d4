"""Under a real systemd, where one is in charge: its watchdog, and its control group that no process leaves.

By the protocol alone, and so everywhere: test_daemon.py beside this, and tests/integration/.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.inside import observed
from tests.faults.report import Figure
from tests.integration.daemon import Box, until
from tests.integration.http_client import ask
from tests.stub_engine.process import alive

UNIT = Path(__file__).parents[2] / "systemd" / "memoria.service"
OF_THE_UNIT = ("Type", "NotifyAccess", "KillMode", "OOMPolicy", "Restart")
WATCHDOG_S = 2.0
HIERARCHIES = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd")  # version 2, and version 1's named one


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _manager() -> tuple[str, ...] | None:
    """The flag for the manager that starts services for this user; None where none answers. Asks only, and
    only where systemd says that it runs (sd_booted(3))."""
    if not (Path("/run/systemd/system").is_dir() and shutil.which("systemd-run")):
        return None
    flags = ("--system",) if os.getuid() == 0 else ("--user",)
    asked = _run("systemctl", *flags, "is-system-running")
    return flags if asked.stdout.strip() in ("running", "degraded") else None


MANAGER = _manager()
pytestmark = pytest.mark.skipif(MANAGER is None, reason="no systemd is in charge here")


@dataclass(frozen=True, slots=True)
class Service:
    box: Box
    unit: str

    def show(self, key: str) -> str:
        asked = _systemctl("show", "--value", "--property", key, self.unit)
        return asked.stdout.strip()

    @property
    def pid(self) -> int:
        return int(self.show("MainPID"))

    def processes(self) -> set[int]:
        """Of the service's control group, those below it included."""
        group = self.show("ControlGroup").lstrip("/")
        folders = (Path(hierarchy) / group for hierarchy in HIERARCHIES)
        folder = next(folder for folder in folders if (folder / "cgroup.procs").exists())
        return {int(pid) for file in folder.rglob("cgroup.procs") for pid in file.read_text().split()}

    def until_ready(self) -> None:
        def ready() -> bool:
            try:
                return ask(self.box.ports.main, "GET", "/readyz").status == 200
            except OSError:
                return False

        until(ready)


@pytest.fixture
def service(box: Box) -> Iterator[Service]:
    """Started as systemd/memoria.service says, in a transient unit. Each engine has a process that left its
    session and its parent, so that no parent-death signal ends it."""
    assert MANAGER is not None
    box.configure()
    for engine in ("embedding", "generation"):
        box.vllm.set_faults(engine, grandchild=True)
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    told = dict(line.split("=", 1) for line in lines)
    properties = {key: told[key] for key in OF_THE_UNIT} | {
        "WatchdogSec": str(WATCHDOG_S),
        "RestartSec": "0",
        "WorkingDirectory": str(box.folder),
        "StandardError": f"append:{box.folder}/journal",
    }
    running = Service(box, f"memoria-test-{uuid.uuid4().hex}.service")
    environment = box.env({"PYTHONPATH": observed(box.folder)})
    started = _run(
        *("systemd-run", *MANAGER, "--unit", running.unit, "--collect"),
        *(f"--property={key}={value}" for key, value in properties.items()),
        *(f"--setenv={name}={value}" for name, value in environment.items()),
        *(sys.executable, "-m", "memoria", "run"),
    )
    assert started.returncode == 0, started.stderr
    running.until_ready()
    yield running
    _systemctl("stop", running.unit)


def _systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert MANAGER is not None
    return _run("systemctl", *MANAGER, *arguments)


def test_its_control_group_holds_every_process_of_every_engine(service: Service) -> None:
    started = {event.pid for event in service.box.vllm.events() if alive(event.pid)}
    assert len(service.box.vllm.events("grandchild")) == 2
    assert started < service.processes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGUSR2], ids=["killed", "its loop blocked"])
def test_a_daemon_that_fails_is_started_again_and_nothing_of_it_is_left(
    service: Service, figure: Figure, how: signal.Signals
) -> None:
    before, tree = service.pid, {event.pid for event in service.box.vllm.events()}
    os.kill(before, how)
    began = time.monotonic()
    until(lambda: not alive(before))
    noticed = time.monotonic()
    until(lambda: not any(map(alive, tree)))
    gone = time.monotonic()
    until(lambda: service.pid not in (0, before))
    service.until_ready()
    assert int(service.show("NRestarts")) == 1
    assert "leftover_killed" not in (service.box.folder / "journal").read_text()
    assert gone - noticed <= 2
    if how is signal.SIGUSR2:
        figure(15, "systemd: blocked to ended", noticed - began, "s")
        figure(15, "systemd: blocked to ready again", time.monotonic() - began, "s")
        assert noticed - began <= 2 * WATCHDOG_S
    else:
        figure(2, "systemd: killed to nothing left, sessions of their own included", gone - began, "s")
