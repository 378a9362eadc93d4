"""The options of a foreign vLLM are found out once. A package with a small parser stands in for vLLM."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from memoria.preflight.preflight import preflight
from memoria.vllm.install.facts import VllmInstall
from memoria.vllm.install.find import find
from memoria.vllm.install.options import with_options
from tests.unit.config_files import ConfigFolder, folder

__all__ = ["folder"]

PARSER = """
import argparse, json
print("noise on stdout")
def size(text):
    return int(text[:-1]) * 1000 if text.endswith("k") else int(text)
def make_arg_parser(parser):
    parser.add_argument("model_tag", nargs="?")
    parser.add_argument("--max-model-len", type=lambda text: -1 if text == "auto" else size(text))
    parser.add_argument("--fast", action=argparse.BooleanOptionalAction)
    parser.add_argument("--headless", action="store_true")
    parser.add_argument("--origins", type=json.loads)
    parser.add_argument("--names", "-n", nargs="+")
    parser.add_argument("--each", action="append")
    parser.add_argument("--ratio", type=float)
    parser.add_argument("--count", type=int, choices=[1, 2])
    for name in ("runner", "served-model-name", "gpu-memory-utilization", "uds"):
        parser.add_argument("--" + name)
    return parser
"""


@pytest.fixture
def foreign(tmp_path: Path) -> VllmInstall:
    root = tmp_path / "venv"
    site = root / f"lib/python3.{sys.version_info[1]}/site-packages"
    for file, text in {
        "vllm/__init__.py": "",
        "vllm/entrypoints/__init__.py": "",
        "vllm/entrypoints/somewhere/__init__.py": "",
        "vllm/entrypoints/somewhere/cli_args.py": PARSER,
        "vllm/utils/__init__.py": "",
        "vllm/utils/argparse_utils.py": "from argparse import ArgumentParser as FlexibleArgumentParser\n",
        "vllm-1.2.3.dist-info/METADATA": "",
    }.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(text)
    (root / "bin").mkdir()
    (root / "bin/python").symlink_to(os.path.realpath(sys.executable))
    (root / "pyvenv.cfg").write_text(f"home = {Path(os.path.realpath(sys.executable)).parent}\n")
    (root / "bin/vllm").write_text(f"#!{root}/bin/python\n")
    (root / "bin/vllm").chmod(0o755)
    return find(str(root), tmp_path, "cuda")


def test_each_option_is_described_by_what_it_accepts(foreign: VllmInstall, tmp_path: Path) -> None:
    options = with_options(foreign, tmp_path / "home").options
    assert options is not None
    kinds = {
        name: options.find(name).option for name in ("max_model_len", "origins", "names", "each", "ratio")
    }
    assert {name: (option.takes, option.kind) for name, option in kinds.items()} == {
        "max_model_len": ("one", "size"),
        "origins": ("one", "json"),
        "names": ("many", "text"),
        "each": ("each", "text"),
        "ratio": ("one", "number"),
    }
    assert "auto" in kinds["max_model_len"].words
    assert options.find("no_fast").is_off
    assert not options.find("headless").option.off
    assert options.find("count").option.choices == ("1", "2")
    assert "help" not in options
    assert "model_tag" not in options


def test_the_parser_is_asked_once_for_each_installation(foreign: VllmInstall, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with_options(foreign, home)
    (record,) = home.iterdir()
    assert foreign.root is not None
    python = foreign.root / "bin/python"
    python.unlink()  # it cannot be asked again
    again = with_options(foreign, home).options
    assert again is not None
    assert "fast" in again
    record.write_text('{"format": 1, "opt')
    assert with_options(foreign, home).options is None


def test_a_vllm_that_does_not_load_leaves_the_flags_unchecked(foreign: VllmInstall, tmp_path: Path) -> None:
    assert foreign.root is not None
    next(foreign.root.glob("lib/*/site-packages/vllm/__init__.py")).write_text("raise RuntimeError('no GPU')")
    assert with_options(foreign, tmp_path / "home").options is None
    assert not (tmp_path / "home").exists()


def test_a_folder_that_cannot_be_written_costs_only_time(foreign: VllmInstall, tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    assert with_options(foreign, tmp_path / "home").options is not None


def test_a_script_of_the_users_is_not_asked(tmp_path: Path) -> None:
    script = VllmInstall(("/opt/run-vllm", "serve"), "serve", None, None, None)
    assert with_options(script, tmp_path) is script


def test_check_reports_what_the_installed_vllm_does_not_know(
    foreign: VllmInstall, tmp_path: Path, folder: ConfigFolder
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text("{}")
    config = folder.load(
        f"vllm: {foreign.root}\n"
        "engines: {a: {model: ./m, gpu_memory_utilization: 0.1, args: {fats: true, ratio: x, each: 1}}}"
    )
    found = preflight(config, None, {"MEMORIA_HOME": str(tmp_path / "home")})
    assert [problem.what for error in found.errors for problem in error.problems] == [
        "vLLM 1.2.3 has no flag `fats`",
        "`ratio` must be a number, not `x`",
    ]
