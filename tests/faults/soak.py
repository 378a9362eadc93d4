"""Mixed traffic and random kills, for as long as you like:

    python -m tests.faults.soak [--vllm] [--minutes N] [--seed N]

A daemon with two engines, stubs or real; clients that embed, stream, leave and read slowly; every few
seconds a random process of an engine is killed. Reports failed requests by cause, times of recovery, and
what the daemon held at the start and at the end. Ends with 1 where something is wrong: an answer that looks
whole and is not, a survivor, or growth past the bounds below.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from dataclasses import dataclass

from tests.faults.inside import Footprint, footprint
from tests.faults.target import ENGINES, Target, of_stub, of_vllm, stub_box, vllm_folder
from tests.faults.traffic import Traffic, percentile, told
from tests.faults.verdict import Result, Verdict

STUB_FAULTS = {"generation": {"token_seconds": 0.005}}
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
        # an embedding's body may break off; the end of a stream must be announced to its client
        found += [f"{r.kind}: {r.verdict}" for r in self.results if _untold(r)]
        for kind in CLIENTS:
            if not any(r.kind == kind and r.verdict in (Verdict.WHOLE, Verdict.LEFT) for r in self.results):
                found.append(f"{kind}: none of them got anywhere")
        if not self.recoveries:
            found.append("nothing was killed")
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
        recoveries = list(self.recoveries)
        return [
            *told(self.results),
            f"kills       {len(recoveries)}; to ready again: median {percentile(recoveries, 0.5):.2f} s, "
            f"longest {recoveries[-1]:.2f} s",
            f"at start    {self.start}",
            f"at end      {self.end}",
            f"survivors   {self.survivors}",
        ]


def _untold(result: Result) -> bool:
    return result.verdict is Verdict.CUT and result.kind != "embeddings"


def soak(daemon: Target, seconds: float) -> Report:
    """Stops the daemon in the end."""
    with Traffic(daemon.port, daemon.expected, **CLIENTS):
        time.sleep(WARM_UP_S)
    start = _at_rest(daemon)
    recoveries = []
    with Traffic(daemon.port, daemon.expected, **CLIENTS) as traffic:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(random.uniform(*BETWEEN_KILLS_S))
            recoveries.append(_kill_one(daemon))
    end = _at_rest(daemon)
    exit_code = daemon.stop()
    return Report(
        tuple(traffic.results), tuple(sorted(recoveries)), start, end, len(daemon.survivors()), exit_code
    )


def _at_rest(daemon: Target) -> Footprint:
    daemon.until_idle()
    return footprint(daemon.pid, daemon.folder)


def _kill_one(daemon: Target) -> float:
    """Kills one process of one engine; returns the seconds until that engine is ready again."""
    engine = daemon.engine(random.choice(ENGINES))
    began = time.monotonic()
    os.kill(random.choice(daemon.vital(engine.name)), signal.SIGKILL)
    daemon.until_ready_again(engine.name, engine.restarts)
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--vllm", action="store_true", help="two real vLLM servers on the CPU")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    random.seed(given.seed)
    if given.vllm:
        with vllm_folder() as folder:
            report = soak(of_vllm(folder), given.minutes * 60)
    else:
        with stub_box() as box:
            report = soak(of_stub(box, STUB_FAULTS), given.minutes * 60)
    print("\n".join(report.lines()))
    wrong = report.wrong()
    for what in wrong:
        print(f"WRONG       {what}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
