from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from memoria.config.load import load
from memoria.config.model import CommonKeys, Config, EngineConfig, EngineKeys
from memoria.config.schema import Engine, File, json_schema
from memoria.config.values import keys
from memoria.errors import ConfigError, Problem
from tests.unit.config_files import ENGINE, NO_VARIABLES, ConfigFolder, folder
from tests.unit.config_reference import KeyDoc, reference

__all__ = ["folder"]

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "configs" / "memoria.schema.json"
FILES = [
    ROOT / "memoria.yaml",
    ROOT / "memoria" / "demo" / "memoria.yaml",
    *sorted((ROOT / "configs").glob("*.yaml")),
]


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SHIPPED.read_text(encoding="utf-8")))


def test_the_shipped_schema_is_the_generated_one(tmp_path: Path) -> None:
    written = tmp_path / "schema.json"
    subprocess.run([sys.executable, "-m", "memoria.config.schema", written], check=True, cwd=ROOT)
    assert written.read_bytes() == SHIPPED.read_bytes(), (
        "run: python -m memoria.config.schema configs/memoria.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_facts_and_the_place_of_a_daemon_are_known_without_pydantic() -> None:
    """Commands that validate nothing must not wait 200 ms for it."""
    script = "import sys, memoria.config.model, memoria.config.file; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_each_key_is_defined_once() -> None:
    """What file and facts share is inherited, never repeated."""
    for written, facts, shared in ((File, Config, CommonKeys), (Engine, EngineConfig, EngineKeys)):
        assert written.__annotations__.keys().isdisjoint(facts.__annotations__.keys() - {"engines"})
        assert keys(written).keys() > keys(shared).keys() < keys(facts).keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_shipped_file_is_right_for_editors(file: Path) -> None:
    validator().validate(yaml.safe_load(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("file", FILES[1:], ids=lambda file: str(file.relative_to(ROOT)))
def test_a_shipped_file_loads_without_a_warning(file: Path) -> None:
    assert load(file, NO_VARIABLES).warnings == ()


@pytest.mark.parametrize(
    "file", [file for file in FILES if "demo" not in file.parts], ids=lambda file: file.name
)
def test_a_shipped_file_names_the_schema(file: Path) -> None:
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (file.parent / named).resolve() == SHIPPED


@pytest.mark.parametrize(
    "text",
    [
        "gpu: 0",
        "engines: {}",
        "engines: {a: {model: x}}",
        "engines: {Big: {model: x, gpu_memory_utilization: 0.1}}",
        "engines: {a: {model: x, gpu_memory_utilization: 1.5}}",
        "engines: {a: {model: x, gpu_memory_utilization: 0}}",
        "engines: {a: {model: --port, gpu_memory_utilization: 0.1}}",
        "engines: {a: {model: x, gpu_memory_utilization: 0.0001}}",
        "engines: {a: {model: [x], gpu_memory_utilization: 0.1}}",
        *(
            f"engines: {{a: {{{ENGINE}, {keys}}}}}"
            for keys in (
                "port: 0",
                "port: high",
                "served_model_name: [a, --port]",
                "dtype: --port",
                "runner: embed",
                "transport: http",
                "max_num_seqs: -1",
                "max_model_len: long",
                "enforce_eager: perhaps",
                "served_model_name: []",
                "args: [a]",
                "env: text",
                "gpu: first",
                "misspelt: 1",
                "scheduling_policy: random",
                "max_requests: 0",
                "filters: {strip: []}",
                "filters: {strip: [model]}",
                "filters: {set: {model: x}}",
                "filters: {misspelt: 1}",
            )
        ),
        *(
            f"{keys}\nengines: {{a: {{{ENGINE}}}}}"
            for keys in (
                "device: auto",
                "gpu_limit: 2",
                "timeouts: {start: 0}",
                "timeouts: {unknown: 1}",
                "restart: {attempts: 0.5}",
                "limits: {body_mb: 0}",
                "log: {format: xml}",
                "open_to_network: perhaps",
                "allowed_hosts: [a:80]",
                "cors: {origins: a}",
                "hold: {seconds: -1}",
                "hold: {requests: -1}",
                "guard: {inter_token_ms: 0}",
                "misspelt: 1",
            )
        ),
    ],
)
def test_editors_and_memoria_refuse_the_same(folder: ConfigFolder, text: str) -> None:
    assert not validator().is_valid(yaml.safe_load(text))
    assert folder.problems(text)


@pytest.mark.parametrize("key", [doc.key for doc in reference()])
def test_any_value_may_be_a_variable(key: str) -> None:
    value: Any = "${NAME:-default}"
    engine = {"model": "x", "gpu_memory_utilization": 0.1}
    name = key.rpartition(".")[2]
    document: dict[str, Any] = {"engines": {"a": engine}}
    if key.startswith("engines."):
        engine[name] = value
    elif "." in key:
        document[key.partition(".")[0]] = {name: value}
    else:
        document[name] = value
    validator().validate(document)


def test_the_reference_has_every_key_with_its_meaning() -> None:
    docs = reference()
    assert all(doc.meaning.endswith(".") and doc.type for doc in docs)
    assert len({doc.key for doc in docs}) == len(docs)
    by_key = {doc.key: doc for doc in docs}
    assert by_key["gpu_limit"].default == "0.95"
    assert by_key["engines.NAME.model"].default == "required"
    assert by_key["engines.NAME.max_model_len"].type == "whole number or text or `auto` or `-1`"
    assert by_key["timeouts.stop"] == KeyDoc("timeouts.stop", "number", "15", "From SIGTERM to SIGKILL.")


KEYS = st.sampled_from(
    [doc.key.rpartition(".")[2] for doc in reference()] + ["engines", "timeouts", "log", "a", "<<"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["${", "${A:-1}", "$$", "auto", "./x"])
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(), inner, max_size=4),
    max_leaves=12,
)


def loads_or_reports(folder: ConfigFolder, text: str) -> None:
    folder.file.write_text(text, encoding="utf-8", newline="")
    problems: Sequence[Problem] = ()
    try:
        load(folder.file, NO_VARIABLES)
    except ConfigError as error:
        problems = error.problems
    assert all(problem.hint for problem in problems)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text() | st.text(alphabet=" \n\t:-[]{}&*!|>'\"%@`#${}?,a0"))
@example(text="a: &a [*a]")
@example(text="[" * 10_000)
@example(text="engines: {a: {pooler_config: '" + "[" * 100_000 + "'}}")
def test_any_text_loads_or_is_reported_wrong(folder: ConfigFolder, text: str) -> None:
    loads_or_reports(folder, text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sections=st.dictionaries(KEYS, TREES, max_size=4), engine=st.dictionaries(KEYS, TREES, max_size=6))
def test_any_tree_loads_or_is_reported_wrong(
    folder: ConfigFolder, sections: dict[str, Any], engine: dict[str, Any]
) -> None:
    loads_or_reports(folder, yaml.safe_dump({**sections, "engines": {"a": engine}}, allow_unicode=True))
