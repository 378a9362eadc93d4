"""User errors: each has a message and an exit code, before anything is spawned."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.report import Figure
from tests.integration.daemon import Box
from tests.stub_nvml import StubProcess
from tests.unprivileged import UNPRIVILEGED


def refused(box: Box, *arguments: str, **env: str | None) -> tuple[int, str]:
    """The exit code of `memoria run` and its message, which must be all that happened."""
    done = box.call("run", *arguments, **env)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert box.vllm.events() == []
    return done.returncode, done.stderr


def test_a_file_that_is_not_there(box: Box) -> None:
    assert refused(box, "-c", "other.yaml") == (
        78,
        "error: no configuration file at other.yaml\nhint: name another with --config or MEMORIA_CONFIG\n",
    )


def test_no_file_at_all_names_the_places_and_the_demo(box: Box) -> None:
    code, message = refused(box)
    assert code == 78
    assert "/etc/memoria/memoria.yaml  not there" in message
    assert "memoria demo" in message


# What is written instead of a part of the file, and what is said of it.
WRONG = {
    "yaml": ("engines:", "engines: [", "error: this is not YAML"),
    "a word as fraction": (
        "0.30",
        "lots",
        "`gpu_memory_utilization` must be a number, or `auto`, not `lots`",
    ),
    "fraction 0": ("0.30", "0", "`gpu_memory_utilization` must be more than 0"),
    "fraction 1.5": ("0.30", "1.5", "hint: it is a share of the whole: 30 % is 0.30"),
    "fractions over the limit": ("0.30", "0.45", "fractions add up to 1.05, the limit is 0.95"),
    "memoria's own flag": ("port:", "args: {uds: /tmp/s}\n    port:", "`uds` is not for `args`"),
    "no such folder": ("./models/writer", "./models/other", "no model at `./models/other`"),
}


@pytest.mark.parametrize(("written", "instead", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_told_with_its_line(box: Box, written: str, instead: str, said: str) -> None:
    box.configure()
    box.file.write_text(box.file.read_text().replace(written, instead, 1))
    code, message = refused(box)
    assert code == 78
    assert said in message
    assert "  memoria.yaml:" in message


def test_two_wrong_values_are_told_at_once(box: Box) -> None:
    box.configure()
    box.file.write_text(box.file.read_text().replace("0.30", "0").replace("0.60", "2"))
    _, message = refused(box)
    assert message.count("error: ") == 2


def test_fractions_over_the_limit_are_told_beside_a_wrong_value_and_without_a_gpu(box: Box) -> None:
    box.configure()
    text = box.file.read_text().replace("0.30", "0.45")
    box.file.write_text(text)
    code, message = refused(box, LD_LIBRARY_PATH=None)
    assert code == 78
    assert message.startswith("error: fractions add up to 1.05, the limit is 0.95\n")
    assert "error: no NVIDIA driver" in message
    box.file.write_text(text.replace("runner: pooling", "runner: embed"))
    code, message = refused(box)
    assert code == 78
    assert message.startswith("error: `runner` must be")
    assert "error: fractions add up to 1.05, the limit is 0.95\n" in message


def test_one_port_for_two_engines(box: Box) -> None:
    box.configure()
    text = box.file.read_text()
    box.file.write_text(text.replace(f"port: {box.ports.generation}", f"port: {box.ports.embedding}"))
    code, message = refused(box)
    assert code == 78
    assert f"port {box.ports.embedding} is taken twice" in message


def test_a_folder_without_a_model(box: Box) -> None:
    box.configure()
    (box.folder / "models/writer/config.json").unlink()
    code, message = refused(box)
    assert code == 78
    assert "it has no config.json" in message


def test_a_name_that_is_not_in_the_cache_when_the_hub_may_not_be_asked(box: Box) -> None:
    box.configure()
    box.file.write_text(box.file.read_text().replace("./models/writer", "org/writer"))
    code, message = refused(box, HF_HUB_OFFLINE="1")
    assert code == 78
    assert "model `org/writer` is not in the local cache" in message


@pytest.mark.parametrize("which", ["main", "generation"])
def test_a_port_in_use_names_its_holder(box: Box, figure: Figure, which: str) -> None:
    box.configure()
    began = time.monotonic()
    with closing(socket.create_server(("127.0.0.1", getattr(box.ports, which)))):
        code, message = refused(box)
    figure(18, "told after", time.monotonic() - began, "s")
    assert code == 69
    assert f"port {getattr(box.ports, which)} is in use" in message
    assert f"pid {os.getpid()}" in message
    assert ("listen" if which == "main" else "  generation.port") in message


def test_check_finds_a_port_in_use_unless_its_own_daemon_has_it(box: Box) -> None:
    box.configure()
    with closing(socket.create_server(("127.0.0.1", box.ports.main))):
        done = box.call("check")
    assert done.returncode == 69
    assert f"port {box.ports.main} is in use" in done.stderr
    assert "ready to run" not in done.stdout
    assert not (box.folder / "logs").exists()
    box.start().until_listening()
    assert box.call("check").returncode == 0


def test_a_vllm_that_is_not_there(box: Box) -> None:
    box.configure()
    box.vllm.executable.unlink()
    code, message = refused(box)
    assert code == 69
    assert f"vllm: {box.vllm.executable} does not exist" in message


def test_no_vllm_at_all_names_the_command_that_makes_one(box: Box) -> None:
    box.configure()
    box.file.write_text(box.file.read_text().replace("./vllm", "auto"))
    code, message = refused(box)
    assert code == 69
    assert "hint: memoria setup" in message


def test_no_gpu_names_the_demo(box: Box) -> None:
    box.configure()
    code, message = refused(box, LD_LIBRARY_PATH=None)
    assert code == 69
    assert "memoria demo" in message


def test_memory_held_by_another_process_names_it(box: Box) -> None:
    box.configure()
    box.use_gpu(processes=[StubProcess(os.getpid(), 47)])
    code, message = refused(box)
    assert code == 75
    assert "GPU 0 has 53.0 GiB free" in message
    assert f"hint: stop pid {os.getpid()}, or lower the fractions by 0.39 in total" in message


def a_file(box: Box) -> None:
    (box.folder / "logs").touch()


def a_dangling_link(box: Box) -> None:
    (box.folder / "logs").mkdir()
    (box.folder / "logs/embedding.log").symlink_to("not/there")


@pytest.mark.parametrize("spoil", [a_file, a_dangling_link])
def test_a_log_that_cannot_be_written(box: Box, spoil: Callable[[Box], None]) -> None:
    box.configure()
    spoil(box)
    code, message = refused(box)
    assert code == 69
    assert message.startswith("error: cannot write the log file ")
    assert "log: {dir: ...}" in message
    check = box.call("check")
    assert check.returncode == 69
    assert check.stderr.startswith("error: cannot write the log file ")
    assert "ready to run" not in check.stdout


def test_a_log_that_cannot_be_read(box: Box) -> None:
    box.configure()
    box.launcher = UNPRIVILEGED
    (box.folder / "logs").mkdir()
    (box.folder / "logs/embedding.log").touch(mode=0o200)
    code, message = refused(box)
    assert code == 69
    assert message.startswith("error: cannot read the log file ")
    assert box.call("check").returncode == 69


def test_a_runtime_folder_that_cannot_be_made(box: Box) -> None:
    box.configure()
    (box.runtime.parent / "file").touch()
    code, message = refused(box, MEMORIA_RUNTIME_DIR=str(box.runtime.parent / "file/run"))
    assert code == 69
    assert "cannot use the runtime directory" in message


def test_a_start_that_was_refused_leaves_nothing_behind(box: Box) -> None:
    box.configure()
    shutil.rmtree(box.folder / "models/writer")
    refused(box)
    assert not box.runtime.exists()


def test_logs_of_an_engine_that_is_not_there(box: Box) -> None:
    box.configure()
    done = box.call("logs", "generatio")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no engine `generatio`\nhint: did you mean `generation`?\n"


def test_status_without_a_daemon(box: Box) -> None:
    box.configure()
    done = box.call("status")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "error: memoria is not running with this configuration\nhint: start it with `memoria run`\n"
    )


@pytest.mark.parametrize("arguments", [["run", "--what"], ["frobnicate"], ["logs", "-n", "many"]])
def test_a_wrong_command_line_is_a_usage_error(box: Box, arguments: list[str]) -> None:
    done = box.call(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--help" in done.stderr


@pytest.fixture
def closed(box: Box) -> Iterator[Path]:
    """A folder that memoria's user may not enter."""
    box.configure()
    box.launcher = UNPRIVILEGED
    folder = box.folder / "closed"
    folder.mkdir()
    yield folder
    folder.chmod(0o755)


def test_a_home_that_may_not_be_entered(box: Box, closed: Path) -> None:
    box.file.write_text(box.file.read_text().replace("./vllm", "auto"))
    closed.chmod(0)
    code, message = refused(box, MEMORIA_HOME=str(closed / "home"))
    assert code == 69
    assert message.startswith(f"error: vllm: {closed}/home: Permission denied\nhint: ")


def test_a_vllm_in_a_folder_that_may_not_be_entered(box: Box, closed: Path) -> None:
    box.file.write_text(box.file.read_text().replace("./vllm", "./closed/vllm"))
    closed.chmod(0)
    code, message = refused(box)
    assert code == 69
    assert f"error: vllm: {closed}/vllm: Permission denied\n  memoria.yaml:2:1  vllm\n" in message


def test_a_model_in_a_folder_that_may_not_be_entered(box: Box, closed: Path) -> None:
    box.file.write_text(box.file.read_text().replace("./models/writer", "./closed/writer"))
    closed.chmod(0)
    code, message = refused(box)
    assert code == 78
    assert message.startswith(f"error: model cannot be read: {closed}/writer: Permission denied\n")


def test_a_cache_of_the_hub_that_may_not_be_entered(box: Box, closed: Path) -> None:
    box.file.write_text(box.file.read_text().replace("./models/writer", "org/writer"))
    closed.chmod(0)
    code, message = refused(box, HF_HOME=str(closed))
    assert code == 78
    assert message.startswith(f"error: model cannot be read: {closed}/hub/models--org--writer/snapshots: ")


def test_a_dotenv_and_a_file_that_may_not_be_read(box: Box, closed: Path) -> None:
    (box.folder / ".env").touch(mode=0)
    code, message = refused(box)
    assert code == 78
    assert message.startswith("error: cannot read .env: permission denied\n  .env:1\nhint: ")
    box.file.chmod(0)
    for arguments, env in (([], {}), (["-c", "memoria.yaml"], {}), ([], {"MEMORIA_CONFIG": "memoria.yaml"})):
        code, message = refused(box, *arguments, **env)
        assert code == 78
        assert message.startswith("error: cannot read memoria.yaml: Permission denied\nhint: ")


def test_a_working_folder_that_may_not_be_searched_names_the_places(box: Box, closed: Path) -> None:
    """Its own folder is where memoria stands, though it may not look around there."""
    box.launcher = (*UNPRIVILEGED, "bash", "-c", 'cd closed && chmod 0 . && exec "$@"', "-")
    code, message = refused(box)
    assert code == 78
    assert "memoria.yaml  permission denied\n" in message
