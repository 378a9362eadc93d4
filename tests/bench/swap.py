"""Two engines on demand that do not fit beside each other, with real vLLM: `python -m tests.bench.swap`

    --swaps N          after the first start of each (20)
    --model MODEL      of both (the demo's tiny model, on the CPU); with a GPU: --device cuda
    --no-standby       every start imports anew
    --streams N        streams that run all the time, half at each engine (0: a request per swap, while idle)

Prints the seconds from a request at the engine that is away to its answer: first starts, then swaps, and
whether every stream ended as it should with the tokens that the engine gave before. Needs `memoria setup`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from memoria.demo import config_path
from tests.ports import free_ports

ENGINES = ("first", "second")
PROMPT = "one two three four five six seven eight"
PATIENCE = 600.0  # seconds; two cores, imports of torch
TOKENS = 24


@dataclass
class Result:
    """Seconds to an answer, and what went wrong."""

    first_starts: list[float] = field(default_factory=list)
    swaps: list[float] = field(default_factory=list)
    streams: int = 0
    wrong: list[str] = field(default_factory=list)
    wakes: int = 0
    took_over: int = 0


class Daemon:
    """`memoria run` with the two engines, its journal as JSON lines."""

    def __init__(self, folder: Path, model: str | None, device: str, *, standby: bool, turn: float) -> None:
        (self.port,) = free_ports(1)
        demo = yaml.safe_load(config_path().read_text())["engines"]["generation"]
        engine = {key: value for key, value in demo.items() if key not in ("port", "served_model_name")}
        if model is None:
            engine["model"] = str(config_path().parent / engine["model"])
        else:
            engine = {"model": model, "gpu_memory_utilization": 0.6}
        engine |= {"on_demand": True, "standby": standby}
        config = {
            "listen": f"127.0.0.1:{self.port}",
            "device": device,
            "gpu_limit": float(engine["gpu_memory_utilization"]) * 1.5,
            "hold": {"seconds": PATIENCE},
            "swap": {"turn": turn, "min_awake": 0.1, "patience": PATIENCE},
            "engines": {name: {**engine, "served_model_name": name} for name in ENGINES},
        }
        (folder / "memoria.yaml").write_text(yaml.safe_dump(config))
        self._runtime = tempfile.mkdtemp(prefix="memoria-")
        self.journal_file = folder / "journal.jsonl"
        with self.journal_file.open("wb") as journal:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "memoria", "run", "-c", str(folder / "memoria.yaml")],
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": str(Path(__file__).parents[2]),
                    "LOG_FORMAT": "json",
                    "XDG_STATE_HOME": str(folder / "state"),
                    "MEMORIA_RUNTIME_DIR": self._runtime,
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=journal,
            )

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = self.journal_file.read_text().splitlines()
        return [record for line in lines if (record := json.loads(line)).get("event") == kind]

    def until(self, kind: str, engine: str, times: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while sum(event["engine"] == engine for event in self.events(kind)) < times:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no {kind} of {engine}:\n{self.journal_file.read_text()[-3000:]}")
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            return self.ask("GET", "/livez")[0] == 200
        except OSError:
            return False

    def complete(self, engine: str) -> tuple[int, str]:
        """The status, and the text that a greedy request gets."""
        body = {"model": engine, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        status, text = self.ask("POST", "/v1/completions", body)
        return status, json.loads(text)["choices"][0]["text"] if status == 200 else text

    def stream(self, engine: str) -> str:
        """The text of a stream that ended as it should; otherwise what it was."""
        body = {"model": engine, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        status, text = self.ask("POST", "/v1/completions", {**body, "stream": True})
        events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        if status != 200 or not events or events[-1] != "[DONE]":
            return f"{status}: {text[-300:]}"
        return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(
                method, path, None if body is None else json.dumps(body), {"content-type": "application/json"}
            )
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@contextmanager
def running(model: str | None, device: str, *, standby: bool, turn: float) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder), model, device, standby=standby, turn=turn)
        try:
            while not daemon.answers():
                if daemon.process.poll() is not None:
                    raise RuntimeError(daemon.journal_file.read_text())
                time.sleep(0.1)
            yield daemon
        finally:
            daemon.stop()


def measure(
    swaps: int, streams: int, *, model: str | None = None, device: str = "cpu", standby: bool = True
) -> Result:
    result, expected = Result(), {}
    with running(model, device, standby=standby, turn=2.0) as daemon:
        for number, engine in enumerate(ENGINES):
            began = time.monotonic()
            status, expected[engine] = daemon.complete(engine)
            result.first_starts.append(time.monotonic() - began)
            if status != 200:
                raise RuntimeError(expected[engine])
            if standby:
                daemon.until("standby_waiting", engine, 1)
            if number == 0:
                time.sleep(0.2)
        if streams:
            _under_load(daemon, swaps, streams, expected, result)
        else:
            _one_by_one(daemon, swaps, expected, result, standby=standby)
        result.wakes = len(daemon.events("wakes"))
        result.took_over = len(daemon.events("standby_took_over"))
    return result


def _one_by_one(
    daemon: Daemon, swaps: int, expected: dict[str, str], result: Result, *, standby: bool
) -> None:
    for number in range(swaps):
        engine = ENGINES[number % 2]
        began = time.monotonic()
        status, text = daemon.complete(engine)
        result.swaps.append(time.monotonic() - began)
        if status != 200 or text != expected[engine]:
            result.wrong.append(f"{engine}: {status} {text!r}")
        if standby:
            daemon.until("standby_waiting", engine, 2 + number // 2)


def _under_load(daemon: Daemon, swaps: int, streams: int, expected: dict[str, str], result: Result) -> None:
    over, lock = threading.Event(), threading.Lock()

    def client(engine: str) -> None:
        while not over.is_set():
            began = time.monotonic()
            try:
                text = daemon.stream(engine)
            except (OSError, http.client.HTTPException) as error:
                text = repr(error)
            with lock:
                result.streams += 1
                result.swaps.append(time.monotonic() - began)
                if text != expected[engine]:
                    result.wrong.append(f"{engine}: {text!r}")

    threads = [threading.Thread(target=client, args=(ENGINES[n % 2],)) for n in range(streams)]
    for thread in threads:
        thread.start()
    while len(daemon.events("wakes")) < 2 + swaps and daemon.process.poll() is None:
        time.sleep(0.2)
    over.set()
    for thread in threads:
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--no-standby", action="store_true")
    parser.add_argument("--streams", type=int, default=0)
    given = parser.parse_args()
    result = measure(
        given.swaps, given.streams, model=given.model, device=given.device, standby=not given.no_standby
    )
    print(f"first starts: {', '.join(f'{seconds:.2f}' for seconds in result.first_starts)} s")
    what = "streams" if given.streams else "swaps"
    ordered = sorted(result.swaps)
    print(
        f"{len(ordered)} {what}: median {statistics.median(ordered):.2f} s, "
        f"longest {ordered[-1]:.2f} s; {result.wakes} wakes, {result.took_over} by a standby"
    )
    for wrong in result.wrong:
        print(f"WRONG {wrong}")
    print(f"{len(result.wrong)} wrong answers")
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
