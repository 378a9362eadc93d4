"""A picture of the phases as SVG: rates as bars, the time between tokens as curves. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from memoria.bench.figures import Phase

WIDTH, HEIGHT, PANEL = 860, 320, 240  # pixels; PANEL is one drawing's width
TOP, BOTTOM = 60, 270
COLORS = ("#4477aa", "#228833", "#cc6677")  # told apart also by people who see few colours


def as_svg(phases: Sequence[Phase], title: str) -> str:
    """Each phase has a colour. What was not measured is not drawn."""
    colors = {phase.name: COLORS[number % len(COLORS)] for number, phase in enumerate(phases)}
    texts = [(phase.name, phase.embedding.rate) for phase in phases if phase.embedding]
    tokens = [(phase.name, phase.generation.rate) for phase in phases if phase.generation]
    curves = [(phase.name, phase.generation.gaps) for phase in phases if phase.generation]
    parts = [
        _words(20, 26, title, size=15),
        _legend(colors),
        _bars(20, "embeddings/s", texts, colors),
        _bars(300, "tokens/s", tokens, colors),
        _curves(580, "ms between tokens", [curve for curve in curves if curve[1]], colors),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="system-ui, sans-serif">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _bars(left: int, title: str, bars: Sequence[tuple[str, float]], colors: dict[str, str]) -> str:
    highest = max((value for _, value in bars), default=0.0) or 1.0
    parts = [_words(left, TOP - 8, title), _axis(left)]
    for number, (name, value) in enumerate(bars):
        height = (BOTTOM - TOP - 20) * value / highest
        x, y = left + 20 + number * 90, BOTTOM - height
        parts.append(f'<rect x="{x}" y="{y:.1f}" width="60" height="{height:.1f}" fill="{colors[name]}"/>')
        parts.append(_words(x + 30, y - 4, _number(value), anchor="middle"))
    return "\n".join(parts)


def _curves(
    left: int, title: str, curves: Sequence[tuple[str, Sequence[float]]], colors: dict[str, str]
) -> str:
    """Upwards: the share of gaps that are no longer than what the curve has reached to the right."""
    longest = max((gaps[-1] for _, gaps in curves), default=0.0) or 1.0
    parts = [_words(left, TOP - 8, title), _axis(left)]
    for name, gaps in curves:
        points = " ".join(
            f"{left + PANEL * gap / longest:.1f},{BOTTOM - (BOTTOM - TOP) * percent / 100:.1f}"
            for percent, gap in enumerate(gaps, 1)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colors[name]}" stroke-width="2"/>')
    parts += [
        _words(left, BOTTOM + 16, "0"),
        _words(left + PANEL, BOTTOM + 16, f"{longest * 1000:.3g}", anchor="end"),
        _words(left - 4, TOP + 4, "99 %", anchor="end"),
    ]
    return "\n".join(parts)


def _legend(colors: dict[str, str]) -> str:
    return "\n".join(
        f'<rect x="{20 + number * 180}" y="{HEIGHT - 22}" width="12" height="12" fill="{color}"/>'
        + _words(38 + number * 180, HEIGHT - 12, name)
        for number, (name, color) in enumerate(colors.items())
    )


def _axis(left: int) -> str:
    return f'<path d="M{left} {TOP}V{BOTTOM}H{left + PANEL}" fill="none" stroke="#999999" stroke-width="1"/>'


def _words(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
