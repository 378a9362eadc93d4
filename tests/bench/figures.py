"""The daemon's own figures, measured on this machine:  python -m tests.bench.figures [PART ...]

    commands    seconds of `memoria --help` and `memoria check`
    idle        memory and processor time of supervisor and proxy with two ready engines
    start       the demo from installed state to "all ready" against the engines' separate starts
    embeddings  small-embedding throughput through memoria against the engine asked directly, interleaved
    metrics     seconds of `/metrics`, and what a scrape per second does to the event loop
    status      seconds of a status and of `memoria status`, also while an engine hangs (stub engines)
    relay       what a scrape per second does to requests on their way through memoria (stub engines)

All but the last two need `memoria setup --cpu` and memoria installed beside this Python. Asserts nothing:
times are for people.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests.bench import stubbed
from tests.vllm.daemon import RealDaemon

MEMORIA = [str(Path(sys.executable).with_name("memoria"))]
CLIENTS = 32


def commands() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(__file__).parents[2] / "configs" / "cpu-demo.yaml"
        for arguments in (["--help"], ["check", "-c", str(config)], ["--version"]):
            times = [_timed(MEMORIA + arguments, folder) for _ in range(11)]
            print(f"{arguments[0]:10} median {statistics.median(times):.3f} s  min {min(times):.3f} s")


def _timed(command: list[str], folder: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - began


def idle() -> None:
    with _Daemon() as daemon:
        process = psutil.Process(daemon.process.pid)
        time.sleep(5)
        before, began = process.cpu_times(), time.monotonic()
        time.sleep(30)
        after, span = process.cpu_times(), time.monotonic() - began
        busy = (after.user + after.system) - (before.user + before.system)
        memory = process.memory_full_info()
        print(f"resident {memory.rss / 2**20:.1f} MiB, proportional {memory.pss / 2**20:.1f} MiB")
        print(f"idle: {busy / span * 100:.2f} % of a core over {span:.0f} s")


def start() -> None:
    """Separate starts: each engine alone, spawn to ready; then the demo with both."""
    alone = {}
    for name in ("embedding", "generation"):
        with _Daemon(only=name) as daemon:
            alone[name] = daemon.status()[name]["start_seconds"]
            print(f"{name} alone: {alone[name]:.1f} s")
    began = time.monotonic()
    with _Daemon() as daemon:
        both = time.monotonic() - began
        print(f"demo, from its command to all ready: {both:.1f} s; one by one {sum(alone.values()):.1f} s")
        print(f"ratio {both / sum(alone.values()):.2f}")
        for record in daemon.journal():
            if record.get("event") in ("gate_passed", "gate_left", "transition"):
                print(f"  {record['time']}  {record['message']}")


def embeddings(rounds: int = 16, seconds: float = 2.5) -> None:
    """The engine has a port of its own, so that it is asked in the same way with memoria and without."""
    with _Daemon(only="embedding", engine={"transport": "tcp"}) as daemon:
        asyncio.run(_compare(daemon, rounds, seconds))


async def _compare(daemon: RealDaemon, rounds: int, seconds: float) -> None:
    urls = {"direct": f"http://127.0.0.1:{daemon.embedding_port}", "memoria": daemon.url}
    ratios = []
    for number in range(rounds + 1):
        found = {}
        for name in sorted(urls, reverse=number % 2 == 0):  # nobody always comes first
            found[name] = await _throughput(urls[name], seconds)
        if number == 0:
            continue  # warm-up
        ratios.append(found["memoria"] / found["direct"])
        print(", ".join(f"{name} {found[name]:.0f}/s" for name in urls) + f", ratio {ratios[-1]:.3f}")
    middle = statistics.median(ratios)
    print(
        f"embeddings/s through memoria: median {middle:.3f} of direct, {min(ratios):.2f} to {max(ratios):.2f}"
    )


async def _throughput(url: str, seconds: float) -> float:
    body = json.dumps({"model": "tiny-embedding", "input": "a short text"}).encode()
    headers = {"content-type": "application/json"}
    done = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CLIENTS)) as client:
        deadline = time.monotonic() + seconds

        async def ask() -> None:
            nonlocal done
            while time.monotonic() < deadline:
                async with client.post(f"{url}/v1/embeddings", data=body, headers=headers) as answer:
                    await answer.read()
                    answer.raise_for_status()
                done += 1

        began = time.monotonic()
        await asyncio.gather(*(ask() for _ in range(CLIENTS)))
        return done / (time.monotonic() - began)


def metrics(rounds: int = 4, seconds: float = 5.0) -> None:
    """The event loop's own delay is what all requests share: `/livez` is asked again and again."""
    with _Daemon() as daemon:
        alone: list[float] = []
        scraped: list[float] = []
        scrapes: list[float] = []
        for _ in range(rounds):
            alone += _asked_for(daemon.port, "/livez", seconds)
            over = threading.Event()
            thread = threading.Thread(target=_scrape, args=(daemon.port, scrapes, over))
            thread.start()
            scraped += _asked_for(daemon.port, "/livez", seconds)
            over.set()
            thread.join()
        print(f"/metrics meanwhile: median {statistics.median(scrapes) * 1000:.1f} ms of {len(scrapes)}")
        scrapes.clear()
        for _ in range(50):
            time.sleep(0.05)
            scrapes += _asked_for(daemon.port, "/metrics", 0)
        print(f"/metrics alone: median {statistics.median(scrapes) * 1000:.1f} ms")
        for what, times in (("alone", alone), ("a scrape per second", scraped)):
            p50, p99, p999 = (sorted(times)[int(len(times) * share)] * 1e6 for share in (0.5, 0.99, 0.999))
            print(f"{what}: p50 {p50:.0f} us, p99 {p99:.0f} us, p99.9 {p999:.0f} us of {len(times)} requests")


def _asked_for(port: int, path: str, seconds: float) -> list[float]:
    """Once at least."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while not times or time.perf_counter() < deadline:
        began = time.perf_counter()
        connection.request("GET", path)
        connection.getresponse().read()
        times.append(time.perf_counter() - began)
    connection.close()
    return times


def _scrape(port: int, times: list[float], over: threading.Event) -> None:
    while not over.wait(1.0):
        times += _asked_for(port, "/metrics", 0)


class _Daemon:
    def __init__(self, only: str | None = None, **keys: Any) -> None:
        self._only, self._keys = only, keys

    def __enter__(self) -> RealDaemon:
        self._folder = tempfile.TemporaryDirectory()
        self._daemon = RealDaemon(Path(self._folder.name), only=self._only, **self._keys)
        self._daemon.wait_ready()
        return self._daemon

    def __exit__(self, *_: object) -> None:
        self._daemon.stop()
        self._folder.cleanup()


PARTS: dict[str, Callable[[], None]] = {
    "commands": commands,
    "idle": idle,
    "start": start,
    "embeddings": embeddings,
    "metrics": metrics,
    "status": stubbed.status,
    "relay": stubbed.relay,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART")
    for part in parser.parse_args().parts or PARTS:
        print(f"== {part}", flush=True)
        PARTS[part]()


if __name__ == "__main__":
    main()
