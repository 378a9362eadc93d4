from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from memoria.config.explain import Setting, explain

FILE = """\
listen: ${ROUTER_HOST:-127.0.0.1}:${ROUTER_PORT:-8200}
gpu_limit: 0.90
engines:
  a:
    model: ${MODEL:-org/name}
    gpu_memory_utilization: ${FRACTION:-0.30}
    max_num_seqs: ${SEQS:-256}
    args: {seed: 7, max-num-batched-tokens: "${MAX_BATCHED_TOKENS:-64}"}
    env: {HF_TOKEN: "${HF_TOKEN}", PLAIN: "${API_KEY}", HF_HOME: /models}
    want: {concurrency: 16}
    pooler_config: ${POOLER:-}
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Setting]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "memoria.yaml").write_text(FILE, encoding="utf-8")
    (tmp_path / ".env").write_text(
        "# tuned\nFRACTION=0.25 # less\nSEQS=\nMAX_BATCHED_TOKENS=128\nHF_ENDPOINT=http://mirror\n"
        'POOLER={"use_activation": true}\nLOG_FORMAT=json\n',
        encoding="utf-8",
    )
    environ = {
        "ROUTER_PORT": "9000",
        "HF_TOKEN": "hf_canary",
        "API_KEY": "canary",
        "RUNTIME_DIRECTORY": "/run/m",
    }
    return {setting.key: setting for setting in explain(Path("memoria.yaml"), environ)}


@pytest.mark.parametrize(
    ("key", "value", "source"),
    [
        ("a.want.concurrency", "16", "memoria.yaml:10"),
        ("listen", "127.0.0.1:9000", "environment ROUTER_PORT"),
        ("gpu_limit", "0.90", "memoria.yaml:2"),
        ("gpu", "0", "default"),
        ("timeouts.idle", "120", "default"),
        ("runtime_dir", "/run/m", "environment RUNTIME_DIRECTORY"),
        ("a.model", "org/name", "memoria.yaml:5"),
        ("a.served_model_name", "org/name", "default"),
        ("a.gpu_memory_utilization", "0.25", ".env:2 FRACTION"),
        ("a.max_num_seqs", "256", "memoria.yaml:7"),
        ("a.max_num_batched_tokens", "128", ".env:4 MAX_BATCHED_TOKENS"),
        ("a.args.seed", "7", "memoria.yaml:8"),
        ("a.env.HF_HOME", "/models", "memoria.yaml:9"),
        ("a.env.HF_TOKEN", "***", "environment HF_TOKEN"),
        ("a.env.HF_ENDPOINT", "http://mirror", ".env:5 HF_ENDPOINT"),
        ("a.pooler_config", '{"use_activation": true}', ".env:6 POOLER"),
        ("log.format", "json", ".env:7 LOG_FORMAT"),
        ("log.level", "INFO", "default"),
        ("a.env.PLAIN", "***", "environment API_KEY"),
    ],
)
def test_every_value_is_shown_with_its_source(
    settings: Mapping[str, Setting], key: str, value: str, source: str
) -> None:
    assert settings[key] == Setting(key, value, source)


def test_secrets_are_never_shown(settings: Mapping[str, Setting]) -> None:
    assert "canary" not in str(settings)


def test_what_vllm_decides_itself_is_left_out(settings: Mapping[str, Setting]) -> None:
    assert "a.dtype" not in settings


@pytest.mark.parametrize(("written", "shown"), [("5.5GiB", "5.5GiB"), ("12000MiB", "12582912000 bytes")])
def test_a_round_size_is_shown_as_written(tmp_path: Path, written: str, shown: str) -> None:
    file = tmp_path / "memoria.yaml"
    file.write_text(f"engines: {{a: {{model: org/name, gpu_memory: {written}}}}}\n")
    found = {setting.key: setting.value for setting in explain(file, {})}
    assert found["a.gpu_memory"] == shown
