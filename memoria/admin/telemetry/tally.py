"""What became of the requests, counted since the daemon's start."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection

from memoria.admin.telemetry.exposition import Family, Histogram, counter, histogram
from memoria.proxy.exchange.record import CLIENT_GONE, RequestRecord

# Seconds: from a small embedding to a long completion.
BOUNDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
)


class _Line:
    """Requests of one route to one engine that ended with one code."""

    __slots__ = ("aborted", "duration", "first_byte", "refused", "replays", "requests")

    def __init__(self, duration: Histogram, first_byte: Histogram) -> None:
        self.requests = self.refused = self.aborted = self.replays = 0
        self.duration, self.first_byte = duration, first_byte


class Tally:
    """`engines` are those that there are, at any time; they are listed with zeros. What was turned away
    before an engine or a route was known has empty labels, which to Prometheus is the same as none."""

    def __init__(self, engines: Collection[str]) -> None:
        self._engines = engines
        self._lines: dict[tuple[str | None, str | None, int], _Line] = {}
        self._histograms: dict[tuple[str | None, str | None], tuple[Histogram, Histogram]] = {}

    def add(self, record: RequestRecord) -> None:
        """Called for every request, so it does no more than it must."""
        key = (record.engine, record.route, record.status)
        line = self._lines.get(key) or self._begin(key)
        line.requests += 1
        first_byte_s = record.first_byte_s
        if first_byte_s is not None:
            _observe(line.first_byte, first_byte_s)
            _observe(line.duration, record.duration_s)
        elif record.status != CLIENT_GONE:
            line.refused += 1
        if not record.complete:
            line.aborted += 1
        line.replays += record.replays

    def answered(self, engine: str) -> int:
        """How many requests an engine has answered to the end."""
        return sum(
            line.requests - line.aborted - line.refused
            for (name, _, _), line in self._lines.items()
            if name == engine
        )

    def families(self) -> tuple[Family, ...]:
        requests = [
            ({"engine": engine or "", "route": route or "", "code": str(code)}, line.requests)
            for (engine, route, code), line in self._lines.items()
        ]
        refused: dict[tuple[str, str], int] = {}
        aborted, replayed = dict.fromkeys(self._engines, 0), dict.fromkeys(self._engines, 0)
        for (name, _, code), line in self._lines.items():
            engine = name or ""
            if line.refused:
                refused[engine, str(code)] = refused.get((engine, str(code)), 0) + line.refused
            aborted[engine] = aborted.get(engine, 0) + line.aborted
            replayed[engine] = replayed.get(engine, 0) + line.replays
        observed = [
            ({"engine": engine or "", "route": route or ""}, both)
            for (engine, route), both in self._histograms.items()
            if any(both[0].counts)
        ]
        return (
            counter(
                "memoria_requests_total", "Requests that are over; 499: the client left first.", requests
            ),
            counter(
                "memoria_requests_refused_total",
                "Requests that memoria answered itself, with an error.",
                (({"engine": engine, "code": code}, count) for (engine, code), count in refused.items()),
            ),
            counter(
                "memoria_requests_aborted_total",
                "Requests whose answer was not sent to its end: the client left, or the engine was lost.",
                (({"engine": engine}, count) for engine, count in aborted.items()),
            ),
            counter(
                "memoria_requests_replayed_total",
                "Requests sent once more, because the engine was lost before it answered.",
                (({"engine": engine}, count) for engine, count in replayed.items()),
            ),
            histogram(
                "memoria_request_duration_seconds",
                "From a request's arrival to the end of its answer, where an engine answered.",
                ((labels, duration) for labels, (duration, _) in observed),
            ),
            histogram(
                "memoria_request_first_byte_seconds",
                "From a request's arrival to the first byte of the answer's body.",
                ((labels, first_byte) for labels, (_, first_byte) in observed),
            ),
        )

    def _begin(self, key: tuple[str | None, str | None, int]) -> _Line:
        where = key[:2]
        if where not in self._histograms:
            self._histograms[where] = (Histogram(BOUNDS), Histogram(BOUNDS))
        line = self._lines[key] = _Line(*self._histograms[where])
        return line


def _observe(histogram: Histogram, seconds: float) -> None:
    histogram.counts[bisect_left(BOUNDS, seconds)] += 1
    histogram.sum += seconds
