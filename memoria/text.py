"""Figures as text: the same in an error, on a screen and in a log."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal

GIB, MIB = 2**30, 2**20


def gib(size_bytes: int) -> str:
    """Bytes as GiB with one decimal, without the unit: `41.9`."""
    return f"{size_bytes / GIB:.1f}"


def fraction_text(fraction: Decimal, rounding: str = ROUND_HALF_EVEN) -> str:
    """A fraction with two decimals, or all that it has, up to eight: `0.30`, `0.125`, `0.9500001`. One with
    more was computed, from a size for example, and gets four."""
    exponent = fraction.normalize().as_tuple().exponent
    places = max(2, -exponent) if isinstance(exponent, int) else 2
    return f"{fraction.quantize(Decimal((0, (1,), -(places if places <= 8 else 4))), rounding):f}"


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> tuple[str, ...]:
    """Rows of equal length as lines in columns, two spaces apart; those in `right` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return tuple(
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def duration(seconds: float) -> str:
    """A duration in its two largest units: `4 s`, `3m10s`, `3h12m`, `2d5h`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 24 else f"{hours // 24}d{hours % 24}h"


def suggestion(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown `word`: the nearest known one, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean `{close[0]}`?" if close else f"there are: {', '.join(names)}"


def grouped(number: int) -> str:
    """Digits in groups of three: `1 048 576`."""
    return f"{number:,}".replace(",", " ")


def short_time(seconds: float) -> str:
    """A short duration with three digits and its unit: `5.13 ms`, `131 ms`, `12.4 s`."""
    if seconds >= 1:
        return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:#.3g} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.1 else f"{seconds * 1000:#.3g} ms"


def size_text(size_bytes: float) -> str:
    """Bytes with their unit: `4.4 GiB`, `12 MiB`, `1.3 MiB`."""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    return f"{size_bytes / MIB:.0f} MiB" if size_bytes >= 10 * MIB else f"{size_bytes / MIB:.1f} MiB"
