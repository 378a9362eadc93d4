"""The phases as an SVG picture: rates and waits as bars, the time between tokens as curves. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from xml.sax.saxutils import escape

from memoria.bench.figures import Generation, Phase, Times
from memoria.text import short_time

PANEL_WIDTH, PANEL_HEIGHT = 380, 190  # pixels, of one drawing
LEFT, TOP = (30, 470), (84, 336)
WIDTH, HEIGHT = 880, 580
ALONE, TOGETHER = "#4477aa", "#cc6677"  # distinguishable with colour blindness, too
DASHES = ("none", "7 4", "2 3", "9 3 2 3")  # of curves, one for each engine

# A bar: the engine, whether it was loaded alone, its height, and the height of its thin line (or 0).
_Bar = tuple[str, bool, float, float]


def as_svg(phases: Sequence[Phase], title: str) -> str:
    """Draws only what was measured."""
    texts = list(_bars(phases, lambda phase: [(e.engine, e.rate, 0.0) for e in phase.embedding]))
    tokens = list(_bars(phases, lambda phase: [(e.engine, e.rate, 0.0) for e in phase.generation]))
    firsts = list(_bars(phases, lambda phase: [(e.engine, *_waits(e.first_token)) for e in phase.generation]))
    curves = [(engine, _is_alone(phase)) for phase in phases for engine in phase.generation if engine.gaps]
    parts = [
        _words(LEFT[0], 28, title, size=16),
        *_legend(),
        *_bar_panel(LEFT[0], TOP[0], "texts embedded per second", texts, _number),
        *_bar_panel(LEFT[1], TOP[0], "tokens per second", tokens, _number),
        *_bar_panel(LEFT[0], TOP[1], "time to the first token: p50, line to p99", firsts, short_time),
        *_curve_panel(LEFT[1], TOP[1], "share of tokens that came within", curves),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="system-ui, sans-serif">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _bars(
    phases: Sequence[Phase], of: Callable[[Phase], Sequence[tuple[str, float, float]]]
) -> Iterator[_Bar]:
    """An engine's bars side by side."""
    found = [(name, _is_alone(phase), size, reach) for phase in phases for name, size, reach in of(phase)]
    for engine in dict.fromkeys(name for name, *_ in found):
        yield from (bar for bar in found if bar[0] == engine)


def _is_alone(phase: Phase) -> bool:
    return len(phase.engines) == 1


def _waits(times: Times | None) -> tuple[float, float]:
    return (times.p50, times.p99) if times else (0.0, 0.0)


def _bar_panel(
    left: int, top: int, title: str, bars: Sequence[_Bar], shown: Callable[[float], str]
) -> Iterator[str]:
    yield from _frame(left, top, title)
    bottom, room = top + PANEL_HEIGHT, PANEL_HEIGHT - 22
    highest = max((max(value, reach) for _, _, value, reach in bars), default=0.0) or 1.0
    step = PANEL_WIDTH / max(4, len(bars))
    for number, (engine, alone, value, reach) in enumerate(bars):
        height, middle = room * value / highest, left + step * (number + 0.5)
        width = step * 0.62
        yield (
            f'<rect x="{middle - width / 2:.1f}" y="{bottom - height:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" fill="{ALONE if alone else TOGETHER}"/>'
        )
        end = max(height, room * reach / highest)
        if reach:
            yield _path(f"M{middle:.1f} {bottom - height:.1f}V{bottom - end:.1f}", "#333333")
        above = f"{shown(value)} – {shown(reach)}" if reach else shown(value)
        yield _words(middle, bottom - end - 5, above, anchor="middle")
        yield _words(middle, bottom + 16, engine, anchor="middle")


def _curve_panel(left: int, top: int, title: str, curves: Sequence[tuple[Generation, bool]]) -> Iterator[str]:
    """x: time between two tokens; y: the share of gaps up to that long."""
    yield from _frame(left, top, title)
    if not curves:
        return
    bottom = top + PANEL_HEIGHT
    longest = max(engine.gaps[-1] for engine, _ in curves) or 1.0
    names = list(dict.fromkeys(engine.engine for engine, _ in curves))
    for engine, alone in curves:
        points = " ".join(
            f"{left + PANEL_WIDTH * gap / longest:.1f},{bottom - PANEL_HEIGHT * percent / 100:.1f}"
            for percent, gap in enumerate(engine.gaps, 1)
        )
        dash = DASHES[names.index(engine.engine) % len(DASHES)]
        yield (
            f'<polyline points="{points}" fill="none" stroke="{ALONE if alone else TOGETHER}" '
            f'stroke-width="2" stroke-dasharray="{dash}"/>'
        )
    for quarter in range(1, 5):
        x = left + PANEL_WIDTH * quarter / 4
        yield _words(x, bottom + 16, short_time(longest * quarter / 4), anchor="middle")
    for percent in (50, 99):
        y = bottom - PANEL_HEIGHT * percent / 100
        yield _path(f"M{left} {y:.1f}h{PANEL_WIDTH}", "#dddddd")
        yield _words(left - 4, y + 4, f"{percent} %", anchor="end", size=11)
    if len(names) > 1:
        for number, name in enumerate(names):
            y = bottom - 14 - 16 * (len(names) - 1 - number)
            yield _path(f"M{left + 250} {y - 4}h34", "#333333", dash=DASHES[number % len(DASHES)])
            yield _words(left + 292, y, name)


def _frame(left: int, top: int, title: str) -> Iterator[str]:
    yield _words(left, top - 10, title, size=13)
    yield _path(f"M{left} {top}v{PANEL_HEIGHT}h{PANEL_WIDTH}", "#999999")


def _legend() -> Iterator[str]:
    for number, (name, color) in enumerate((("alone", ALONE), ("together", TOGETHER))):
        x = LEFT[0] + number * 80
        yield f'<rect x="{x}" y="40" width="12" height="12" fill="{color}"/>'
        yield _words(x + 18, 50, name)


def _path(steps: str, color: str, dash: str = "none") -> str:
    return f'<path d="{steps}" fill="none" stroke="{color}" stroke-dasharray="{dash}"/>'


def _words(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
