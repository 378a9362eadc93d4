"""The runtime directory: one daemon at a time, closed to others, cleared of a killed one's leftovers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoria.engine.process.marker import marked
from memoria.errors import UnavailableError
from memoria.supervisor.runtime_dir import RuntimeDir, replaceable

HOLDS_IT = """
import sys
from pathlib import Path
from memoria.supervisor.runtime_dir import RuntimeDir
with RuntimeDir(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "memoria"


@pytest.fixture
def other_daemon(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_IT, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"held\n"
        yield daemon
        daemon.kill()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_only_its_owner_may_look_inside(path: Path) -> None:
    with RuntimeDir(path) as runtime:
        assert (mode(path), mode(runtime.engines), mode(path / "lock")) == (0o700, 0o700, 0o600)


def test_a_directory_that_was_open_to_others_is_closed_to_them(path: Path) -> None:
    path.mkdir(parents=True, mode=0o777)
    path.chmod(0o777)
    with RuntimeDir(path):
        assert mode(path) == 0o700


def test_a_directory_that_is_made_with_its_parents_is_closed_as_a_whole(path: Path) -> None:
    with RuntimeDir(path):
        assert mode(path.parent) == 0o700


def test_a_place_that_everybody_can_put_another_directory_in_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with pytest.raises(UnavailableError, match=f"every user can replace what is in {path.parent}"):
        RuntimeDir(path).__enter__()
    path.parent.chmod(0o1777)
    with RuntimeDir(path):
        pass


def test_what_cannot_be_used_is_told_without_making_anything(path: Path, tmp_path: Path) -> None:
    assert RuntimeDir(path).problem() is None
    assert not path.parent.exists()
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "under"):
        problem = RuntimeDir(place).problem()
        assert problem is not None
        assert problem.what == f"cannot use the runtime directory {place}: {file} is not a directory"
        with pytest.raises(UnavailableError, match=f"cannot use the runtime directory {place}: "):
            RuntimeDir(place).__enter__()
    path.parent.mkdir()
    path.parent.chmod(0o777)
    problem = RuntimeDir(path).problem()
    assert problem is not None
    assert f"every user can replace what is in {path.parent}" in problem.what
    with RuntimeDir(tmp_path / "used") as used:
        assert used.problem() is None


def test_a_parent_or_a_link_of_somebody_else_is_refused(path: Path, tmp_path: Path) -> None:
    """Checked as a function: only root can give a file to another user."""
    path.mkdir(parents=True)
    me, roots = os.getuid(), Path("/").stat().st_uid
    assert replaceable(path, {0, roots, me}) is None
    link = tmp_path / "link"
    link.symlink_to(path.parent)
    assert replaceable(link / path.name, {0, roots, me}) is None
    assert replaceable(path, {me + 1}) == "/ belongs to another user"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory to another user")
def test_a_directory_that_another_user_was_first_to_make_is_refused(path: Path) -> None:
    path.parent.mkdir()
    link = path.parent.with_name("link")
    link.symlink_to(path.parent)
    os.chown(link, 12345, 12345, follow_symlinks=False)
    with pytest.raises(UnavailableError, match=f"{link} belongs to another user"):
        RuntimeDir(link / path.name).__enter__()
    os.chown(path.parent, 12345, 12345)
    with pytest.raises(UnavailableError, match=f"{path.parent} belongs to another user") as caught:
        RuntimeDir(path).__enter__()
    assert "MEMORIA_RUNTIME_DIR" in (caught.value.problems[0].hint or "")


def test_a_second_daemon_is_told_who_runs_already(path: Path, other_daemon: subprocess.Popen[bytes]) -> None:
    with (
        pytest.raises(UnavailableError, match=f"already running .*, pid {other_daemon.pid}") as caught,
        RuntimeDir(path),
    ):
        pass
    assert caught.value.problems[0].where == (str(path),)


def test_the_lock_of_a_killed_daemon_is_free(path: Path, other_daemon: subprocess.Popen[bytes]) -> None:
    other_daemon.kill()
    other_daemon.wait()
    with RuntimeDir(path) as runtime:
        assert runtime.killed == []


def test_a_closed_directory_can_be_opened_again(path: Path) -> None:
    for _ in range(2):
        with RuntimeDir(path):
            pass


def test_an_engine_process_that_a_killed_daemon_left_is_killed(path: Path) -> None:
    runtime = RuntimeDir(path)
    gate = str(runtime.gate_socket)
    stale = subprocess.Popen(["/bin/sleep", "600"], env={"MEMORIA_GATE": gate}, start_new_session=True)
    other = subprocess.Popen(["/bin/sleep", "600"], env={"MEMORIA_GATE": f"{gate}.other"})
    while not (marked("MEMORIA_GATE", gate) and marked("MEMORIA_GATE", f"{gate}.other")):
        assert stale.poll() is None
    assert runtime.own_pids() == [stale.pid]
    with runtime:
        assert runtime.killed == [stale.pid]
        assert runtime.own_pids() == []
        assert stale.wait() == -signal.SIGKILL
        assert other.poll() is None
    other.kill()
    other.wait()


def test_sockets_are_removed_at_both_ends(path: Path) -> None:
    runtime = RuntimeDir(path)
    sockets = (runtime.admin_socket, runtime.gate_socket, runtime.engines / "abc.sock")
    with runtime:
        for left in sockets:
            left.touch()
    assert not any(left.exists() for left in sockets)
    for left in sockets:
        left.touch()
    with runtime:
        assert not any(left.exists() for left in sockets)


def test_a_path_that_cannot_be_a_directory_is_told_with_a_hint(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with (
        pytest.raises(UnavailableError, match="cannot use the runtime directory") as caught,
        RuntimeDir(path),
    ):
        pass
    assert "MEMORIA_RUNTIME_DIR" in (caught.value.problems[0].hint or "")


def test_a_directory_is_judged_before_it_is_changed(path: Path) -> None:
    path.mkdir(parents=True)
    path.chmod(0o755)
    path.parent.chmod(0o777)  # every user can put another directory here
    with pytest.raises(UnavailableError, match="every user can replace"), RuntimeDir(path):
        pass
    assert mode(path) == 0o755


@pytest.mark.parametrize("place", ["lock", "elsewhere"])
def test_a_lock_that_is_a_link_is_refused_and_what_it_points_to_is_left_alone(
    path: Path, tmp_path: Path, place: str
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    path.mkdir(parents=True, mode=0o700)
    (path / "lock").symlink_to(precious if place == "lock" else tmp_path / "new")
    with pytest.raises(UnavailableError, match="cannot use the runtime directory"), RuntimeDir(path):
        pass
    assert precious.read_text() == "as it was"
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("name", ["state.new", "engines", "x"])
def test_what_another_user_put_into_an_open_directory_is_refused(
    path: Path, tmp_path: Path, name: str
) -> None:
    path.mkdir(parents=True)
    path.chmod(0o777)
    (path / name).symlink_to(tmp_path)
    os.chown(path / name, 4242, 4242, follow_symlinks=False)
    with pytest.raises(UnavailableError, match=f"{name} in it belongs to another user"), RuntimeDir(path):
        pass
