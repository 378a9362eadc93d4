"""The screen of `memoria top`: `Status` and the latest events -> text. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from memoria.admin.status.status import DeviceStatus, EngineStatus, Status
from memoria.cli.screens.layout import BOLD, paint, paint_state, shortened
from memoria.cli.screens.status import render_status
from memoria.logs import printable
from memoria.text import duration, gib

BESIDE_BAR = 34  # columns of figures
SHORTEST_BAR, LONGEST_NAME = 8, 24  # columns


def render_top(status: Status, events: Sequence[dict[str, Any]], *, width: int, color: bool) -> str:
    """`events` as the API gives them, oldest first."""
    healthy = "healthy" if status.healthy else "degraded"
    left = f"memoria {status.version}  {status.url}  up {duration(status.uptime)}"
    left = shortened(left, width - len(healthy) - 2)
    title = f"{left}{healthy:>{max(len(healthy) + 2, width - len(left))}}"
    lines = [paint(title, BOLD, color), ""]
    for device in status.devices:
        lines += [*_device(device, status.engines, width, color=color), ""]
    lines += render_status(status, width=width, color=color).splitlines()
    if events:
        lines.append("")
    for event in events:
        at = time.strftime("%H:%M:%S", time.localtime(event["at"]))
        detail = f": {event['detail']}" if event["detail"] else ""
        lines.append(shortened(printable(f"{at}  {event['subject']}  {event['what']}{detail}"), width))
    return "\n".join(lines)


def _device(device: DeviceStatus, engines: Sequence[EngineStatus], width: int, *, color: bool) -> list[str]:
    """The device as a whole, then the share of each engine, to the same scale."""
    here = [engine for engine in engines if engine.device == device.label]
    longest = max(map(len, ("others", *(engine.name for engine in here))))
    names = min(longest, LONGEST_NAME, max(SHORTEST_BAR, width - SHORTEST_BAR - BESIDE_BAR))
    cells = max(SHORTEST_BAR, width - names - BESIDE_BAR)
    known = [engine.used_bytes for engine in here if engine.used_bytes is not None]
    used = "-" if device.used_bytes is None else gib(device.used_bytes)
    in_use = f"{used} of {gib(device.total_bytes)} GiB in use"
    name = shortened(device.name, width - len(device.label) - len(in_use) - 4)
    lines = [f"{device.label}  {name}  {in_use}"]
    for engine in here:
        taken = engine.used_bytes or 0
        full = round(cells * taken / device.total_bytes)
        budget = max(full, round(cells * engine.budget_bytes / device.total_bytes))
        bar = "█" * full + "░" * (budget - full) + "·" * (cells - budget)
        figures = "-" if engine.used_bytes is None else gib(engine.used_bytes)
        kv = "  -" if engine.kv_usage is None else f"{engine.kv_usage * 100:3.0f} %"
        name = shortened(engine.name, names)
        line = f"  {name:{names}}  {bar}  {figures:>5} of {gib(engine.budget_bytes):>5} GiB  KV {kv}"
        lines.append(paint_state(line, engine.state, color))
    if device.used_bytes is not None and len(known) == sum(engine.pid is not None for engine in here):
        others = max(0, device.used_bytes - sum(known))
        full = round(cells * others / device.total_bytes)
        lines.append(f"  {'others':{names}}  {'▒' * full}{'·' * (cells - full)}  {gib(others):>5} GiB")
    return lines
