"""Golden files of the `memoria check` screen. `MEMORIA_UPDATE_GOLDEN=1` writes them anew."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from memoria.cli.screens.check import render_plan
from memoria.cli.screens.layout import render_problems
from memoria.errors import Problem
from memoria.plan.plan import make_plan
from memoria.text import aligned, fraction_text, gib
from memoria.vllm.install.facts import VllmInstall
from tests.unit.plans import config, gpu, host, process

GOLDEN = Path(__file__).parents[2] / "golden"
INSTALL = VllmInstall(("vllm",), "serve", "0.33.0", "cuda", Path("envs/vllm-0.33.0-cuda"))
TWO = {"embedding": "0.30", "generation": "0.60"}


def check_golden(name: str, text: str) -> None:
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("MEMORIA_UPDATE_GOLDEN"):
        golden.write_text(text + "\n")
    assert text + "\n" == golden.read_text()


@pytest.mark.parametrize("color", [False, True], ids=["plain", "color"])
@pytest.mark.parametrize("width", [80, 120])
def test_the_check_screen_of_two_engines(width: int, color: bool) -> None:
    wanted = config(TWO)
    text = render_plan(wanted, make_plan(wanted, {0: gpu()}), INSTALL, width, color, ok=True)
    check_golden(f"check-{width}-{'color' if color else 'plain'}", text)


@pytest.mark.parametrize("width", [80, 120])
def test_the_check_screen_of_two_gpus(width: int) -> None:
    wanted = config(TWO | {"reranker": "0.125"}, gpu_of={"generation": 1})
    plan = make_plan(wanted, {0: gpu(), 1: gpu(index=1)})
    check_golden(f"check-two-gpus-{width}", render_plan(wanted, plan, INSTALL, width, False, ok=True))


def test_the_check_screen_of_a_host_without_vllm() -> None:
    wanted = config({"tiny-embedding": "0.12", "tiny-generation": "0.12"}, device="cpu")
    text = render_plan(wanted, make_plan(wanted, {0: host()}), None, 80, False, ok=False)
    check_golden("check-host", text)


@pytest.mark.parametrize("color", [False, True], ids=["plain", "color"])
def test_the_problems_of_a_plan(color: bool) -> None:
    wanted = config({"embedding": "0.45", "generation": "0.60"})
    plan = make_plan(wanted, {0: gpu(process(9912, 47))})
    check_golden(f"problems-{'color' if color else 'plain'}", render_problems(plan.problems, color))


def test_fractions_over_the_whole_gpu_leave_nothing_unplanned() -> None:
    wanted = config({"embedding": "0.45", "generation": "0.60"})
    text = render_plan(wanted, make_plan(wanted, {0: gpu()}), INSTALL, 80, False, ok=False)
    assert "ok:" not in text
    assert "unplanned" not in text


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    wanted = config(TWO)
    install = VllmInstall(("/x",), "serve", "0.33.0", "cuda", Path("/" + "/".join(["long-directory"] * 20)))
    text = render_plan(wanted, make_plan(wanted, {0: gpu()}), install, width, False, ok=True)
    assert max(map(len, text.splitlines())) <= width


def test_colour_changes_nothing_but_colour() -> None:
    wanted = config(TWO)
    plan = make_plan(wanted, {0: gpu()})
    plain, painted = (render_plan(wanted, plan, INSTALL, 80, color, ok=True) for color in (False, True))
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == plain


def test_an_executable_that_does_not_tell_its_version_is_shown_by_its_path() -> None:
    wanted = config(TWO)
    install = VllmInstall(("bin/vllm", "serve"), "serve", None, None, None)
    assert "vllm    version unknown    bin/vllm" in render_plan(
        wanted, make_plan(wanted, {0: gpu()}), install, 80, False, ok=True
    )


def test_paths_are_written_from_here_or_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "here")
    wanted = config(TWO)
    plan = make_plan(wanted, {0: gpu()})
    for path, shown in [
        (tmp_path / "here" / "vllm", "vllm"),
        (tmp_path / "vllm", "~/vllm"),
        (Path("/opt/vllm"), "/opt/vllm"),
    ]:
        text = render_plan(
            wanted, plan, VllmInstall(("vllm",), "serve", "1", "cuda", path), 120, False, ok=True
        )
        assert f"    {shown}" in next(line for line in text.splitlines() if line.startswith("vllm"))


def test_a_problem_without_place_or_hint_is_one_line() -> None:
    assert render_problems([Problem("a: b"), Problem("c")], False) == "error: a: b\n\nerror: c"


def test_figures_are_written_alike_everywhere() -> None:
    from decimal import Decimal

    assert gib(45_000_000_000) == "41.9"
    assert [fraction_text(Decimal(text)) for text in ("0.3", "0.300", "0.125", "1", "1.05")] == [
        "0.30",
        "0.30",
        "0.125",
        "1.00",
        "1.05",
    ]
    assert aligned([("a", "1"), ("bb", "22")], right={1}) == ("a    1", "bb  22")
