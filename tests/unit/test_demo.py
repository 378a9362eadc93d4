"""The demo's files and names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from memoria.config.load import load
from memoria.demo import NAME_VARIABLES, config_path, names_to_environ
from memoria.errors import ConfigError
from tests.demo_models import files


def test_the_shipped_models_are_what_the_script_makes() -> None:
    models = config_path().parent / "models"
    shipped = {str(path.relative_to(models)): path.read_text("utf-8") for path in models.rglob("*.json")}
    assert shipped == files()


def test_the_demo_loads_and_its_models_are_there() -> None:
    config = load(config_path(), {})
    assert [engine.served_model_name for engine in config.engines] == [
        ("tiny-embedding",),
        ("tiny-generation",),
    ]
    assert all((Path(engine.model) / "config.json").is_file() for engine in config.engines)
    assert (config.device, config.listen.port) == ("cpu", 8200)
    assert [engine.port for engine in config.engines] == [8100, 8101]


def test_its_models_are_served_under_any_name() -> None:
    environ = names_to_environ("embedding=BAAI/bge-m3, generation=writer")
    served = [engine.served_model_name for engine in load(config_path(), environ).engines]
    assert served == [("BAAI/bge-m3",), ("writer",)]


def test_one_name_may_be_given() -> None:
    assert names_to_environ("generation=writer") == {NAME_VARIABLES["generation"]: "writer"}


@pytest.mark.parametrize("text", ["", "embedding", "embedding=", "=writer", "generation=my writer", "a=b,"])
def test_names_that_are_no_pairs_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not ENGINE=MODEL"):
        names_to_environ(text)


def test_every_wrong_name_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        names_to_environ("writer=x,embedding=a,embedding=b")
    assert [problem.what for problem in caught.value.problems] == [
        "the demo has no engine `writer`",
        "`embedding` is named twice",
    ]


def test_the_example_for_the_cpu_runs_the_same_engines() -> None:
    example = load(Path(__file__).parents[2] / "configs" / "cpu-demo.yaml", {})
    demo = load(config_path(), {})
    for ours, theirs in zip(demo.engines, example.engines, strict=True):
        assert replace(ours, model="") == replace(theirs, model="")
        assert Path(ours.model).resolve() == Path(theirs.model).resolve()
