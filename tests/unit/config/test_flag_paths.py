"""Case 09 and its kind: every path in a flag starts at the file's folder, wherever the daemon runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.config_files import NO_VARIABLES, ConfigFolder, folder

__all__ = ["folder"]


@pytest.fixture(autouse=True)
def elsewhere(folder: ConfigFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths beside the file, and a daemon that runs in another folder."""
    here = folder.file.parent
    for name in ("adapters/a", "draft"):
        (here / name).mkdir(parents=True)
    for name in ("chat.jinja", "parser.py"):
        (here / name).touch()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")


def args(folder: ConfigFolder, written: str) -> dict[str, Any]:
    return dict(folder.engine(f"args: {{{written}}}").engines[0].vllm_args)


@pytest.mark.parametrize(
    ("written", "flag", "value"),
    [
        ("chat-template: ./chat.jinja", "chat_template", "HERE/chat.jinja"),
        ("chat-template: chat.jinja", "chat_template", "HERE/chat.jinja"),
        ("chat-template: ../HERE/chat.jinja", "chat_template", "HERE/chat.jinja"),
        ("tokenizer: ./draft", "tokenizer", "HERE/draft"),
        ("hf-config-path: draft", "hf_config_path", "HERE/draft"),
        ("generation-config: ./draft", "generation_config", "HERE/draft"),
        ("tool-parser-plugin: parser.py", "tool_parser_plugin", "HERE/parser.py"),
        ("reasoning-parser-plugin: ./parser.py", "reasoning_parser_plugin", "HERE/parser.py"),
        ("download-dir: ~/models", "download_dir", "/home/user/models"),
        ("download-dir: models", "download_dir", "HERE/models"),
        ("allowed-local-media-path: ./draft", "allowed_local_media_path", "HERE/draft"),
        ("speculative-config.model: ./draft", "speculative_config.model", "HERE/draft"),
        (
            "speculative-config: {model: ./draft, num_speculative_tokens: 3}",
            "speculative_config",
            {"model": "HERE/draft", "num_speculative_tokens": 3},
        ),
        ('speculative-config: \'{"model": "./draft"}\'', "speculative_config", {"model": "HERE/draft"}),
        ("compilation-config: {cache_dir: ./made}", "compilation_config", {"cache_dir": "HERE/made"}),
        ("default-mm-loras: {image: ./adapters/a}", "default_mm_loras", {"image": "HERE/adapters/a"}),
        ('lora-modules: "a=./adapters/a"', "lora_modules", "a=HERE/adapters/a"),
        (
            'lora-modules: [a=adapters/a, {name: b, path: ./adapters/a}, \'{"name": "c", "path": "draft"}\']',
            "lora_modules",
            [
                "a=HERE/adapters/a",
                {"name": "b", "path": "HERE/adapters/a"},
                {"name": "c", "path": "HERE/draft"},
            ],
        ),
    ],
)
def test_a_path_starts_at_the_files_folder(folder: ConfigFolder, written: str, flag: str, value: Any) -> None:
    here = folder.file.parent
    found = args(folder, written.replace("../HERE", f"../{here.name}"))[flag]
    assert found == eval(repr(value).replace("HERE", str(here)))


@pytest.mark.parametrize(
    ("written", "flag", "value"),
    [
        ('chat-template: "{{ messages }}"', "chat_template", "{{ messages }}"),
        ("chat-template: template_chatml.jinja", "chat_template", "template_chatml.jinja"),
        ("tokenizer: org/name", "tokenizer", "org/name"),
        ("generation-config: vllm", "generation_config", "vllm"),
        ("lora-modules: [a=org/adapter]", "lora_modules", ["a=org/adapter"]),
        ('speculative-config: \'{"model":"org/draft"}\'', "speculative_config", '{"model":"org/draft"}'),
        ("speculative-config: {method: ngram}", "speculative_config", {"method": "ngram"}),
        (
            "profiler-config: {torch_profiler_dir: 'gs://b/x'}",
            "profiler_config",
            {"torch_profiler_dir": "gs://b/x"},
        ),
        ("hf-overrides: {model: ./draft}", "hf_overrides", {"model": "./draft"}),
        ("tool-parser-plugin: package.parsers", "tool_parser_plugin", "package.parsers"),
        ("response-role: ./draft", "response_role", "./draft"),
    ],
)
def test_what_is_no_path_stays_as_it_is(folder: ConfigFolder, written: str, flag: str, value: Any) -> None:
    (folder.file.parent / "vllm").mkdir()
    assert args(folder, written)[flag] == value


@pytest.mark.parametrize(
    ("written", "where"),
    [
        ("chat-template: ./gone.jinja", "a.args.chat_template"),
        ("tool-parser-plugin: gone.py", "a.args.tool_parser_plugin"),
        ("speculative-config: {model: ./gone}", "a.args.speculative_config.model"),
        ("lora-modules: [{name: a, path: ./gone}]", "a.args.lora_modules.0.path"),
        ("lora-modules: [x=./adapters/a, a=/gone]", "a.args.lora_modules.1"),
        ("tokenizer: ~/gone", "a.args.tokenizer"),
    ],
)
def test_a_path_that_is_not_there_is_a_wrong_configuration(
    folder: ConfigFolder, written: str, where: str
) -> None:
    problem = folder.engine_problem(f"args: {{{written}}}")
    assert problem.what.startswith("nothing at `")
    assert problem.where[0].endswith(f"  {where}")
    assert "gone" in (problem.hint or "")


def test_all_that_is_missing_is_reported_at_once(folder: ConfigFolder) -> None:
    text = (
        "engines: {a: {model: ./m, gpu_memory_utilization: 0.1, args: {tokenizer: ./t, chat-template: ./c}}}"
    )
    assert len(folder.problems(text)) == 3


def test_a_path_out_of_a_variable_says_so(folder: ConfigFolder) -> None:
    environ = {**NO_VARIABLES, "TEMPLATE": "./gone"}
    problem = folder.engine_problem('args: {chat-template: "${TEMPLATE}"}', environ)
    assert "from TEMPLATE in the environment" in problem.where


def test_a_folder_that_cannot_be_looked_into_is_left_to_vllm(folder: ConfigFolder) -> None:
    long = "x" * 300  # ENAMETOOLONG
    assert args(folder, f"tokenizer: ./{long}")["tokenizer"] == str(Path(folder.file.parent, long))
