"""Daemons that a command cannot talk to: another user's, another version's, none that is memoria at all; and
one that runs while its file is being edited."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memoria import __version__
from memoria.cli.client import reject_stranger
from memoria.errors import UnavailableError
from tests.integration.daemon import Box, RunningDaemon
from tests.unit.impostor import NOT_FOUND, Impostor, ok
from tests.unit.status_examples import HEALTHY

ASKING = {
    "status": ["status"],
    "status --json": ["status", "--json"],
    "status --watch": ["status", "--watch"],
    "top": ["top"],
    "requests": ["requests"],
    "requests -f": ["requests", "-f"],
    "reload": ["reload"],
    "reload --json": ["reload", "--json"],
    "start": ["start", "embedding"],
    "stop": ["stop", "embedding"],
    "restart": ["restart", "embedding"],
    "bench": ["bench", "--seconds", "1"],
}
asking = pytest.mark.parametrize("command", ASKING.values(), ids=ASKING)


# ---------------------------------------------------------------------- another user's


@pytest.fixture
def closed(box: Box) -> Iterator[Box]:
    """A box whose runtime folder is another user's. The superuser may open everything, so commands are called
    without that privilege."""
    box.configure()
    box.runtime.mkdir(mode=0o700)
    (box.runtime / "admin.sock").touch()
    if os.getuid() == 0:
        os.chown(box.runtime, 65534, 65534)
        box.launcher = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    else:
        box.runtime.chmod(0)
    yield box
    box.runtime.chmod(0o700)


@asking
def test_another_users_daemon_is_told_in_words(closed: Box, command: list[str]) -> None:
    done = closed.call(*command)
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr == (
        f"error: may not open {closed.runtime}/admin.sock\n"
        "hint: run this command as the user that runs memoria\n"
    )


def test_another_users_logs_are_told_in_words(closed: Box) -> None:
    logs = closed.folder / "logs"
    logs.mkdir()
    (logs / "embedding.log").write_text("a line\n")
    (logs / "generation.log").write_text("another\n")
    assert closed.call("logs", "embedding").stdout == "a line\n"
    (logs / "generation.log").chmod(0)
    for arguments in (["generation"], [], ["generation", "-f"]):
        done = closed.call("logs", *arguments)
        assert (done.returncode, done.stdout) == (69, "")
        assert done.stderr == (
            f"error: cannot read the log of `generation`: permission denied\n  {logs}/generation.log\n"
            "hint: run this command as the user that runs memoria\n"
        )
    logs.chmod(0)
    done = closed.call("logs")
    logs.chmod(0o700)
    assert done.returncode == 69
    assert done.stderr.startswith("error: cannot read the log of `embedding`: permission denied\n")


def test_a_stranger_who_took_the_folders_name_in_a_public_place_is_not_believed(tmp_path: Path) -> None:
    public = tmp_path / "public"
    folder = public / "memoria-0"
    folder.mkdir(parents=True)
    public.chmod(0o1777)
    with pytest.raises(UnavailableError, match="another user"):
        reject_stranger(os.geteuid() + 1, folder / "admin.sock")
    reject_stranger(os.geteuid(), folder / "admin.sock")
    reject_stranger(0, folder / "admin.sock")


def test_a_daemon_of_another_user_in_a_private_place_is_asked() -> None:
    """Such as a service's, by the superuser."""
    reject_stranger(os.geteuid() + 1, Path("/run/admin.sock"))


# ---------------------------------------------------------------------- another version's


@contextmanager
def impostor(box: Box, **answers: bytes) -> Iterator[None]:
    box.configure()
    box.runtime.mkdir(mode=0o700)
    named = {"*" if path == "all" else f"/{path}": answer for path, answer in answers.items()}
    with Impostor(box.runtime / "admin.sock", named):
        yield


STRANGE = {
    "an empty object": ok({}),
    "a list": ok([1]),
    "no JSON": ok(b"<html>hello</html>", "text/html"),
    "no HTTP": b"220 mail.example.org ESMTP\r\n",
    "events of another shape": ok(
        b"event: status\ndata: {}\n\nevent: journal\ndata: []\n\n", "text/event-stream"
    ),
    "events that are no JSON": ok(b"event: status\ndata: {\n\n", "text/event-stream"),
    "no such route": NOT_FOUND,
}


@asking
@pytest.mark.parametrize("answer", STRANGE.values(), ids=STRANGE)
def test_what_is_not_understood_is_told_in_words(box: Box, command: list[str], answer: bytes) -> None:
    with impostor(box, all=answer):
        done = box.call(*command)
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: unexpected answer from memoria: it may be another version\n"
        "hint: restart the daemon: `memoria run --take-over`, or its service\n"
    )


@asking
def test_a_daemon_of_another_version_is_named(box: Box, command: list[str]) -> None:
    status = {**HEALTHY.to_json(), "version": "9.9.9", "new_in_it": True}
    del status["devices"]
    with impostor(box, status=ok(status), all=ok({})):
        done = box.call(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"error: the daemon is memoria 9.9.9, this command is memoria {__version__}\nhint: "
    )


def test_the_logs_are_there_whatever_answers(box: Box) -> None:
    (box.folder / "logs").mkdir()
    (box.folder / "logs/embedding.log").write_text("a line\n")
    for answer in STRANGE.values():
        with impostor(box, all=answer):
            assert box.call("logs", "embedding").stdout == "a line\n"
        (box.runtime / "admin.sock").unlink()
        box.runtime.rmdir()


# ---------------------------------------------------------------------- one whose file is being edited


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"), nvml_library)
    box.configure()
    yield box
    box.close()


@pytest.fixture(scope="module")
def daemon(machine: Box) -> Iterator[RunningDaemon]:
    daemon = machine.start()
    daemon.until_ready()
    yield daemon
    machine.configure()
    assert daemon.stop() == 0


@pytest.mark.parametrize("added", ["limits: [", "nonsense: 1", "listen: ${NOT_SET:?say where}", "engines: 5"])
def test_a_file_that_is_being_edited_keeps_no_command_from_its_daemon(
    daemon: RunningDaemon, machine: Box, added: str
) -> None:
    machine.configure()
    machine.file.write_text(f"{machine.file.read_text()}\n{added}\n")
    assert machine.call("status").stdout.startswith("ENGINE")
    assert machine.call("logs", "embedding", "-n", "1").returncode == 0
    assert machine.call("requests").returncode == 0
    assert machine.call("top").stdout.startswith("memoria ")
    assert machine.call("start", "embedding").stdout == "embedding  is ready already\n"
    done = machine.call("reload")
    assert (done.returncode, done.stdout) == (78, "")
    assert "memoria.yaml:" in done.stderr


def test_logs_are_where_the_daemon_writes_them(daemon: RunningDaemon, machine: Box) -> None:
    """Not where the file says by now."""
    machine.configure()
    machine.file.write_text(machine.file.read_text().replace("dir: logs", "dir: elsewhere"))
    assert machine.call("logs", "embedding", "-n", "1").returncode == 0
