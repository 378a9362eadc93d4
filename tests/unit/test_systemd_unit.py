"""systemd/: systemd accepts its units, and they agree with what memoria itself does."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoria.config.model import Timeouts
from memoria.errors import ExitCode
from tests.programs import need

UNIT = Path(__file__).parents[2] / "systemd" / "memoria.service"
SOCKET = UNIT.with_suffix(".socket")

# What this unit uses of systemd.unit(5), .service(5), .exec(5), .kill(5) and .resource-control(5): finds a
# mistake where there is no systemd-analyze, too.
KNOWN = {
    "Unit": {"Description", "After", "Wants", "StartLimitIntervalSec", "StartLimitBurst"},
    "Service": {
        *("Type", "NotifyAccess", "ExecStart", "ExecReload", "User", "Group", "SupplementaryGroups", "UMask"),
        *(
            "TimeoutStartSec",
            "TimeoutStopSec",
            "WatchdogSec",
            "KillMode",
            "OOMPolicy",
            "LimitNOFILE",
            "LimitCORE",
        ),
        *("Restart", "RestartSec", "RestartPreventExitStatus", "Environment", "EnvironmentFile"),
        *(
            f"{kind}Directory{mode}"
            for kind in ("State", "Cache", "Logs", "Runtime")
            for mode in ("", "Mode")
        ),
        *(
            "NoNewPrivileges",
            "CapabilityBoundingSet",
            "PrivateTmp",
            "PrivateMounts",
            "RemoveIPC",
            "LockPersonality",
        ),
        *(f"Protect{what}" for what in ("System", "Home", "ControlGroups", "Clock", "Hostname")),
        *(f"ProtectKernel{what}" for what in ("Tunables", "Modules", "Logs")),
        *(f"Restrict{what}" for what in ("Namespaces", "SUIDSGID", "Realtime", "AddressFamilies")),
        *(f"SystemCall{what}" for what in ("Architectures", "Filter", "ErrorNumber")),
        *("DevicePolicy", "DeviceAllow"),
    },
    "Install": {"WantedBy"},
}


def _lines() -> Iterator[tuple[str, str, str]]:
    """Section, key and value; a key may stand several times."""
    section = ""
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            yield section, key, value


def _values(key: str) -> list[str]:
    return [value for _, found, value in _lines() if found == key]


def _value(key: str) -> str:
    (value,) = _values(key)
    return value


def _complaints(folder: Path, more: str = "") -> str:
    """What `systemd-analyze verify` says of the units, the socket's with `more` lines."""
    analyze = need("systemd-analyze")
    installed = UNIT.read_text(encoding="utf-8").replace(
        "/opt/memoria/bin/memoria", shutil.which("true") or ""
    )
    service, listener = folder / UNIT.name, folder / SOCKET.name
    service.write_text(installed, encoding="utf-8")
    listener.write_text(SOCKET.read_text(encoding="utf-8") + more, encoding="utf-8")
    verified = subprocess.run(
        [analyze, "verify", str(service), str(listener)], capture_output=True, text=True, check=False
    )
    # Units of this machine that ours refers to may have faults of their own.
    return "\n".join(line for line in verified.stderr.splitlines() if UNIT.stem in line)


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    assert _complaints(tmp_path) == ""


def test_systemd_finds_a_mistake_in_the_socket(tmp_path: Path) -> None:
    assert "Backlogg" in _complaints(tmp_path, "[Socket]\nBacklogg=1\n")


def test_every_key_of_the_unit_is_known() -> None:
    assert [f"[{section}] {key}" for section, key, _ in _lines() if key not in KNOWN[section]] == []


def test_systemd_waits_longer_for_the_end_than_memoria_takes() -> None:
    timeouts = Timeouts()
    engines = timeouts.drain + timeouts.stop + timeouts.release
    slow_readers = timeouts.drain + 1  # the server's own grace, after the engines are gone
    assert float(_value("TimeoutStopSec")) > engines + slow_readers


def test_systemd_allows_for_several_signs_of_life() -> None:
    assert float(_value("WatchdogSec")) >= 10
    assert (_value("Type"), _value("NotifyAccess")) == ("notify", "main")


def test_what_trying_again_cannot_mend_is_not_tried_again() -> None:
    given_up = {int(code) for code in _value("RestartPreventExitStatus").split()}
    assert given_up == {ExitCode.USAGE, ExitCode.CONFIG}


def test_the_start_limit_can_be_reached() -> None:
    """A unit whose restarts are too far apart for its start limit is never failed."""
    fastest = float(_value("StartLimitBurst")) * float(_value("RestartSec"))
    assert fastest < float(_value("StartLimitIntervalSec"))


def test_the_unit_starts_the_daemon_with_the_system_s_file() -> None:
    from memoria.config.file import SYSTEM_FILE

    assert _value("ExecStart").split()[1:] == ["run", "--config", str(SYSTEM_FILE)]
    assert _value("ExecReload").split()[1:] == ["reload", "--config", str(SYSTEM_FILE)]


def test_the_gpu_is_within_reach_and_other_devices_are_not() -> None:
    assert _value("DevicePolicy") == "closed"
    assert _values("DeviceAllow") == ["char-nvidia* rw"]


@pytest.mark.parametrize(
    "breaking", ["MemoryDenyWriteExecute", "PrivateDevices", "ProcSubset", "ProtectProc", "PrivateUsers"]
)
def test_hardening_that_breaks_cuda_or_memoria_is_left_out_and_said_so(breaking: str) -> None:
    assert _values(breaking) == []
    assert breaking in UNIT.read_text(encoding="utf-8")


def test_every_cache_lies_where_the_service_may_write() -> None:
    variables = dict(assignment.split("=", 1) for assignment in _values("Environment"))
    assert {name: value for name, value in variables.items() if not value.startswith(("%S/", "%C/"))} == {}
    folders = {_value(f"{kind}Directory") for kind in ("State", "Cache", "Logs", "Runtime")}
    assert folders == {"memoria"}
    assert {value.split("/")[1] for value in variables.values()} == folders
