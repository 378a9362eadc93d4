"""`memoria check`, `run` and `status` in a terminal, as an animated SVG: `python -m tests.recording`.

The lines are those of the golden files, with which the unit tests compare the screens: the picture shows what
memoria prints. Without animation (an old viewer, `prefers-reduced-motion`) it is the last frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden")
PICTURE = Path(__file__).parent / "browser" / "pictures" / "terminal.svg"
COLUMNS = 80
CHARACTER, LINE, SIZE = 8.4, 20, 14  # pixels
MARGIN, TITLE = 16, 34
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
PERIOD = 24.0  # seconds; most of it shows the last frame
STYLES = {"1": "bold", "2": "dim", "31": "red", "32": "green", "33": "yellow", "36": "cyan"}
COLORS = {
    "dark": {
        **{"back": "#161b22", "edge": "#30363d", "text": "#d1d7e0", "bold": "#f0f6fc", "dim": "#8b949e"},
        **{"red": "#ff7b72", "green": "#56d364", "yellow": "#e3b341", "cyan": "#56d4dd"},
    },
    "light": {
        **{"back": "#ffffff", "edge": "#d0d7de", "text": "#24292f", "bold": "#0d1117", "dim": "#6e7781"},
        **{"red": "#b42318", "green": "#17713a", "yellow": "#8a5a00", "cyan": "#0b6e86"},
    },
}


@dataclass(frozen=True, slots=True)
class Shown:
    """A line of text with ANSI colours, in a row of the terminal, from and until some second."""

    row: int
    text: str
    since: float
    until: float | None = None


def recording() -> list[Shown]:
    check = _lines("check-80-color.txt")
    stages = [_lines(f"run-{name}-color.txt") for name in ("fetches", "starts", "ready")]
    status = _lines("status-healthy.txt", after="== 80 columns, color")
    shown = _typed(0, "memoria check", 0.5) + _printed(1, check, 1.4)
    row = len(check) + 2
    shown += _typed(row, "memoria run", 3.6)
    shown += _redrawn(row + 1, stages, (4.6, 6.8, 8.6))
    row += len(stages[-1]) + 2
    return (
        shown
        + _typed(row, "memoria status", 10.2, "  \x1b[2m# in another terminal\x1b[0m")
        + _printed(row + 1, status, 11.2)
    )


def svg(shown: list[Shown]) -> str:
    width = round(COLUMNS * CHARACTER + 2 * MARGIN)
    height = TITLE + (max(line.row for line in shown) + 1) * LINE + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-label="memoria check, run and status">',
            f"<style>\n{_style(shown)}</style>",
            f'<rect class="back" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
            *(
                f'<circle class="{color}" cx="{MARGIN + 4 + 18 * number}" cy="17" r="5"/>'
                for number, color in enumerate(("red", "yellow", "green"))
            ),
            *(_element(line) for line in shown),
            "</svg>\n",
        ]
    )


def _lines(name: str, after: str = "") -> list[str]:
    text = (GOLDEN / name).read_text(encoding="utf-8")
    if after:
        text = text.partition(f"{after}\n")[2].partition("\n\n")[0]
    return text.rstrip("\n").split("\n")


def _typed(row: int, command: str, at: float, note: str = "") -> list[Shown]:
    prompt = "\x1b[2m$\x1b[0m "
    steps = [f"{prompt}\x1b[1m{command[:end]}\x1b[0m" for end in range(0, len(command) + 1, 2)]
    times = [at + 0.07 * number for number in range(len(steps))]
    if steps[-1] != (whole := f"{prompt}\x1b[1m{command}\x1b[0m"):
        steps, times = [*steps, whole], [*times, times[-1] + 0.07]
    steps[-1] += note
    ends = [*times[1:], None]
    return [Shown(row, text, since, until) for text, since, until in zip(steps, times, ends, strict=True)]


def _printed(row: int, lines: list[str], at: float) -> list[Shown]:
    return [Shown(row + number, line, at) for number, line in enumerate(lines) if line]


def _redrawn(row: int, stages: list[list[str]], times: tuple[float, ...]) -> list[Shown]:
    """Lines in place of each other; one that stays is there once."""
    shown: list[Shown] = []
    for number in range(max(map(len, stages))):
        for at, stage in zip(times, stages, strict=True):
            text = stage[number] if number < len(stage) else ""
            before = shown[-1] if shown and shown[-1].row == row + number else None
            if not text or (before is not None and before.text == text):
                continue
            if before is not None:
                shown[-1] = replace(before, until=at)
            shown.append(Shown(row + number, text, at))
    return shown


def _style(shown: list[Shown]) -> str:
    text = f"text {{ font: {SIZE}px {FONT}; white-space: pre; }}\n"
    for number, (scheme, colors) in enumerate(COLORS.items()):
        rules = [f".{name} {{ fill: {color}; }}" for name, color in colors.items() if name != "edge"]
        rules.append(f".back {{ stroke: {colors['edge']}; }}")
        block = "\n".join(rules)
        text += f"{block}\n" if number == 0 else f"@media (prefers-color-scheme: {scheme}) {{\n{block}\n}}\n"
    text += ".bold { font-weight: bold; }\n.gone { opacity: 0; }\n"
    spans = sorted({(line.since, line.until or PERIOD) for line in shown})
    rules = []
    for since, until in spans:
        name = _name(since, until)
        first, last = (round(100 * at / PERIOD, 2) for at in (since, until))
        ends = f" {last:g}% {{ opacity: 0; }}" if until < PERIOD else ""
        rules.append(f"@keyframes {name} {{ 0% {{ opacity: 0; }} {first:g}% {{ opacity: 1; }}{ends} }}")
        rules.append(f".{name} {{ animation: {name} {PERIOD:g}s step-end infinite; }}")
    return text + "@media (prefers-reduced-motion: no-preference) {\n" + "\n".join(rules) + "\n}\n"


def _name(since: float, until: float) -> str:
    return f"t{since * 100:.0f}-{until * 100:.0f}"


def _element(line: Shown) -> str:
    """One `text` for each piece of one colour, as wide as its characters whatever the font is."""
    y = TITLE + line.row * LINE + SIZE
    pieces = []
    style, column = "text", 0
    for part in re.split(r"(\x1b\[\d+m)", line.text):
        if code := re.fullmatch(r"\x1b\[(\d+)m", part):
            style = STYLES.get(code[1], "text")
        elif part:
            if part.strip():
                x, length = MARGIN + column * CHARACTER, len(part) * CHARACTER
                pieces.append(
                    f'<text class="{style}" x="{x:.1f}" y="{y}" textLength="{length:.1f}" '
                    f'xml:space="preserve">{escape(part)}</text>'
                )
            column += len(part)
    gone = "" if line.until is None else "gone "
    return f'<g class="{gone}{_name(line.since, line.until or PERIOD)}">{"".join(pieces)}</g>'


if __name__ == "__main__":
    PICTURE.write_text(svg(recording()), encoding="utf-8")
