"""The same death again and again, under load: what is rare in one attempt shows in a hundred.

    python -m tests.faults.campaign [--vllm] [--kills N] [--daemons N] [--seed N]

First a random process of the generation engine's tree is killed `--kills` times, then the daemon. With
`--vllm` both engines are real. Exits with 1 on any failure: one that the neighbour's clients see, a silently
truncated answer, a surviving process, or a recovery that took too long.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.target import ENGINES, LONGEST_BACKOFF, Target, of_stub, of_vllm, stub_box, vllm_folder
from tests.faults.traffic import Traffic, percentile, told
from tests.faults.verdict import FAILED, Result, Verdict

NEIGHBOUR, VICTIM = ENGINES
STUB_FAULTS = {VICTIM: {"token_seconds": 0.01}}  # a stream takes 0.1 s
CLIENTS = {"embeddings": 2, "streams": 4}
MORE_S = 3.0  # above an engine's own start and its delay, to be ready again
LATE_S = LONGEST_BACKOFF + MORE_S
GONE_S = 2.0  # for the whole tree to be gone with its daemon


@dataclass(frozen=True, slots=True)
class Kills:
    """Of one engine's processes. `waits`: seconds from each to ready, sorted; `besides`: without what the
    start itself took, sorted; `own_start`: of the undisturbed start before them; `survivors`: processes of
    killed starts that were there when the next was ready."""

    results: tuple[Result, ...]
    own_start: float
    waits: tuple[float, ...]
    besides: tuple[float, ...]
    survivors: int
    same_neighbour: bool

    @property
    def allowed(self) -> float:
        return self.own_start + LATE_S

    @property
    def median(self) -> float:
        return percentile(list(self.waits), 0.5)

    def wrong(self) -> list[str]:
        found = [f"{r.kind}: {r.verdict}, {r.cause}" for r in self.results if r.verdict is Verdict.WRONG]
        for result in self.results:
            if result.verdict is Verdict.CUT or (result.kind == "embeddings" and result.verdict in FAILED):
                found.append(f"{result.kind}: {result.verdict}, {result.cause}")
        if self.survivors:
            found.append(f"{self.survivors} survivors")
        if not self.same_neighbour:
            found.append("the neighbour was restarted")
        # a start's length is the machine's doing, too: each is judged by its own, half of them by the first
        if self.besides[-1] > LATE_S:
            found.append(f"ready again {self.besides[-1]:.2f} s later than the start took")
        if self.median > self.allowed:
            found.append(f"ready again after {self.median:.2f} s in the median, of {self.allowed:.2f} s")
        return found

    def lines(self) -> list[str]:
        return [
            *told(self.results),
            f"kills       {len(self.waits)}; its own start took {self.own_start:.2f} s",
            f"ready again median {self.median:.2f} of {self.allowed:.2f} s; longest {self.waits[-1]:.2f} s",
            f"late        longest {self.besides[-1]:.2f} s besides its start, of {LATE_S:.2f} s",
            f"survivors   {self.survivors}",
        ]


def kill_processes(daemon: Target, times: int) -> Kills:
    own_start = daemon.engine(VICTIM).start_seconds
    assert own_start is not None
    neighbour = daemon.engine(NEIGHBOUR).pid
    waits, besides, survivors = [], [], 0
    with Traffic(daemon.port, daemon.expected, **CLIENTS) as traffic:
        for _ in range(times):
            before, tree = daemon.engine(VICTIM), daemon.tree(VICTIM)
            began = time.monotonic()
            os.kill(random.choice(daemon.vital(VICTIM)), signal.SIGKILL)
            daemon.until_ready_again(VICTIM, before.restarts)
            waits.append(time.monotonic() - began)
            latest = daemon.engine(VICTIM).start_seconds
            assert latest is not None
            besides.append(waits[-1] - latest)
            survivors += len(set(tree) & set(daemon.tree(VICTIM)))
    same = daemon.engine(NEIGHBOUR).pid == neighbour
    return Kills(
        tuple(traffic.results), own_start, tuple(sorted(waits)), tuple(sorted(besides)), survivors, same
    )


@dataclass(frozen=True, slots=True)
class Daemons:
    """`seconds` from each kill until nothing of the tree was left, sorted; `in_flight`: requests then."""

    seconds: tuple[float, ...]
    in_flight: int
    leftovers: int

    def wrong(self) -> list[str]:
        found = [f"gone after {self.seconds[-1]:.2f} s"] if self.seconds[-1] > GONE_S else []
        if self.leftovers:
            found.append(f"{self.leftovers} starts that found something left")
        return found

    def lines(self) -> list[str]:
        return [
            f"daemons     {len(self.seconds)} killed, {self.in_flight} requests in flight",
            f"gone after  median {percentile(list(self.seconds), 0.5):.3f} s, "
            f"longest {self.seconds[-1]:.3f} s",
            f"not clean   {self.leftovers} starts",
        ]


def kill_daemons(start: Callable[[], Target], times: int) -> Daemons:
    """With all engines ready and at work; one more start at the end shows what the last one left."""
    seconds, in_flight, leftovers = [], 0, 0
    for _ in range(times):
        daemon = start()
        leftovers += _found_leftover(daemon)
        with Traffic(daemon.port, daemon.expected, **CLIENTS) as traffic:
            daemon.until(lambda traffic=traffic: traffic.count(Verdict.WHOLE) > 10)  # type: ignore[misc]
            in_flight += sum(engine.in_flight for engine in daemon.status().engines)
            os.kill(daemon.pid, signal.SIGKILL)
            began = time.monotonic()
            traffic.stop_asking()
            daemon.until(lambda daemon=daemon: daemon.survivors() == [])  # type: ignore[misc]
            seconds.append(time.monotonic() - began)
        daemon.abandon()
    last = start()
    leftovers += _found_leftover(last)
    last.stop()
    return Daemons(tuple(sorted(seconds)), in_flight, leftovers)


def _found_leftover(daemon: Target) -> bool:
    return any("leftover_killed" in line for line in daemon.journal())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("--vllm", action="store_true", help="two real vLLM servers on the CPU")
    parser.add_argument("--kills", type=int, default=None, help="100, or 10 of real engines")
    parser.add_argument("--daemons", type=int, default=None, help="50, or 3 with real engines")
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    random.seed(given.seed)
    kills = given.kills if given.kills is not None else 10 if given.vllm else 100
    daemons = given.daemons if given.daemons is not None else 3 if given.vllm else 50
    reports: list[Kills | Daemons] = []
    if given.vllm:
        with vllm_folder() as folder:
            if kills:
                daemon = of_vllm(folder)
                try:
                    reports.append(kill_processes(daemon, kills))
                finally:
                    daemon.stop()
            if daemons:
                reports.append(kill_daemons(lambda: of_vllm(folder), daemons))
    else:
        with stub_box() as box:
            if kills:
                daemon = of_stub(box, STUB_FAULTS)
                reports.append(kill_processes(daemon, kills))
                daemon.stop()
            if daemons:
                reports.append(kill_daemons(lambda: of_stub(box, STUB_FAULTS), daemons))
    for report in reports:
        print("\n".join(report.lines()))
    wrong = [what for report in reports for what in report.wrong()]
    for what in wrong:
        print(f"WRONG       {what}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
