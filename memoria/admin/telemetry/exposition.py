"""Prometheus's text format (version 0.0.4): memoria's own families merged with those of its engines.

An engine's lines are copied, with an `engine` label put in front. vLLM's own label of that name, the number
of its engine core, becomes `exported_engine`, as in Prometheus when a target's label meets one of the
scrape's (https://prometheus.io/docs/prometheus/latest/configuration/, `honor_labels`).

Text is merged as text: with prometheus_client, which parses and prints every sample, a scrape of two engines
takes six times as long.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Point = tuple[Mapping[str, str], float]  # labels, value

_HEADING = re.compile(rb"^# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*)(?: (.*))?$", re.M)
_PAIR = rb'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\.)*+"'
_SAMPLE = re.compile(  # name, labels, value with its time
    rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:" + _PAIR + rb",?)*+)\})?[ \t]+(\S+(?:[ \t]+-?\d+)?)[ \t]*$", re.M
)
_LABEL = re.compile(rb"([a-zA-Z_][a-zA-Z0-9_]*)=(\"(?:[^\"\\\n]|\\.)*+\")")


@dataclass(slots=True)
class Family:
    """All series of one name. `kind` (TYPE) and `text` (HELP) as in the format."""

    name: bytes
    kind: bytes = b"untyped"
    text: bytes | None = None
    samples: list[bytes] = field(default_factory=list)


def counter(name: str, text: str, points: Iterable[Point]) -> Family:
    return Family(name.encode(), b"counter", _help(text), [_sample(name, *point) for point in points])


def gauge(name: str, text: str, points: Iterable[Point]) -> Family:
    return Family(name.encode(), b"gauge", _help(text), [_sample(name, *point) for point in points])


class Histogram:
    """Counts of observations up to each of `bounds`, and their sum (seconds)."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last: above all bounds
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds


def histogram(name: str, text: str, points: Iterable[tuple[Mapping[str, str], Histogram]]) -> Family:
    samples = []
    for labels, observed in points:
        *below, total = accumulate(observed.counts)
        for bound, count in zip(observed.bounds, below, strict=True):
            samples.append(_sample(f"{name}_bucket", {**labels, "le": f"{bound:g}"}, count))
        samples.append(_sample(f"{name}_bucket", {**labels, "le": "+Inf"}, total))
        samples.append(_sample(f"{name}_sum", labels, observed.sum))
        samples.append(_sample(f"{name}_count", labels, total))
    return Family(name.encode(), b"histogram", _help(text), samples)


class Exposition:
    """Families by name, in order of arrival."""

    def __init__(self, families: Iterable[Family] = ()) -> None:
        self._families = {family.name: family for family in families}

    def merge(self, text: bytes, engine: str) -> Iterator[None]:
        """Add an engine's exposition. Yields after every heading, so that the caller can give way to other
        work.

        The first engine's HELP is kept. Where engines of different versions disagree on a TYPE the family
        becomes untyped, which keeps every series. Malformed lines are skipped."""
        label = f'engine="{_escaped(engine)}"'.encode()
        family: Family | None = None
        end = 0
        for heading in _HEADING.finditer(text):
            self._add_samples(text[end : heading.start()], label, family)
            end = heading.end()
            what, name, rest = heading.groups()
            family = self._family(family, name, what, rest or b"")
            yield
        self._add_samples(text[end:], label, family)

    def render(self) -> bytes:
        parts: list[bytes] = []
        for family in self._families.values():
            if family.samples:
                if family.text is not None:
                    parts.append(b"# HELP %b %b\n" % (family.name, family.text))
                parts.append(b"# TYPE %b %b\n" % (family.name, family.kind))
                parts += family.samples
        return b"".join(parts)

    def _family(self, before: Family | None, name: bytes, what: bytes, rest: bytes) -> Family:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = Family(name)
            if what == b"TYPE":
                family.kind = rest
        elif what == b"TYPE" and family.kind != rest:
            fresh = before is family and not family.samples and family.kind == b"untyped"
            family.kind = rest if fresh else b"untyped"
        if what == b"HELP" and family.text is None:
            family.text = rest
        return family

    def _add_samples(self, lines: bytes, label: bytes, family: Family | None) -> None:
        for name, labels, value in _SAMPLE.findall(lines):
            if family is None or not name.startswith(family.name):  # a family without a heading
                family = self._families.setdefault(name, Family(name))
            if b"engine=" in labels:
                labels = _exported(labels)  # noqa: PLW2901
            separator = b"," if labels else b""
            family.samples.append(b"%b{%b%b%b} %b\n" % (name, label, separator, labels, value))


def _exported(labels: bytes) -> bytes:
    """Rename a label `engine` by prefixing until the name is free, as Prometheus does."""
    pairs = _LABEL.findall(labels)
    taken = {name for name, _ in pairs}
    if b"engine" not in taken:
        return labels
    free = b"exported_engine"
    while free in taken:
        free = b"exported_" + free
    return b",".join(b"%b=%b" % (free if name == b"engine" else name, value) for name, value in pairs)


def _sample(name: str, labels: Mapping[str, str], value: float) -> bytes:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{pairs}}} {value!r}\n".encode() if pairs else f"{name} {value!r}\n".encode()


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _help(text: str) -> bytes:
    return text.replace("\\", r"\\").replace("\n", r"\n").encode()
