"""Which engines on demand may be awake together: arithmetic, no list to write by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from itertools import islice

MOST = 64  # sets; a longer list helps no reader


def largest_sets(engines: Sequence[str], fits: Callable[[Set[str]], bool]) -> tuple[tuple[str, ...], ...]:
    """The sets to which no further engine can be added, in the engines' order. `fits` holds for any smaller
    set, too."""
    return tuple(islice(_extend((), tuple(engines), tuple(engines), fits), MOST))


def _extend(
    chosen: tuple[str, ...], rest: Sequence[str], engines: Sequence[str], fits: Callable[[Set[str]], bool]
) -> Iterator[tuple[str, ...]]:
    if not rest:
        if chosen and not any(fits({*chosen, other}) for other in engines if other not in chosen):
            yield chosen
        return
    first, *others = rest
    if fits({*chosen, first}):
        yield from _extend((*chosen, first), others, engines, fits)
        if fits({*chosen, *rest}):
            return  # without it no set would be the largest
    yield from _extend(chosen, others, engines, fits)
