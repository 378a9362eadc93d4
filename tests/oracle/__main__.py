"""Planner against log: `python -m tests.oracle [--starts FILE] [--configs FILE] [--rows]`."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from memoria.text import aligned
from tests.oracle.compare import HERE, Error, compare, layout_is_exact, read_configs, read_starts

TERMS = ("weights", "step", "graphs", "kv")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--starts", type=Path, default=HERE / "starts.tsv")
    parser.add_argument("--configs", type=Path, default=HERE / "configs.json")
    parser.add_argument("--rows", action="store_true", help="each row's errors, the worst first")
    parser.add_argument("--since", default="0.11", help="the oldest vLLM that counts")
    asked = parser.parse_args(arguments)
    major, _, minor = asked.since.partition(".")
    configs = read_configs(asked.configs)
    starts = [s for s in read_starts(asked.starts) if s.is_plain and s.version >= (int(major), int(minor))]
    errors = [error for start in starts for error in compare(start, configs)]
    if asked.rows:
        for term in TERMS:
            print_rows(term, [error for error in errors if error.term == term])
        return
    exact = [found for start in starts if (found := layout_is_exact(start, configs)) is not None]
    print(f"KV cache in GiB to concurrent requests: {sum(exact)} of {len(exact)} exact", end="\n\n")
    for title, key in GROUPS:
        print_table(title, errors, key)


GROUPS: tuple[tuple[str, Callable[[Error], str]], ...] = (
    ("all", lambda error: ""),
    ("GPU", lambda error: error.start.generation),
    ("architecture", lambda error: error.architecture),
    ("version", lambda error: ".".join(map(str, error.start.version))),
)


def figures(errors: Sequence[Error]) -> tuple[str, ...]:
    """Count, median, absolute median, 90th percentile and worst in GiB, and the share beyond the bar."""
    found = sorted((error.error for error in errors), key=abs)
    absolute = [abs(value) for value in found]
    return (
        str(len(found)),
        f"{statistics.median(found):+.2f}",
        f"{statistics.median(absolute):.2f}",
        f"{percentile(absolute, 0.9):.2f}",
        f"{found[-1]:+.2f}",
        f"{beyond(errors):.0%}",
    )


def beyond(errors: Sequence[Error]) -> float:
    """The share that promised memory which the log does not have, by more than the bar."""
    return sum(-promise(error) > error.bar for error in errors) / len(errors)


def promise(error: Error) -> float:
    """Below 0 where memory is promised that the log does not have."""
    return -error.error if error.term == "kv" else error.error


def percentile(ordered: Sequence[float], share: float) -> float:
    """Linear between neighbours; `ordered` is not empty."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def print_table(title: str, errors: Iterable[Error], key: Callable[[Error], str]) -> None:
    groups: dict[tuple[str, str], list[Error]] = {}
    for error in errors:
        groups.setdefault((error.term, key(error)), []).append(error)
    rows: list[tuple[str, ...]] = [
        ("term", title, "n", "median", "absolute", "p90", "worst", "beyond the bar")
    ]
    for term in TERMS:
        rows += [(*group, *figures(groups[group])) for group in sorted(groups) if group[0] == term]
    print("\n".join(aligned(rows, right=set(range(2, 8)))), end="\n\n")


def print_rows(term: str, errors: Sequence[Error]) -> None:
    rows = [
        (
            term,
            error.start.source,
            error.start.vllm[:12],
            error.start.gpu[:20],
            error.start.config[:24],
            f"{error.planned:.2f}",
            f"{error.logged:.2f}",
            f"{error.error:+.2f}",
        )
        for error in sorted(errors, key=lambda error: -abs(error.error))
    ]
    print("\n".join(aligned(rows, right={5, 6, 7})), end="\n\n")


if __name__ == "__main__":
    main()
