"""Compose files in the shapes that people give them. The first is that of memoria's predecessor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from memoria.errors import ConfigError
from memoria.init.containers import from_compose
from memoria.init.draft import Draft, DraftEngine, Published
from memoria.init.serve_line import Translator
from memoria.init.sources import settle_names

ENVIRON: Mapping[str, str] = {"HOME": "/home/user"}
PREDECESSOR = """\
services:
  vllm-embedding:
    image: vllm/vllm-openai:latest
    command: >
      --model ${MODEL_EMBED_NAME}
      --task embed
      --port 8100 --host 0.0.0.0
      --gpu-memory-utilization ${VLLM_EMBED_GPU_MEMORY}
      --trust-remote-code --disable-log-requests --enable-request-id-headers
      --max-num-seqs ${VLLM_EMBED_MAX_NUM_SEQS:-256}
      --pooler-config '{"pooling_type":"MEAN","normalize":true}'
    ports:
      - "${VLLM_EMBED_PORT}:8100"
    environment:
      - CUDA_VISIBLE_DEVICES=0
      - VLLM_WORKER_MULTIPROC_METHOD=spawn
      - HF_HOME=/home/vllm/.cache/huggingface
    deploy:
      resources: {reservations: {devices: [{driver: nvidia, count: 1, capabilities: [gpu]}]}}
    healthcheck:
      test: ["CMD", "curl", "-f", "http://localhost:8100/health"]
    restart: unless-stopped
    shm_size: '2gb'
  router:
    build: {context: ., dockerfile: docker/Dockerfile.router}
    ports: ["${ROUTER_PORT}:8200"]
    environment:
      - VLLM_EMBED_URL=${VLLM_EMBED_URL}
networks: {vllm-network: {driver: bridge}}
"""
DOTENV = """\
MODEL_EMBED_NAME=org/embedder
VLLM_EMBED_PORT=8100
ROUTER_PORT=8200
VLLM_EMBED_URL=http://vllm-embedding:8100
VLLM_EMBED_GPU_MEMORY=0.3  # 30 %
"""


class Translated:
    def __init__(self, engines: list[DraftEngine], router: Published | None, translator: Translator) -> None:
        self.engines, self.router = engines, router
        self.left_out = {(one.where, one.what): one.why for one in translator.left_out}

    @property
    def engine(self) -> DraftEngine:
        (engine,) = self.engines
        return engine


@pytest.fixture
def compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compose:
    monkeypatch.chdir(tmp_path)
    return Compose(tmp_path)


class Compose:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, text: str, dotenv: str = "") -> Translated:
        (self.folder / "compose.yml").write_text(text)
        if dotenv:
            (self.folder / ".env").write_text(dotenv)
        translator = Translator(ENVIRON)
        engines, router = from_compose(self.folder / "compose.yml", ENVIRON, translator)
        draft = Draft(engines, translator.left_out)
        settle_names(draft, self.folder)
        return Translated(engines, router, translator)

    def refused(self, text: str) -> str:
        with pytest.raises(ConfigError) as caught:
            self(text)
        assert all(problem.hint for problem in caught.value.problems)
        return str(caught.value)


def test_the_predecessors(compose: Compose) -> None:
    found = compose(PREDECESSOR, DOTENV)
    assert found.engine.name == "embedding"
    assert found.engine.model == "org/embedder"
    assert found.engine.keys == {
        "runner": "pooling",
        "gpu_memory_utilization": "0.3",
        "trust_remote_code": True,
        "max_num_seqs": 256,
        "pooler_config": {"pooling_type": "MEAN", "use_activation": True},
    }
    assert (found.engine.args, found.engine.env) == ({}, {})
    assert (found.engine.published, found.router) == (Published("", 8100), Published("", 8200))
    assert list(found.left_out) == [
        ("compose.yml:4  vllm-embedding", "`--disable-log-requests`"),
        ("compose.yml:20  vllm-embedding", "`healthcheck`"),
        ("compose.yml:22  vllm-embedding", "`restart`"),
        ("compose.yml:23  vllm-embedding", "`shm_size`"),
        ("compose.yml:24  router", "the service"),
    ]
    assert "clients talk to `listen`" in found.left_out["compose.yml:24  router", "the service"]


def test_a_list_of_words_and_an_environment_that_is_a_mapping(compose: Compose) -> None:
    found = compose("""
services:
  llm:
    image: vllm/vllm-openai:v0.10.2
    command: ["--model", "org/m", "--max-model-len", "8192", "--limit-mm-per-prompt", '{"image": 0}']
    environment: {NVIDIA_VISIBLE_DEVICES: "1", NCCL_P2P_DISABLE: 1, HF_TOKEN: "${HF_TOKEN:-}", EMPTY: }
    ports: ["127.0.0.1:9000:8000/tcp"]
""")
    assert found.engine.keys == {"max_model_len": 8192, "gpu": 1}
    assert found.engine.args == {"limit-mm-per-prompt": {"image": 0}}
    assert found.engine.env == {"NCCL_P2P_DISABLE": "1"}
    assert found.engine.published == Published("127.0.0.1", 9000)
    assert found.left_out["compose.yml:4  llm", "version v0.10.2"] == (
        "`memoria setup --vllm 0.10.2` installs it"
    )


def test_an_entrypoint_with_a_model_that_is_mounted(compose: Compose) -> None:
    found = compose("""
services:
  translate:
    image: internal.example/ai/serving:3
    entrypoint: ["vllm", "serve"]
    command:
      - /models
      - --served-model-name
      - model
      - -tp
      - "1"
      - --no-enable-prefix-caching
    volumes: ["./weights/m:/models:ro"]
""")
    assert found.engine.model == "./weights/m"
    assert found.engine.keys == {"served_model_name": "model"}
    assert found.engine.args == {"enable-prefix-caching": False}


def test_a_module_after_an_entrypoint_of_text_and_words_from_a_variable(compose: Compose) -> None:
    found = compose(
        """
services:
  vllm:
    image: registry.example/llm
    ipc: host
    entrypoint: python3
    command: -m vllm.entrypoints.openai.api_server --port=5000 ${VLLM_ARGS}
    ports: ["5000:5000"]
""",
        "VLLM_ARGS=--model org/m --quantization awq\n",
    )
    assert found.engine.model == "org/m"
    assert not found.engine.is_named
    assert (found.engine.keys, found.engine.published) == ({"quantization": "awq"}, Published("", 5000))
    assert list(found.left_out) == [("compose.yml:5  vllm", "`ipc`")]


def test_a_shell_in_the_container(compose: Compose) -> None:
    found = compose("""
services:
  vllm:
    image: vllm/vllm-openai
    entrypoint: ["/bin/bash", "-c"]
    environment: ["LENGTH=4096"]
    command:
      - |
        pip install -q extra &&
        exec vllm serve org/m \\
          --max-model-len $$LENGTH
""")
    assert (found.engine.model, found.engine.keys) == ("org/m", {"max_model_len": 4096})


def test_anchors_merges_and_profiles(compose: Compose) -> None:
    found = compose("""
x-common: &common
  image: ${IMAGE:-vllm/vllm-openai:latest}
  runtime: nvidia
  environment: &env {HF_HUB_OFFLINE: "1", VLLM_NO_USAGE_STATS: "1", VLLM_ATTENTION_BACKEND: "${BACKEND:-}"}
  volumes:
    - {type: bind, source: "${MODELS:-/opt/models}", target: /models, read_only: true}
services:
  triage:
    <<: *common
    command: >
      --model /models/triage ${QUANTIZED:---quantization mxfp4} --kv-cache-dtype ${KV:-fp8}
    deploy: {resources: {reservations: {devices: [{driver: nvidia, device_ids: ['2'], capabilities: [gpu]}]}}}
  spare:
    <<: *common
    profiles: [backup]
    environment: {<<: *env, CUDA_VISIBLE_DEVICES: "1"}
    command: --model /models/spare
    deploy: {replicas: 2, resources: {reservations: {devices: [{device_ids: ['4', '5']}]}}}
""")
    triage, spare = found.engines
    assert triage.model == "/opt/models/triage"
    assert triage.keys == {"quantization": "mxfp4", "kv_cache_dtype": "fp8", "gpu": 2}
    assert triage.env == spare.env == {"HF_HUB_OFFLINE": "1"}
    assert spare.keys == {"gpu": 5}  # the second of those that it sees
    reasons = {what: why for (where, what), why in found.left_out.items() if "spare" in where}
    assert "on_demand: true" in reasons["`profiles`"]
    assert reasons["`deploy.replicas`"] == "one engine serves a model: raise its `max_num_seqs`"


def test_the_hubs_cache_on_the_host_and_in_a_volume(compose: Compose) -> None:
    found = compose("""
services:
  default:
    image: vllm/vllm-openai
    command: --model org/a
    volumes: ["~/.cache/huggingface:/home/vllm/.cache/huggingface"]
  other: {image: vllm/vllm-openai, command: --model org/b, volumes: ["/data:/home/vllm/.cache"]}
  own:
    image: vllm/vllm-openai
    command: --model org/c
    environment: [HF_HOME=/hf]
    volumes: ["./hub:/hf"]
  hub: {image: vllm/vllm-openai, command: --model org/e, volumes: ["/hub:/home/vllm/.cache/huggingface/hub"]}
  named: {image: vllm/vllm-openai, command: --model org/d, volumes: ["hf:/home/vllm/.cache/huggingface"]}
volumes: {hf: {}}
""")
    assert [engine.env for engine in found.engines] == [
        {},
        {"HF_HOME": "/data/huggingface"},
        {"HF_HOME": f"{compose.folder}/hub"},
        {"HF_HUB_CACHE": "/hub"},
        {},
    ]
    ((where, what),) = found.left_out
    assert (where, what) == ("compose.yml:14  named", "volume `hf`")


def test_an_env_file_gives_what_is_vllms(compose: Compose) -> None:
    (compose.folder / "vllm.env").write_text("NCCL_DEBUG=INFO\nPOSTGRES_PASSWORD=x\nHF_TOKEN=y\n")
    found = compose("""
services:
  vllm:
    image: vllm/vllm-openai
    command: org/m
    env_file: [vllm.env, {path: gone.env, required: false}]
""")
    assert found.engine.env == {"NCCL_DEBUG": "INFO"}
    assert [what for _, what in found.left_out] == ["`gone.env`", "`HF_TOKEN`"]


def test_a_secret_is_never_written(compose: Compose) -> None:
    found = compose("""
services:
  vllm:
    image: vllm/vllm-openai
    command: --model org/m --api-key sk-very-secret
    environment: {HUGGING_FACE_HUB_TOKEN: very-secret, VLLM_API_KEY: very-secret}
""")
    assert "very-secret" not in repr(found.engine) + repr(found.left_out)
    assert [what for _, what in found.left_out] == [
        "`--api-key`",
        "`HUGGING_FACE_HUB_TOKEN`",
        "`VLLM_API_KEY`",
    ]


def test_several_services_and_those_of_others(compose: Compose) -> None:
    found = compose("""
services:
  embed:
    image: vllm/vllm-openai
    command: --model org/e --runner pooling
    ports: [{target: 8000, published: "8002", protocol: tcp}]
    gpus: all
  chat-vllm:
    image: lmcache/vllm-openai:latest
    command: [serve, org/c]
    ports: ["8001:8000"]
    gpus: [{driver: nvidia, device_ids: ["1"]}]
  db: {image: qdrant/qdrant, ports: ["6333:6333"]}
  proxy: {image: ghcr.io/berriai/litellm, depends_on: [embed]}
""")
    assert [engine.name for engine in found.engines] == ["embed", "chat"]
    assert [engine.published for engine in found.engines] == [Published("", 8002), Published("", 8001)]
    assert [engine.keys.get("gpu") for engine in found.engines] == [None, 1]
    others = [why for (_, what), why in found.left_out.items() if what == "the service"]
    assert others == ["it runs no vLLM: keep it where it is"] * 2


def test_a_file_without_vllm_or_with_mistakes_is_refused(compose: Compose) -> None:
    assert "no service of compose.yml runs vLLM" in compose.refused("services: {db: {image: qdrant}}")
    assert "services: none" in compose.refused("version: '3'\n")
    assert "is not YAML" in compose.refused("services: [\n")
    needs = "services: {a: {image: vllm/vllm-openai, command: '${MODEL:?set it}'}}"
    assert "the variable MODEL is not set: set it" in compose.refused(needs)
    quote = 'services: {a: {image: vllm/vllm-openai, command: "--model \'org/m"}}'
    assert "a `command` cannot be read: no closing quotation" in compose.refused(quote)
    assert "no vLLM service of compose.yml names a model" in compose.refused(
        "services: {a: {image: vllm/vllm-openai, command: --seed 4}}"
    )


def test_a_variable_that_is_not_set_is_named(compose: Compose) -> None:
    text = "services:\n  a: {image: vllm/vllm-openai, command: '--model %s --dtype ${TYPE}'}\n"
    text += "  db: {image: 'qdrant:${TAG}'}\n"
    found = compose(text % "org/m")
    assert found.left_out["compose.yml:2  a", "`$TYPE`"] == "it is not set, and was taken as blank"
    assert [what for _, what in found.left_out] == ["`$TYPE`", "`--dtype`", "the service"]
    assert found.engine.keys == {}
    said = compose.refused(text % "${MODEL:-}${NAME}")
    assert "compose.yml:2  a  `$NAME`, `$TYPE` is not set" in said


def test_a_script_of_ones_own_cannot_be_read(compose: Compose) -> None:
    text = "services: {a: {image: vllm/vllm-openai, entrypoint: /start.sh, command: x}}"
    assert "no service of compose.yml runs vLLM" in compose.refused(text)
