"""Five minutes of every engine's figures, kept at all times so that the page can open with them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from memoria.admin.status.collect import Collector
from memoria.admin.status.status import EngineStatus, Status

EVERY = 5.0  # seconds
KEPT = 60  # samples


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one engine at one moment; null: not known."""

    requests_per_second: float | None
    """Since the previous sample."""
    tokens_per_second: float | None
    """Tokens written by a generating engine, read by a pooling one."""
    ttft_p95: float | None
    """Seconds to the first byte, of the last minute."""
    total_p95: float | None
    """Seconds to the last byte, of the last minute."""
    kv_usage: float | None
    """0 to 1."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures of all engines at one moment."""

    number: int
    """Counts from 1, without gaps."""
    at: float
    """Unix time."""
    engines: Mapping[str, Figures]
    """By name."""


class History:
    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._before: Status | None = None

    async def run(self, collector: Collector) -> None:
        """Take a sample every `EVERY` seconds, until cancelled."""
        while True:
            self.add_sample(await collector.status())
            await asyncio.sleep(EVERY)

    def add_sample(self, status: Status) -> None:
        before = {} if self._before is None else {engine.name: engine for engine in self._before.engines}
        passed = 0.0 if self._before is None else status.at - self._before.at
        number = self._samples[-1].number + 1 if self._samples else 1
        figures = {
            engine.name: _figures(engine, before.get(engine.name), passed) for engine in status.engines
        }
        self._samples.append(Sample(number, status.at, figures))
        self._before = status

    def samples_after(self, number: int) -> list[Sample]:
        """Samples with a higher number, oldest first."""
        return [sample for sample in self._samples if sample.number > number]


def _figures(engine: EngineStatus, before: EngineStatus | None, passed: float) -> Figures:
    rate = None
    if before is not None and passed > 0 and engine.requests >= before.requests:
        rate = (engine.requests - before.requests) / passed
    return Figures(rate, engine.tokens_per_second, engine.ttft_p95, engine.total_p95, engine.kv_usage)
