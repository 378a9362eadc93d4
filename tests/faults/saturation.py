"""More work than the engines can do, slow answers and a slow `/health`, and nobody may be taken for hung:

    python -m tests.faults.saturation [--minutes N]

The patience with a silent engine is 1/24 of the default, so that there are as many verdicts in ten minutes as
in four hours. Ends with 1 where an engine was restarted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.inside import change_stub
from tests.faults.traffic import Traffic
from tests.faults.verdict import Result, Verdict
from tests.integration.daemon import Box
from tests.stub_nvml import build_library

PATIENCE_S = 5.0  # `timeouts.hang`
HEALTH_TIMEOUT_S = 0.2
HEALTH_S = 3.0  # so long takes a `/health`, which times out each time
TOKEN_S = {"embedding": 2.0, "generation": 1.0}
MOST = 16  # `max_requests`: what is more waits in memoria
CLIENTS = {"embeddings": 2 * MOST, "streams": 2 * MOST, "leavers": 4}


@dataclass(frozen=True, slots=True)
class Report:
    """`suspected` counts the times that an engine was looked at twice."""

    results: tuple[Result, ...]
    restarts: int
    suspected: int
    same_processes: bool

    def lines(self) -> list[str]:
        counts = {verdict: sum(r.verdict is verdict for r in self.results) for verdict in Verdict}
        return [
            f"requests        {len(self.results)}: {', '.join(f'{n} {v}' for v, n in counts.items())}",
            f"suspected       {self.suspected}",
            f"false restarts  {self.restarts}",
        ]

    def wrong(self) -> bool:
        return bool(self.restarts) or not self.same_processes


def saturate(box: Box, seconds: float) -> Report:
    """The box needs nothing but to be new."""
    box.configure()
    text = box.file.read_text()
    timeouts = f"timeouts: {{hang: {PATIENCE_S}, health: {HEALTH_TIMEOUT_S},"
    text = text.replace("timeouts: {", timeouts)
    for model in ("embedder", "writer"):
        old = f"model: ./models/{model}\n"
        text = text.replace(old, f"{old}    max_requests: {MOST}\n")
    box.file.write_text(text)
    daemon = box.start()
    daemon.until_ready()
    for engine, token in TOKEN_S.items():
        change_stub(daemon, engine, token_seconds=token, health_seconds=HEALTH_S)
    before = {engine.name: engine.pid for engine in daemon.status().engines}
    with Traffic(box.ports.main, **CLIENTS) as traffic:
        time.sleep(seconds)
    engines = daemon.status().engines
    return Report(
        tuple(traffic.results),
        restarts=sum(engine.restarts for engine in engines),
        suspected=len(daemon.story("suspect")),
        same_processes={engine.name: engine.pid for engine in engines} == before,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.saturation", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    seconds = parser.parse_args().minutes * 60
    with tempfile.TemporaryDirectory() as folder:
        box = Box(Path(folder), build_library(Path(folder)))
        try:
            report = saturate(box, seconds)
        finally:
            box.close()
    print("\n".join(report.lines()))
    return 1 if report.wrong() else 0


if __name__ == "__main__":
    sys.exit(main())
