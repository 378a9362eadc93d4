"""More work than the engines can do, and none of them may count as hung:

    python -m tests.faults.saturation [--vllm] [--minutes N]

Stub engines answer slowly, fill their cache before the first token, and report their figures late; real ones
(`--vllm`) get more long prompts than they can read. `patience` is 1/24 of the default, so that ten minutes
have as many verdicts as four hours. Exits with 1 where an engine was restarted, or a request was refused, cut
or answered wrongly: excess requests must wait.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

from tests.faults.target import Target, of_stub, of_vllm, stub_box, vllm_folder
from tests.faults.traffic import Traffic, percentile, told
from tests.faults.verdict import FAILED, Result, Verdict

PATIENCE_S = 5.0  # `timeouts.hang`
MOST = 16  # `max_requests`: what is more waits in memoria
CLIENTS = {"embeddings": 2 * MOST, "streams": 2 * MOST, "leavers": 4}
SLOW = {"health_seconds": 3.0, "metrics_seconds": 1.0}
STUB_FAULTS = {
    "embedding": {"token_seconds": 2.0, **SLOW},
    "generation": {"token_seconds": 0.6, "prefill_chunks": 10, **SLOW},  # 6 s to the first of ten tokens
}
WORDS = 300  # of a real prompt, at most
KEYS: dict[str, Any] = {"timeouts": {"hang": PATIENCE_S}}


@dataclass(frozen=True, slots=True)
class Report:
    """`suspected` counts the times that an engine was looked at twice. `waits`: of whole streams, in seconds,
    sorted."""

    results: tuple[Result, ...]
    restarts: int
    suspected: int
    same_processes: bool

    @property
    def waits(self) -> list[float]:
        return sorted(r.seconds for r in self.results if r.kind == "streams" and r.verdict is Verdict.WHOLE)

    def lines(self) -> list[str]:
        return [
            *told(self.results),
            f"a stream    median {percentile(self.waits, 0.5):.2f} s, longest {self.waits[-1]:.2f} s",
            f"suspected   {self.suspected}",
            f"restarts    {self.restarts}",
        ]

    def wrong(self) -> list[str]:
        found = [
            f"{r.kind}: {r.verdict}, {r.cause}"
            for r in self.results
            if r.verdict in FAILED or r.verdict is Verdict.WRONG
        ]
        if self.restarts or not self.same_processes:
            found.append(f"{self.restarts} false restarts")
        return found


def saturate(daemon: Target, seconds: float) -> Report:
    before = {engine.name: engine.pid for engine in daemon.status().engines}
    with Traffic(daemon.port, daemon.expected, **CLIENTS) as traffic:
        time.sleep(seconds)
    engines = daemon.status().engines
    return Report(
        tuple(traffic.results),
        restarts=sum(engine.restarts for engine in engines),
        suspected=sum('"suspect"' in line for line in daemon.journal()),
        same_processes={engine.name: engine.pid for engine in engines} == before,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.saturation", description=__doc__)
    parser.add_argument("--vllm", action="store_true", help="two real vLLM servers on the CPU")
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    if given.vllm:
        with vllm_folder() as folder:
            daemon = of_vllm(folder, WORDS, engine={"max_requests": MOST}, **KEYS)
            try:
                report = saturate(daemon, given.minutes * 60)
            finally:
                daemon.stop()
    else:
        with stub_box() as box:
            report = saturate(of_stub(box, STUB_FAULTS, **stub_keys()), given.minutes * 60)
    print("\n".join(report.lines()))
    wrong = report.wrong()
    for what in wrong:
        print(f"WRONG       {what}")
    return 1 if wrong else 0


def stub_keys() -> dict[str, Any]:
    return {**KEYS, "engines": {name: {"max_requests": MOST} for name in STUB_FAULTS}}


if __name__ == "__main__":
    sys.exit(main())
