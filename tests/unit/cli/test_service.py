"""The unit that `memoria service install` writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memoria.cli.commands import service
from memoria.cli.commands.service import HOMES, MARK, unit_text
from memoria.errors import MemoriaError
from tests.programs import need

OPT, ETC = Path("/opt/memoria/bin/memoria"), Path("/etc/memoria/memoria.yaml")
REPOSITORY = Path(__file__).parents[3]


def test_the_machines_unit_is_the_one_of_the_repository() -> None:
    written = (REPOSITORY / "systemd/memoria.service").read_text(encoding="utf-8").splitlines()
    made = unit_text(OPT, ETC, "memoria").removeprefix(MARK).splitlines()
    assert [line for line in made if not line.startswith("#")] == [
        line for line in written if not line.startswith("#")
    ]


def test_it_starts_this_environments_memoria_with_this_file_as_that_user() -> None:
    lines = unit_text(Path("/srv/my env/bin/memoria"), Path("/srv/100%.yaml"), "root").splitlines()
    assert 'ExecStart="/srv/my env/bin/memoria" run --config /srv/100%%.yaml' in lines
    assert {"User=root", "Group=root"} <= set(lines)


@pytest.mark.parametrize("home", HOMES)
def test_what_lies_in_a_home_can_be_read(home: str) -> None:
    executable = Path(home, "venv/bin/memoria")
    assert "ProtectHome=read-only" in unit_text(executable, ETC, "memoria").splitlines()


def test_what_only_sounds_like_a_home_changes_nothing() -> None:
    text = unit_text(Path("/homes/venv/bin/memoria"), ETC, "memoria")
    assert "ProtectHome=read-only" not in text.splitlines()


def test_a_users_unit_asks_for_nothing_that_only_root_may_do() -> None:
    lines = unit_text(OPT, ETC, None).splitlines()
    keys = {line.partition("=")[0] for line in lines if "=" in line}
    assert keys == {
        *("Description", "StartLimitIntervalSec", "StartLimitBurst"),
        *(
            "Type",
            "NotifyAccess",
            "ExecStart",
            "ExecReload",
            "TimeoutStartSec",
            "TimeoutStopSec",
            "WatchdogSec",
        ),
        *(
            "KillMode",
            "Restart",
            "RestartSec",
            "RestartPreventExitStatus",
            "LimitNOFILE",
            "LimitCORE",
            "WantedBy",
        ),
    }
    assert "WantedBy=default.target" in lines


@pytest.mark.parametrize("account", ["root", None])
def test_systemd_accepts_it(tmp_path: Path, account: str | None) -> None:
    analyze = need("systemd-analyze")
    unit = tmp_path / "memoria.service"
    unit.write_text(unit_text(Path("/bin/true"), ETC, account), encoding="utf-8")
    command = [analyze, *(["--user"] if account is None else []), "verify", str(unit)]
    verified = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [line for line in verified.stderr.splitlines() if unit.name in line] == []


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "memoria").touch()
    monkeypatch.setattr(sys, "executable", str(bin_ / "python"))
    return tmp_path / "systemd/user/memoria.service"


def test_install_says_the_next_command_and_uninstall_takes_it_back(
    as_user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = REPOSITORY / "memoria/demo/memoria.yaml"
    for _ in range(2):  # it may be written anew
        assert service.install_unit(demo, "memoria", only_print=False) == 0
    assert "next: systemctl --user daemon-reload && systemctl --user enable --now memoria" in (
        capsys.readouterr().out
    )
    assert f"--config {demo}" in as_user.read_text(encoding="utf-8")
    assert service.uninstall_unit() == 0
    assert not as_user.exists()
    with pytest.raises(MemoriaError, match="there is no "):
        service.uninstall_unit()


def test_a_unit_that_memoria_did_not_write_is_left_alone(as_user: Path) -> None:
    as_user.parent.mkdir(parents=True)
    as_user.write_text("[Unit]\n")
    demo = REPOSITORY / "memoria/demo/memoria.yaml"
    with pytest.raises(MemoriaError, match="was not written by memoria"):
        service.install_unit(demo, "memoria", only_print=False)
    with pytest.raises(MemoriaError, match="was not written by memoria"):
        service.uninstall_unit()
    assert as_user.read_text() == "[Unit]\n"


def test_an_account_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, as_user: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(MemoriaError, match="there is no user `nobody-here`"):
        service.install_unit(REPOSITORY / "memoria/demo/memoria.yaml", "nobody-here", only_print=False)
