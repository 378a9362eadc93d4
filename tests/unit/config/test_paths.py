from __future__ import annotations

import os
from pathlib import Path

from memoria.config import paths
from tests.unit.config_files import NO_VARIABLES, ConfigFolder, folder

__all__ = ["folder"]

CONFIG = Path("/etc/memoria/memoria.yaml")
ID = paths.instance_id(CONFIG)
CHOSEN = "engines: {a: {model: b, gpu_memory_utilization: 0.1}}\n"


def test_an_instance_is_named_by_its_file(tmp_path: Path) -> None:
    assert ID.startswith("memoria-")
    assert paths.instance_id(tmp_path / "memoria.yaml") != ID
    (tmp_path / "link.yaml").symlink_to(CONFIG)
    assert paths.instance_id(tmp_path / "link.yaml") == ID
    assert len(paths.instance_id(tmp_path / f"{'x' * 100}.yaml")) == 29


def test_the_runtime_folder_is_the_variables_the_files_systemds_or_the_sessions() -> None:
    environ = {
        "MEMORIA_RUNTIME_DIR": "/run/m",
        "RUNTIME_DIRECTORY": "/run/memoria:/run/x",
        "XDG_RUNTIME_DIR": "/run/user/1",
    }
    assert paths.runtime_dir("./run", CONFIG, environ)[0] == Path("/run/m")
    del environ["MEMORIA_RUNTIME_DIR"]
    assert paths.runtime_dir("./run", CONFIG, environ)[0] == Path("/etc/memoria/run")
    assert paths.runtime_dir(None, CONFIG, environ)[0] == Path("/run/memoria")
    del environ["RUNTIME_DIRECTORY"]
    assert paths.runtime_dir(None, CONFIG, environ)[0] == Path(f"/run/user/1/memoria/{ID}")
    assert paths.runtime_dir(None, CONFIG, {})[0] == Path(f"/tmp/memoria-{os.getuid()}/{ID}")


def test_the_log_folder_is_the_files_systemds_or_the_users() -> None:
    environ = {"LOGS_DIRECTORY": "/var/log/memoria", "XDG_STATE_HOME": "/state", "HOME": "/home/user"}
    assert paths.log_dir("~/logs", CONFIG, environ)[0] == Path("/home/user/logs")
    assert paths.log_dir(None, CONFIG, environ)[0] == Path("/var/log/memoria")
    del environ["LOGS_DIRECTORY"]
    assert paths.log_dir(None, CONFIG, environ)[0] == Path(f"/state/memoria/{ID}/logs")
    environ["XDG_STATE_HOME"] = "relative"
    assert paths.log_dir(None, CONFIG, environ)[0] == Path(f"/home/user/.local/state/memoria/{ID}/logs")


def test_a_runtime_folder_too_deep_for_sockets_is_a_problem(folder: ConfigFolder) -> None:
    fits, too_long = "/" + "x" * 58, "/" + "x" * 59
    assert folder.load(f"runtime_dir: {fits}\n{CHOSEN}").runtime_dir == Path(fits)
    problem = folder.problem(f"runtime_dir: {too_long}\n{CHOSEN}")
    assert problem.what == f"the runtime folder's path is too long for Unix sockets: {too_long}"
    assert problem.where == ("memoria.yaml:1:1  runtime_dir",)


def test_vllm_is_a_word_or_a_path_beside_the_file(folder: ConfigFolder) -> None:
    assert folder.load(CHOSEN).vllm == "auto"
    assert folder.load(f"vllm: ./bin/vllm\n{CHOSEN}").vllm == str(folder.file.parent / "bin/vllm")
    assert (
        folder.load(f"vllm: ~/venv/bin/python\n{CHOSEN}", NO_VARIABLES).vllm == "/home/user/venv/bin/python"
    )
