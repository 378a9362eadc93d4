"""memoria as `pip install .` makes it: a wheel in an environment of its own, without the source beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from memoria import __version__
from tests.integration.daemon import ROOT, Box, until

SOURCE = ("memoria", "systemd", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment. What memoria requires it takes from the one that the tests run in."""
    folder = tmp_path_factory.mktemp("installed")
    source, root = folder / "source", folder / "venv"
    for name in SOURCE:  # a build must not leave anything in the working tree
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    python = root / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    (site,) = root.glob("lib/python3*/site-packages")
    (site / "required.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.rmtree(source)
    return root


@pytest.fixture
def box(box: Box, installed: Path) -> Box:
    box.command = (str(installed / "bin" / "memoria"),)
    box.configure()
    return box


def test_it_is_the_installed_one_and_says_its_version(box: Box, installed: Path) -> None:
    done = box.call("--version", PYTHONPATH=None)
    assert (done.returncode, done.stdout) == (0, f"memoria {__version__}\n")
    where = [str(installed / "bin" / "python"), "-c", "import memoria; print(memoria.__file__)"]
    assert subprocess.check_output(where, text=True, cwd=box.folder).startswith(str(installed))


def test_it_checks_a_file(box: Box) -> None:
    done = box.call("check", PYTHONPATH=None)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("ok: ready to run\n")


def test_it_brings_the_demo_with_its_models(box: Box, installed: Path) -> None:
    (demo,) = installed.glob("lib/python3*/site-packages/memoria/demo/memoria.yaml")
    told = json.loads(box.call("config", "--json", "-c", str(demo), PYTHONPATH=None).stdout)
    for engine in ("embedding", "generation"):
        model = demo.parent / told[f"{engine}.model"]["value"]
        assert {"config.json", "tokenizer.json"} <= {path.name for path in model.iterdir()}


def test_it_brings_the_schema_for_editors(box: Box) -> None:
    shipped = (ROOT / "configs" / "memoria.schema.json").read_text(encoding="utf-8")
    assert box.call("config", "--schema", PYTHONPATH=None).stdout == shipped


def test_it_brings_the_unit(box: Box) -> None:
    done = box.call("service", "install", "--print", PYTHONPATH=None)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{box.command[0]} run --config" in done.stdout


def test_it_runs_with_its_passenger_in_the_engines_and_its_page(box: Box) -> None:
    go = box.folder / "go"
    box.vllm.set_faults("embedding", import_until=str(go))
    daemon = box.start(PYTHONPATH=None)
    daemon.until_listening()
    until(lambda: daemon.engine("generation").phase == "at the GPU gate")
    go.touch()
    daemon.until_ready()
    assert "<html" in daemon.ask("GET", "/").text
    assert daemon.stop() == 0
