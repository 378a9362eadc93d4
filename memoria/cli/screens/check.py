"""The screen of `memoria check`: plan -> text. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from memoria.cli.screens.layout import BOLD, CYAN, DIM, GREEN, YELLOW, paint, wrapped
from memoria.config.model import Config, DeviceKind
from memoria.gpu.device import Device
from memoria.plan.budgets import DevicePlan
from memoria.plan.plan import Plan
from memoria.preflight.mps import limits_in_words
from memoria.text import aligned, fraction_text, gib
from memoria.vllm.install.facts import VllmInstall

BAR_CELLS = range(8, 41)  # columns of a bar


def render_plan(
    config: Config,
    plan: Plan,
    install: VllmInstall | None,
    width: int,
    color: bool,
    *,
    ok: bool,
    driver: str = "",
) -> str:
    """The screen without a final newline and without problems (see `render_problems`). `ok`: the engines can
    start. `driver`: its version, shown with MPS. A narrow `width` shortens bars, not figures."""
    lines = [*_facts(config, plan, install, width, color, driver=driver)]
    for device, bars in zip(plan.devices, _bars(plan, width, color), strict=True):
        lines.append("")
        if len(plan.devices) > 1:
            lines.append(device.device.label)
        lines += bars
        lines += [paint(f"  {line}", DIM, color) for line in awake_together(device, width - 2)]
    if ok and config.warnings:
        lines.append(paint("ready to run, with the warnings above", YELLOW, color))
    elif ok:
        lines.append(paint("ok: ready to run", GREEN, color))
    return "\n".join(lines)


def _facts(
    config: Config, plan: Plan, install: VllmInstall | None, width: int, color: bool, *, driver: str
) -> Iterable[str]:
    count = len(config.engines)
    rows = [
        (
            "config",
            shown(config.path) if config.path else "built in",
            f"{count} engines" if count > 1 else "1 engine",
        ),
        *((d.device.label, _device_name(d.device), _capacity(d)) for d in plan.devices),
        *([("mps", f"driver {driver}", limits_in_words(driver))] if config.mps else []),
        ("vllm", *_vllm(install, config.device)),
    ]
    # The middle column fits a GPU's name: a long path must not push the figures away.
    middle = max(len(row[1]) for row in rows if row[0] != "config")
    label = max(len(row[0]) for row in rows)
    for name, what, more in rows:
        head = f"{name:<{label}}  "
        room = width - len(head) - max(len(what), middle) - 4
        yield f"{paint(head, BOLD, color)}{what:<{middle}}    {_ending(more, room)}".rstrip()


def _device_name(device: Device) -> str:
    if device.nvml_index in {None, device.index}:
        return device.name
    return f"{device.name} ({device.nvml_index} in nvidia-smi)"


def _capacity(plan: DevicePlan) -> str:
    device = plan.device
    return f"{gib(device.usable_bytes)} GiB total, {gib(device.free_bytes)} free"


def _vllm(install: VllmInstall | None, device: DeviceKind) -> tuple[str, str]:
    if install is None:
        return "not found", f"make one with `memoria setup{' --cpu' if device == 'cpu' else ''}`"
    return install.version or "version unknown", shown(install.root or Path(install.command[0]))


@dataclass(frozen=True, slots=True)
class _Bar:
    """A line of a device's table: an engine, or the unplanned rest (with a `note`)."""

    name: str
    fraction: Decimal
    size_bytes: int
    share: float
    cell: str = "█"  # on demand: what it takes while it is awake
    code: str = CYAN
    note: str = ""


def _table(plan: DevicePlan) -> list[_Bar]:
    total = plan.device.usable_bytes
    bars = [
        _Bar(b.engine, b.fraction, b.requested_bytes, b.requested_bytes / total, "▒" if b.on_demand else "█")
        for b in plan.budgets
    ]
    if plan.unplanned_bytes > 0:
        note = f"   contexts take about {gib(plan.context_bytes)} of it" if plan.context_bytes else ""
        left = plan.unplanned_bytes
        bars.append(_Bar("unplanned", 1 - plan.fraction, left, left / total, "·", DIM, note))
    return bars


def _bars(plan: Plan, width: int, color: bool) -> list[list[str]]:
    """The tables of all devices, with the same columns."""
    tables = [_table(device) for device in plan.devices]
    bars = [bar for table in tables for bar in table]
    names = max(len(bar.name) for bar in bars)
    figures = aligned([(fraction_text(b.fraction), f"{gib(b.size_bytes)} GiB") for b in bars], {0, 1})
    beside = 2 + names + 2 + 2 + len(figures[0]) + max(len(bar.note) for bar in bars)
    cells = min(max(width - beside, BAR_CELLS.start), BAR_CELLS.stop - 1)

    def line(bar: _Bar, figure: str) -> str:
        length = max(1, round(cells * bar.share))
        painted = paint(bar.cell * length, bar.code, color) + " " * (cells - length)
        return f"  {bar.name:<{names}}  {painted}  {figure}{paint(bar.note, DIM, color)}"

    next_figure = iter(figures)
    return [[line(bar, next(next_figure)) for bar in table] for table in tables]


def awake_together(plan: DevicePlan, width: int) -> list[str]:
    """Which engines on demand may be awake at the same time, beside the residents."""
    if not plan.awake_sets:
        return []
    text = "; or ".join(" + ".join(names) for names in plan.awake_sets)
    lines = wrapped(f"awake together on demand: {text}", width)
    if kept := [f"{b.engine} {gib(b.asleep_bytes)} GiB" for b in plan.on_demand if b.asleep_bytes]:
        lines += wrapped(f"kept of the GPU while asleep: {', '.join(kept)}", width)
    return lines


def shown(path: Path) -> str:
    """A path relative to the working directory or to the home directory, where it is below one of them."""
    if not path.is_absolute():
        return str(path)
    for base, prefix in ((Path.cwd(), ""), (Path(os.path.expanduser("~")), "~/")):  # noqa: PTH111
        if path.is_relative_to(base) and path != base:
            return prefix + str(path.relative_to(base))
    return str(path)


def _ending(text: str, room: int) -> str:
    """Keeps the end of a long path, which says more than its beginning."""
    return text if len(text) <= max(room, 20) else "…" + text[-(max(room, 20) - 1) :]
