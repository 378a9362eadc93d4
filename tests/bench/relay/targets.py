"""What is measured: the upstream asked directly, memoria, and the peers that are installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from tests.bench.relay import cost
from tests.bench.relay.load_program import Load
from tests.ports import free_ports
from tests.programs import find

ROOT = Path(__file__).parents[3]
STAND_IN = Path(__file__).with_name("engine_stand_in.py")
PEERS = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "memoria-bench"
PATIENCE = 60.0  # seconds until a target answers
OLD = "MEMORIA_OLD_PYTHON"  # the interpreter of an environment with another version of memoria

VLLM_ROUTER = "vllm-router==0.1.17"

# Every check is on that is on by default, and the request log besides. The engines are reached as by default,
# over Unix sockets, and so they are by nginx; vllm-router knows ports only. Or all know ports only.
MEMORIA = """\
listen: 127.0.0.1:{port}
device: cpu
gpu_limit: 0.9
vllm: ./vllm
log: {{dir: logs, requests: text}}
engines:
  embedding:
    model: ./model
    served_model_name: embedding
    runner: pooling
    gpu_memory_utilization: 0.01
    {embedding}
  generation:
    model: ./model
    served_model_name: generation
    gpu_memory_utilization: 0.01
    {generation}
"""

# Tuned as well as it can be for this use: nothing is buffered, connections to the engines are kept.
NGINX = """\
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log error; {user}
events {{ worker_connections 9000; }}
http {{
  access_log off; keepalive_requests 100000000; client_max_body_size 64m; tcp_nodelay on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream embedding {{ server {embedding}; keepalive 2048; keepalive_requests 100000000; }}
  upstream generation {{ server {generation}; keepalive 2048; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_read_timeout 600s;
    proxy_buffering off; proxy_request_buffering off;
    proxy_buffer_size 16k; proxy_buffers 4 16k; proxy_busy_buffers_size 16k;
    location = /v1/embeddings {{ proxy_pass http://embedding; }}
    location / {{ proxy_pass http://generation; }}
  }}
}}
"""

QUESTIONS = {
    "completions": b'{"model":"generation","prompt":"a"}',
    "embeddings": b'{"model":"embedding","input":"a"}',
}


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where the stub listens: one thread answers on all, whatever it is asked. `passing` is where it takes
    other sockets that listen. `tcp`: all targets are to reach it over TCP."""

    embedding: int
    generation: int
    embedding_socket: Path
    generation_socket: Path
    passing: Path
    tcp: bool = False

    @classmethod
    def of(cls, load: Load, folder: Path, *, tcp: bool = False) -> Self:
        """Listens in `folder`, and on ports for what knows no other."""
        sockets = folder / "embedding.sock", folder / "generation.sock"
        for path in sockets:
            load.listen(f"unix:{path}")
        load.listen(f"pass:{folder / 'pass.sock'}")
        return cls(load.listen(), load.listen(), *sockets, folder / "pass.sock", tcp)


@dataclass(frozen=True, slots=True)
class Command:
    """How a target is started. `alone`: its children are not the target (memoria's engines). `path`: where
    its Python modules are, if they are these."""

    argv: Sequence[str]
    port: int
    alone: bool = False
    path: Path | None = ROOT


class Absent(Exception):
    """A peer is not installed on this machine."""


def memoria(folder: Path, upstream: Upstream, python: str = sys.executable) -> Command:
    port, *engine_ports = free_ports(3)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "vllm").write_text(f"#!/bin/sh\nexec '{sys.executable}' -S '{STAND_IN}' \"$@\"\n")
    (folder / "vllm").chmod(0o755)
    file = folder / "memoria.yaml"
    if upstream.tcp:
        engines = [
            f"transport: tcp\n    port: {each}\n    env: {{PASS: {upstream.passing}}}"
            for each in engine_ports
        ]
    else:
        sockets = upstream.embedding_socket, upstream.generation_socket
        engines = [f"env: {{UPSTREAM: {path}}}" for path in sockets]
    file.write_text(MEMORIA.format(port=port, embedding=engines[0], generation=engines[1]))
    return Command([python, "-m", "memoria", "run", "-c", str(file)], port, alone=True)


def old(folder: Path, upstream: Upstream) -> Command:
    """Another version of memoria, to compare with."""
    python = os.environ.get(OLD)
    if python is None:
        raise Absent(f"old ({OLD} names no interpreter)")
    return replace(memoria(folder, upstream, python), path=None)


def nginx(folder: Path, upstream: Upstream) -> Command:
    program = find("nginx")
    if program is None:
        raise Absent("nginx (Debian: apt-get install nginx-light)")
    (port,) = free_ports(1)
    user = "user root;" if os.geteuid() == 0 else ""  # else a worker of root's cannot use the folder
    file = folder / "nginx.conf"
    if upstream.tcp:
        engines = [f"127.0.0.1:{number}" for number in (upstream.embedding, upstream.generation)]
    else:
        engines = [f"unix:{path}" for path in (upstream.embedding_socket, upstream.generation_socket)]
    file.write_text(
        NGINX.format(folder=folder, user=user, port=port, embedding=engines[0], generation=engines[1])
    )
    return Command([program, "-e", str(folder / "nginx.log"), "-c", str(file)], port)


def vllm_router(folder: Path, upstream: Upstream) -> Command:
    program = PEERS / "vllm-router" / "bin" / "vllm-router"
    if not program.exists():
        raise Absent("vllm-router (python -m tests.bench.relay --install)")
    port, metrics = free_ports(2)
    urls = [f"http://127.0.0.1:{number}" for number in (upstream.embedding, upstream.generation)]
    options = (
        f"--host 127.0.0.1 --port {port} --prometheus-port {metrics} --policy round_robin --disable-retries "
        "--disable-circuit-breaker --log-level error --max-payload-size 67108864 "
        "--request-timeout-secs 600 --max-concurrent-requests 100000"
    )
    return Command([str(program), *options.split(), "--worker-urls", *urls], port)


TARGETS = {"memoria": memoria, "old": old, "nginx": nginx, "vllm-router": vllm_router}


def install_peers() -> None:
    """vllm-router from PyPI into an environment of its own. nginx is the distribution's."""
    environment = PEERS / "vllm-router"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    subprocess.run([str(environment / "bin" / "pip"), "install", "--quiet", VLLM_ROUTER], check=True)


class Target:
    """A proxy that runs. Raises `Absent`, or `RuntimeError` with what it said when it does not answer."""

    def __init__(self, name: str, folder: Path, upstream: Upstream, core: int | None) -> None:
        self.name = name
        folder.mkdir()
        self._command = TARGETS[name](folder, upstream)
        self.port, self._log = self._command.port, folder / "output.txt"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command.argv,
                cwd=folder,
                env=_environment(folder, self._command.path),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509
            )
        try:
            self._until_answering()
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def pids(self) -> tuple[int, ...]:
        return (self.pid,) if self._command.alone else cost.family(self.pid)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _until_answering(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not all(_answers(self.port, path, body) for path, body in QUESTIONS.items()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not answer:\n{self._log.read_text()[-4000:]}")
            time.sleep(0.1)


def _answers(port: int, path: str, body: bytes) -> bool:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/{path}", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            answer.read()
            return bool(answer.status == 200)
    except OSError:
        return False


def _environment(folder: Path, path: Path | None) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        **({} if path is None else {"PYTHONPATH": str(path)}),
        "MEMORIA_RUNTIME_DIR": str(folder / "run"),
    }
