"""Mixed traffic and random kills, for as long as you like:

    python -m tests.faults.soak [--minutes N] [--seed N]

A daemon with two stub engines; clients that embed, stream, leave and read slowly; every few seconds a random
process of an engine is killed. Reports failed requests by cause, times of recovery, and what the daemon held
at the start and at the end. Ends with 1 where something is wrong: an answer that looks whole and is not,
a survivor, or growth past the bounds below.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.inside import Footprint, footprint, observed
from tests.faults.traffic import Traffic, percentile
from tests.faults.verdict import FAILED, Result, Verdict
from tests.integration.daemon import Box, RunningDaemon, until
from tests.stub_engine.process import alive
from tests.stub_nvml import build_library

CLIENTS = {"embeddings": 4, "streams": 6, "leavers": 3, "slow_readers": 2}
BETWEEN_KILLS_S = (2.0, 6.0)
WARM_UP_S = 5.0  # of traffic before the start is measured: caches fill, connections are opened

# What the daemon may hold more at the end than at the start, both without a request in flight.
MORE_MEMORY = 32 << 20  # bytes
MORE_DESCRIPTORS = sum(CLIENTS.values())  # connections to engines that wait for their next request
MORE_TASKS = 0


@dataclass(frozen=True, slots=True)
class Report:
    """`recoveries` in seconds, from a kill to ready, sorted."""

    results: tuple[Result, ...]
    recoveries: tuple[float, ...]
    start: Footprint
    end: Footprint
    survivors: int
    exit_code: int

    def wrong(self) -> list[str]:
        found = [f"{r.kind}: {r.cause}" for r in self.results if r.verdict is Verdict.WRONG]
        if self.survivors:
            found.append(f"{self.survivors} processes outlived the daemon")
        if self.exit_code:
            found.append(f"the daemon ended with {self.exit_code}")
        for name, more in (
            ("memory", MORE_MEMORY),
            ("descriptors", MORE_DESCRIPTORS),
            ("tasks", MORE_TASKS),
        ):
            before, after = getattr(self.start, name), getattr(self.end, name)
            if after > before + more:
                found.append(f"{name} grew from {before} to {after}")
        return found

    def lines(self) -> list[str]:
        causes: dict[str, int] = {}
        for result in self.results:
            if result.verdict in FAILED:
                cause = f"{result.kind} {result.verdict}: {result.cause}"
                causes[cause] = causes.get(cause, 0) + 1
        counts = {verdict: sum(r.verdict is verdict for r in self.results) for verdict in Verdict}
        recoveries = list(self.recoveries)
        return [
            f"requests    {len(self.results)}: {', '.join(f'{n} {v}' for v, n in counts.items())}",
            *(f"  {count:6} {cause}" for cause, count in sorted(causes.items())),
            f"kills       {len(recoveries)}; to ready again: median {percentile(recoveries, 0.5):.2f} s, "
            f"longest {recoveries[-1]:.2f} s",
            f"at start    {self.start}",
            f"at end      {self.end}",
            f"survivors   {self.survivors}",
        ]


def soak(box: Box, seconds: float) -> Report:
    """The box needs nothing but to be new."""
    box.configure()
    box.vllm.set_faults("generation", token_seconds=0.005)
    daemon = box.start(PYTHONPATH=observed(box.folder))
    daemon.until_ready()
    with Traffic(box.ports.main, **CLIENTS):
        time.sleep(WARM_UP_S)
    start = _at_rest(daemon)
    recoveries = []
    with Traffic(box.ports.main, **CLIENTS) as traffic:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(random.uniform(*BETWEEN_KILLS_S))
            recoveries.append(_kill_one(box, daemon))
    end = _at_rest(daemon)
    exit_code = daemon.stop()
    return Report(
        tuple(traffic.results), tuple(sorted(recoveries)), start, end, len(box.survivors()), exit_code
    )


def _at_rest(daemon: RunningDaemon) -> Footprint:
    until(lambda: all(engine.in_flight == 0 for engine in daemon.status().engines))
    return footprint(daemon)


def _kill_one(box: Box, daemon: RunningDaemon) -> float:
    """Kills one process of one engine; returns the seconds until that engine is ready again."""
    engine = random.choice(daemon.status().engines)
    pids = {event.pid for event in box.vllm.events(engine=engine.name) if alive(event.pid)}
    began = time.monotonic()
    os.kill(random.choice(sorted(pids)), signal.SIGKILL)

    def again() -> bool:
        now = daemon.engine(engine.name)
        return now.restarts > engine.restarts and now.state == "ready"

    until(again)
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        box = Box(Path(folder), build_library(Path(folder)))
        try:
            report = soak(box, arguments.minutes * 60)
        finally:
            box.close()
    print("\n".join(report.lines()))
    wrong = report.wrong()
    for what in wrong:
        print(f"WRONG       {what}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
