"""Rounds of figures become medians and ratios. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from memoria.text import aligned
from tests.bench.relay.measures import FIGURES, Figure

DIRECT, OURS = "direct", "memoria"
UNKNOWN = "–"

# figures by key, of each target, of each round
Rounds = Sequence[Mapping[str, Mapping[str, float]]]


def rows(rounds: Rounds, targets: Sequence[str]) -> list[tuple[str, ...]]:
    """A header, then a row for each figure: medians over the rounds, then memoria against each peer. Ratios
    are taken within a round, where the machine was the same for both, and their median is shown."""
    peers = [name for name in targets if name != OURS]
    header = ("", *targets, *(f"memoria / {peer}" for peer in peers))
    return [header, *(_row(figure, rounds, targets, peers) for figure in FIGURES)]


def values(figure: Figure, rounds: Rounds, target: str) -> list[float | None]:
    """Of each round; None where it was not measured."""
    found: list[float | None] = []
    for measured in rounds:
        value = measured.get(target, {}).get(figure.key)
        base = measured.get(DIRECT, {}).get(figure.key) if figure.added else 0.0
        found.append(None if value is None or base is None else value - base)
    return found


def ratio(figure: Figure, rounds: Rounds, peer: str) -> float | None:
    """The median of memoria's figure divided by the peer's."""
    pairs = zip(values(figure, rounds, OURS), values(figure, rounds, peer), strict=True)
    found = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
    return statistics.median(found) if found else None


def as_text(table: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(aligned(table))


def as_markdown(table: Sequence[tuple[str, ...]]) -> str:
    header, *body = table
    lines = [header, ("---", *("--:" for _ in header[1:])), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(figure: Figure, rounds: Rounds, targets: Sequence[str], peers: Sequence[str]) -> tuple[str, ...]:
    medians = []
    for target in targets:
        known = [value for value in values(figure, rounds, target) if value is not None]
        medians.append(_shown(statistics.median(known), figure.digits) if known else UNKNOWN)
    ratios = [ratio(figure, rounds, peer) for peer in peers]
    return (
        f"{figure.title} ({figure.unit})",
        *medians,
        *(UNKNOWN if value is None else f"{value:.2f}" for value in ratios),
    )


def _shown(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace(",", " ")
