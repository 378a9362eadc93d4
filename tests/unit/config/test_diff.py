"""The diff of two configurations: who restarts for what, and what needs no restart."""

from __future__ import annotations

import pytest

from memoria.config.diff import Changes, Restarts, compare
from memoria.config.model import Config
from tests.unit.config_files import ConfigFolder, folder

__all__ = ["folder"]

FILE = """\
{top}
engines:
  a: {{model: org/one, gpu_memory_utilization: 0.4, {a}}}
  b: {{model: org/two, gpu_memory_utilization: 0.4}}
"""


def changes(folder: ConfigFolder, *, top: str = "", a: str = "") -> Changes:
    before = folder.load(FILE.format(top="", a="max_num_seqs: 8"))
    return compare(before, folder.load(FILE.format(top=top, a=f"max_num_seqs: 8, {a}")))


def loaded(folder: ConfigFolder, text: str) -> Config:
    return folder.load(text)


def test_the_same_file_is_no_change(folder: ConfigFolder) -> None:
    assert not changes(folder)


@pytest.mark.parametrize(
    ("top", "keys"),
    [
        ("listen: 127.0.0.1:9000", ("listen",)),
        ("keys: ./keys", ("keys",)),
        ("allowed_hosts: [box]", ("allowed_hosts",)),
        ("cors: {origins: ['https://a.example']}", ("cors.origins",)),
        ("timeouts: {idle: 5, drain: 1}", ("timeouts.drain", "timeouts.idle")),
        ("restart: {cap: 10}", ("restart.cap",)),
        ("limits: {body_mb: 1}", ("limits.body_mb",)),
        ("hold: {seconds: 1}", ("hold.seconds",)),
        ("guard: {protect: a, inter_token_ms: 50}", ("guard",)),
        ("gpu_limit: 0.9", ("gpu_limit",)),
        ("log: {max_mb: 1}", ("log.max_mb",)),
    ],
)
def test_what_is_memorias_own_takes_effect_at_once(
    folder: ConfigFolder, top: str, keys: tuple[str, ...]
) -> None:
    assert changes(folder, top=top) == Changes(live=keys)


@pytest.mark.parametrize("key", ["port: 9001", "max_requests: 3", "filters: {strip: [seed]}"])
def test_what_memoria_does_for_an_engine_does_not_restart_it(folder: ConfigFolder, key: str) -> None:
    assert changes(folder, a=key) == Changes(live=(f"a.{key.partition(':')[0]}",))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("max_model_len: 99", "max_model_len"),
        ("args: {seed: 1}", "seed"),
        ("env: {A: '1'}", "env"),
        ("gpu: 1", "gpu"),
        ("runner: pooling", "runner"),
        ("served_model_name: x", "served_model_name"),
    ],
)
def test_what_an_engine_was_started_with_restarts_it_alone(folder: ConfigFolder, key: str, name: str) -> None:
    assert changes(folder, a=key) == Changes(restarts=(Restarts("a", (name,)),))


def test_another_vllm_restarts_everybody(folder: ConfigFolder) -> None:
    found = changes(folder, top="vllm: /opt/vllm/bin/vllm")
    assert found == Changes(restarts=(Restarts("a", ("vllm",)), Restarts("b", ("vllm",))))


@pytest.mark.parametrize(
    "top", ["device: cpu", "runtime_dir: /run/other", "log: {dir: /elsewhere}", "log: {format: json}"]
)
def test_some_keys_need_a_new_daemon(folder: ConfigFolder, top: str) -> None:
    (key,) = changes(folder, top=top).fixed
    assert key.split(".")[0] == top.split(":", maxsplit=1)[0]


def test_engines_come_and_go(folder: ConfigFolder) -> None:
    one = loaded(folder, "engines: {a: {model: o/a, gpu_memory_utilization: 0.4}}")
    other = loaded(folder, "engines: {b: {model: o/a, gpu_memory_utilization: 0.4}}")
    assert compare(one, other) == Changes(added=("b",), removed=("a",))


def test_a_standby_needs_a_socket_of_its_own(folder: ConfigFolder) -> None:
    problem = folder.engine_problem("standby: true, transport: tcp, port: 8100")
    assert problem.what == "a standby cannot share its engine's port"
