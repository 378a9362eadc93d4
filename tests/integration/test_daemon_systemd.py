"""The daemon as a systemd service: sd_notify(3) messages, and what is not passed on to engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemon import Box
from tests.integration.notify_socket import NotifySocket


@pytest.fixture
def systemd(box: Box) -> Iterator[NotifySocket]:
    notify = NotifySocket(box.runtime.parent)
    yield notify
    notify.close()


def test_systemd_hears_of_readiness_progress_life_and_the_end(box: Box, systemd: NotifySocket) -> None:
    box.configure()
    go = box.folder / "go"
    box.vllm.set_faults("generation", load_until=str(go))
    daemon = box.start(NOTIFY_SOCKET=str(systemd.path), WATCHDOG_USEC="200000")
    systemd.until("READY=1")
    systemd.until("STATUS=1 of 2 engines ready; generation loading weights")
    systemd.until("WATCHDOG=1", times=3)
    go.touch()
    systemd.until("STATUS=2 of 2 engines ready")
    assert daemon.stop() == 0
    messages = systemd.drain()
    assert messages.count("READY=1") == messages.count("STOPPING=1") == 1
    assert messages.index("STOPPING=1") > messages.index("STATUS=2 of 2 engines ready")


def test_it_is_ready_for_systemd_when_it_listens_and_not_only_when_engines_are(
    box: Box, systemd: NotifySocket
) -> None:
    box.configure()
    box.vllm.set_faults(import_until=str(box.folder / "never"))
    daemon = box.start(NOTIFY_SOCKET=str(systemd.path))
    systemd.until("READY=1")
    assert daemon.ask("GET", "/livez").status == 200
    assert "WATCHDOG=1" not in systemd.messages


def test_engines_do_not_get_what_is_the_daemons(box: Box, systemd: NotifySocket) -> None:
    box.configure()
    daemon = box.start(
        NOTIFY_SOCKET=str(systemd.path), WATCHDOG_USEC="60000000", LISTEN_FDS="0", VLLM_API_KEY="secret"
    )
    daemon.until_ready()
    pids = box.survivors()
    assert len(pids) == 6  # of two engines: leader, resource tracker, engine core
    for pid in pids:
        names = {entry.partition(b"=")[0] for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
        assert b"MEMORIA_START" in names
        assert not names & {b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"LISTEN_FDS", b"VLLM_API_KEY"}
