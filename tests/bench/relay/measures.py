"""What is measured of each target, and how a result becomes figures."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field

from tests.bench.relay import cost
from tests.bench.relay.load_program import Load, Result, Times, Work

OPENINGS = 4  # of 256 streams at once, in each round
BURSTS = 4  # times as long as other measures: of 25 bursts, the 99th percentile is that of one
TRIES, DISTURBED = 3, 0.08  # a measure is repeated while others use more than that of a core


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of the table. `added`: what the upstream takes by itself is subtracted."""

    key: str
    title: str
    unit: str
    added: bool = False
    digits: int = 0


# Of a burst, what a client waits for its event counts from the burst's begin: from when it was written, a
# transport that takes longer to write to looks faster.
FIGURES = (
    Figure("small", "small requests, 32 connections", "1/s"),
    Figure("small_cpu", "processor time of one", "us", digits=1),
    Figure("events_64", "events in lock step, 64 streams", "1/s"),
    Figure("events_64_cpu", "processor time of one", "us", digits=1),
    Figure("events_256", "events in lock step, 256 streams", "1/s"),
    Figure("one_p50", "added latency, one connection, p50", "us", added=True),
    Figure("one_p99", "added latency, one connection, p99", "us", added=True),
    Figure("burst_64_p50", "added latency of an event, bursts of 64, p50", "us", added=True),
    Figure("burst_64_p99", "added latency of an event, bursts of 64, p99", "us", added=True),
    Figure("wait_64_p50", "the same from the burst's begin, p50", "us", added=True),
    Figure("wait_64_p99", "the same from the burst's begin, p99", "us", added=True),
    Figure("burst_256_p50", "added latency of an event, bursts of 256, p50", "us", added=True),
    Figure("burst_256_p99", "added latency of an event, bursts of 256, p99", "us", added=True),
    Figure("wait_256_p50", "the same from the burst's begin, p50", "us", added=True),
    Figure("wait_256_p99", "the same from the burst's begin, p99", "us", added=True),
    Figure("first_p99", "first event, 256 streams opened at once, p99", "ms", digits=1),
    Figure("large", "responses of 5 MB", "MB/s"),
    Figure("upload", "requests of 8 MB", "MB/s"),
    Figure("memory", "memory, idle", "MiB", digits=1),
    Figure("memory_streams", "memory added by 1000 open streams", "MiB", digits=1),
)


@dataclass(slots=True)
class Bench:
    """One load program and what may be asked of it. `troubles` are answers that were not right, `disturbed`
    are measures during which other processes worked, each time that it was tried."""

    load: Load
    milliseconds: int
    streams: int = 1000
    tries: int = TRIES
    troubles: list[str] = field(default_factory=list)
    disturbed: list[str] = field(default_factory=list)

    def run(self, name: str, port: int, work: Work, pids: tuple[int, ...] = ()) -> tuple[Result, int]:
        """The result, and nanoseconds of processor time that `pids` used meanwhile."""
        for _ in range(self.tries):
            result, used, others = self._once(name, port, work, pids)
            if others < DISTURBED * result.seconds * 1e9:
                break
        else:
            self.disturbed.append(f"{name} {work.kind} {work.connections}")
        return result, used

    def _once(self, name: str, port: int, work: Work, pids: tuple[int, ...]) -> tuple[Result, int, int]:
        """The result, and nanoseconds of processor time: of `pids`, and of all that is no part of this."""
        ours = (*pids, self.load.pid, os.getpid())
        marks: list[tuple[int, int]] = []
        result = self.load.run(
            port, work, lambda _: marks.append((cost.processor_ns(pids), self._others(ours)))
        )
        self._check(name, work, result)
        if len(marks) < 2:
            return result, 0, 0
        (used, others), (used_after, others_after) = marks
        return result, used_after - used, others_after - others

    def _others(self, ours: tuple[int, ...]) -> int:
        return cost.machine_ns() - cost.processor_ns(ours)

    def hold(self, name: str, port: int, streams: int, at_once: int) -> Times:
        """Opens streams and closes them; the times until their first events."""
        first = self.open(name, port, streams, at_once)
        self.close(name)
        return first

    def open(self, name: str, port: int, streams: int, at_once: int) -> Times:
        work = Work("hold", streams, at_once=at_once)
        result, _ = self.run(name, port, work)
        return result.first or Times(0, 0, 0)

    def close(self, name: str) -> None:
        self._check(name, Work("hold", 0), self.load.end())

    def _check(self, name: str, work: Work, result: Result) -> None:
        if not result.is_right:
            self.troubles.append(
                f"{name}: {work.kind} with {work.connections} connections: {result.errors} errors, "
                f"{result.wrong} wrong answers: {result.trouble}"
            )


def memory(bench: Bench, name: str, port: int, pids: tuple[int, ...]) -> dict[str, float]:
    """Of a target that has only just started: later it also holds what other loads have left."""
    idle = cost.memory_mib(pids)
    bench.open(name, port, bench.streams, at_once=64)
    held = cost.memory_mib(pids)
    bench.close(name)
    return {"memory": idle, "memory_streams": held - idle}


def small(bench: Bench, name: str, port: int, pids: tuple[int, ...]) -> dict[str, float]:
    result, used = bench.run(name, port, Work("small", 32, bench.milliseconds), pids)
    return {"small": result.per_second, "small_cpu": _each(used, result)}


def one(bench: Bench, name: str, port: int, pids: tuple[int, ...]) -> dict[str, float]:
    result, _ = bench.run(name, port, Work("small", 1, bench.milliseconds), pids)
    return _latency("one", result)


def events_64(bench: Bench, name: str, port: int, pids: tuple[int, ...]) -> dict[str, float]:
    result, used = bench.run(name, port, Work("lockstep", 64, bench.milliseconds), pids)
    return {"events_64": result.per_second, "events_64_cpu": _each(used, result)}


def events_256(bench: Bench, name: str, port: int, pids: tuple[int, ...]) -> dict[str, float]:
    result, _ = bench.run(name, port, Work("lockstep", 256, bench.milliseconds), pids)
    return {"events_256": result.per_second}


def burst_64(bench: Bench, name: str, port: int, pids: tuple[int, ...]) -> dict[str, float]:
    return _burst(bench, name, port, pids, 64)


def burst_256(bench: Bench, name: str, port: int, pids: tuple[int, ...]) -> dict[str, float]:
    return _burst(bench, name, port, pids, 256)


def opening(bench: Bench, name: str, port: int, pids: tuple[int, ...]) -> dict[str, float]:
    opened = [bench.hold(name, port, 256, at_once=256).p99 for _ in range(OPENINGS)]
    return {"first_p99": statistics.median(opened) / 1000}


def large(bench: Bench, name: str, port: int, pids: tuple[int, ...]) -> dict[str, float]:
    result, _ = bench.run(name, port, Work("large", 4, bench.milliseconds), pids)
    return {"large": result.bytes / result.seconds / 1e6}


def upload(bench: Bench, name: str, port: int, pids: tuple[int, ...]) -> dict[str, float]:
    result, _ = bench.run(name, port, Work("upload", 4, bench.milliseconds), pids)
    return {"upload": result.bytes / result.seconds / 1e6}


# In a round each is taken of every target in turn, so that what is compared was measured within seconds.
MEASURES = {
    "small": small,
    "one": one,
    "events_64": events_64,
    "events_256": events_256,
    "burst_64": burst_64,
    "burst_256": burst_256,
    "opening": opening,
    "large": large,
    "upload": upload,
}


def _burst(bench: Bench, name: str, port: int, pids: tuple[int, ...], streams: int) -> dict[str, float]:
    result, _ = bench.run(name, port, Work("burst", streams, BURSTS * bench.milliseconds), pids)
    return _latency(f"burst_{streams}", result) | _shown(f"wait_{streams}", result.wait)


def _each(used_ns: int, result: Result) -> float:
    return used_ns / 1000 / max(1, result.operations)


def _latency(name: str, result: Result) -> dict[str, float]:
    return _shown(name, result.latency)


def _shown(name: str, times: Times | None) -> dict[str, float]:
    times = times or Times(0, 0, 0)
    return {f"{name}_p50": times.p50, f"{name}_p99": times.p99}
