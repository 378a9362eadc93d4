"""sd_notify(3) over a real datagram socket."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoria.daemon.systemd import Notifier


@pytest.fixture(params=["a path", "an abstract name"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "a path" else f"@memoria-{uuid.uuid4().hex}"


@pytest.fixture
def systemd(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + address[1:] if address.startswith("@") else address)
        listener.settimeout(10)
        yield listener


def test_systemd_hears_how_the_daemon_does(address: str, systemd: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.alive()
    notifier.stopping()
    assert [systemd.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_status_is_told_when_it_changes(address: str, systemd: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    for text in ("1 of 2", "1 of 2", "2 of 2"):
        notifier.status(text)
    notifier.ready()
    assert [systemd.recv(100) for _ in range(3)] == [b"STATUS=1 of 2", b"STATUS=2 of 2", b"READY=1"]


def test_without_systemd_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    Notifier({}).ready()
    assert caplog.records == []


def test_a_systemd_that_is_gone_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    assert "cannot notify systemd of 'READY=1'" in caplog.text


def test_a_sign_of_life_is_due_twice_in_the_watchdogs_time() -> None:
    assert Notifier({"WATCHDOG_USEC": "30000000"}).watchdog_interval == 15.0
    assert Notifier({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}).watchdog_interval == 15.0


@pytest.mark.parametrize(
    "environ",
    [{}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}],
)
def test_no_watchdog_of_ours_no_sign_of_life(environ: dict[str, str]) -> None:
    assert Notifier(environ).watchdog_interval is None
