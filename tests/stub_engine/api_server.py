"""The leader: vLLM's API server as memoria meets it.

It binds early and listens late, loads plugins while it parses its arguments, swallows SIGTERM until it is
ready and then ends with 0 at once, and also ends with 0 when its engine core dies.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from typing import NoReturn

from tests.stub_engine.core_client import CoreClient
from tests.stub_engine.events import engine_name, record
from tests.stub_engine.faults import Faults, read_faults, wait_for
from tests.stub_engine.http_server import Connection
from tests.stub_engine.log import Log
from tests.stub_engine.plugins import load_general_plugins
from tests.stub_engine.routes import Routes

# vLLM's own waits, shortened: 0.4 to 3 s with requests in flight, 4 s without
DEATH_NOTICED_BUSY, DEATH_NOTICED_IDLE = 0.1, 0.5

VALUES = (
    "convert distributed-executor-backend dtype hf-overrides kv-cache-dtype kv-cache-memory-bytes "
    "load-format max-log-len max-num-batched-tokens max-num-seqs pooler-config quantization revision "
    "scheduling-policy seed shutdown-timeout tensor-parallel-size tokenizer"
)
SWITCHES = (
    "disable-uvicorn-access-log enable-chunked-prefill enable-lora enable-prefix-caching "
    "enable-request-id-headers enable-sleep-mode enforce-eager trust-remote-code"
)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: record("sigterm", "swallowed"))
    faults = read_faults(engine_name())
    record("spawned")
    if faults.grandchild:
        _leave_grandchild()
    log = Log("APIServer", faults)
    log.reach("importing")
    time.sleep(faults.import_seconds)
    wait_for(faults.import_until)
    args = _parse(sys.argv[1:], faults)
    shown = {name: value for name, value in vars(args).items() if value is not None}
    log.info(f"non-default args: {shown}", place="api_utils.py:286")
    listener = _bind(args)
    log.reach("configuring")
    log.info("Resolved architecture: Qwen3ForCausalLM", place="model.py:733")
    log.info(f"Using max model len {args.max_model_len}", place="model.py:2152")
    asyncio.run(_run(args, faults, log, listener))


def _parse(argv: list[str], faults: Faults) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vllm serve", allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--runner", choices=["auto", "draft", "generate", "pooling"], default="auto")
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--lora-modules", nargs="+", default=[])
    parser.add_argument("--gpu-memory-utilization", type=float)
    parser.add_argument(
        "--max-model-len", type=lambda text: 2048 if text == "auto" else int(text), default=2048
    )
    parser.add_argument("--uds")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--disable-log-stats", action="store_true", default=None)
    for name in VALUES.split():
        parser.add_argument(f"--{name}")
    for name in SWITCHES.split():
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)
    load_general_plugins(faults)
    return parser.parse_args(argv)


def _bind(args: argparse.Namespace) -> socket.socket:
    if args.uds:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(args.uds)
    else:
        listener = socket.socket(socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((args.host or "", args.port))
    return listener


async def _run(args: argparse.Namespace, faults: Faults, log: Log, listener: socket.socket) -> None:
    core = CoreClient(args.model, args.max_model_len, args.gpu_memory_utilization, faults)
    await _until_any(core.ready, core.dead)
    if core.dead.is_set():
        found = {"EngineCore": core.exitcode}
        raise RuntimeError(
            f"Engine core initialization failed. See root cause above. Failed core proc(s): {found}"
        )
    log.reach("listening")

    names = [*(args.served_model_name or [args.model]), *(one.partition("=")[0] for one in args.lora_modules)]
    runner = "pooling" if args.runner == "pooling" else "generate"
    routes = Routes(
        args.model, names, runner, args.max_model_len, core, faults, sleeps=bool(args.enable_sleep_mode)
    )
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer, routes, echo_ids=bool(args.enable_request_id_headers))
        task = asyncio.ensure_future(connection.serve())
        connections.add(task)
        task.add_done_callback(connections.discard)

    start = asyncio.start_unix_server if args.uds else asyncio.start_server
    server = await start(connected, sock=listener)
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _on_sigterm, terminated, routes)
    noise = asyncio.ensure_future(_make_noise(routes))
    record("ready")
    print(f"INFO:     Started server process [{os.getpid()}]")
    print("INFO:     Application startup complete.", flush=True)

    await _until_any(terminated, core.dead)
    if terminated.is_set():
        log.info("[shutdown] API server: shutdown triggered", place="launcher.py:254")
        core.kill()
        await asyncio.sleep(0.05)  # the last errors on their way out
    else:
        log.error("AsyncLLM output_handler failed.", place="async_llm.py:906")
        log.error(
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace "
            "(above) for the root cause.",
            place="async_llm.py:906",
        )
        await asyncio.sleep(DEATH_NOTICED_BUSY if core.died_busy else DEATH_NOTICED_IDLE)
        if routes.faults.leader_stays:
            server.close()
            for task in connections:
                task.cancel()
            await asyncio.sleep(routes.faults.leader_stays)
    noise.cancel()
    _exit(0)


async def _until_any(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _on_sigterm(terminated: asyncio.Event, routes: Routes) -> None:
    if routes.faults.ignore_sigterm:
        record("sigterm", "ignored")
    else:
        record("sigterm")
        terminated.set()


async def _make_noise(routes: Routes) -> None:
    while True:
        if rate := routes.faults.stderr_bytes_per_second:
            line = b"(EngineCore pid=1) WARNING noise " + b"x" * 90 + b"\n"
            os.write(2, line * max(1, rate // 20 // len(line)))
        await asyncio.sleep(0.05)


def _leave_grandchild() -> None:
    """Forks twice and takes a session of its own, so that neither parent, group nor session lead to it."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            record("grandchild")
            while True:
                signal.pause()
        os._exit(0)
    os.wait()


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    os._exit(code)
