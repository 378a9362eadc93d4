"""Outputs that are full, closed, or lack characters, and readers that leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.daemon import Box


@pytest.fixture(autouse=True)
def configured(box: Box) -> None:
    box.configure()


def in_shell(box: Box, script: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """`$memoria` is the command."""
    return subprocess.run(
        ["bash", "-c", f'memoria() {{ "{sys.executable}" -m memoria "$@"; }}; {script}'],
        cwd=box.folder,
        env=box.env({**env}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("command", ["config", "--help", "check"])
def test_a_reader_that_leaves_ends_memoria_as_it_ends_other_tools(box: Box, command: str) -> None:
    done = in_shell(box, f"memoria {command} | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_is_told(box: Box) -> None:
    done = in_shell(box, "memoria config >/dev/full")
    assert done.returncode == 1
    assert (
        done.stderr
        == b"error: No space left on device\nhint: run the same command with -v for the traceback\n"
    )


def test_a_closed_output_is_no_failure(box: Box) -> None:
    assert in_shell(box, "memoria check >&-").returncode == 0
    done = in_shell(box, "memoria check -c nowhere.yaml >&- 2>&-")
    assert (done.returncode, done.stderr) == (78, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_a_terminal_does_not_have_are_replaced(box: Box, encoding: str) -> None:
    done = in_shell(box, "memoria check", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"  embedding   #####               0.30  30.0 GiB\n" in done.stdout


def test_a_folder_that_was_removed_is_told(box: Box) -> None:
    (box.folder / "gone").mkdir()
    done = in_shell(box, 'cd gone; rmdir "$PWD"; memoria check')
    assert done.returncode == 1
    assert done.stderr == b"error: the working directory no longer exists\nhint: change to another one: cd\n"


def test_a_fault_of_memorias_own_is_told_in_a_line_and_in_full_only_with_v(box: Box, tmp_path: Path) -> None:
    """`sitecustomize` breaks what a command needs, in the process of that command."""
    (tmp_path / "sitecustomize.py").write_text(
        "import memoria.config.explain\ndef broken(*_): raise RuntimeError('unheard of')\n"
        "memoria.config.explain.explain = broken\n"
    )
    path = f"{tmp_path}{os.pathsep}{box.env({})['PYTHONPATH']}"
    done = box.call("config", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: RuntimeError: unheard of\nhint: this is a bug in memoria")
    assert "Traceback" in box.call("config", "-v", PYTHONPATH=path).stderr


@pytest.mark.parametrize("arguments", [[], ["service"]])
def test_a_bare_command_shows_its_help(box: Box, arguments: list[str]) -> None:
    done = box.call(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: memoria")
    assert "error:" not in done.stderr
