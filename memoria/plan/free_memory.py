"""Whether the memory that engines need is really free, and which processes use the rest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from memoria.errors import Problem
from memoria.gpu.device import Device, DeviceProcess
from memoria.plan.budgets import HUNDREDTH, ROUNDING_BYTES, Budget, DevicePlan, spoken_name
from memoria.text import aligned, fraction_text, gib

HOLDERS_SHOWN = 5
# Unattributed memory below this is the driver's own, and not worth a line.
UNNAMED_BYTES = 2**29
# CUDA graphs and libraries may take this much outside a fraction: a tenth of it, or 2 GiB.
BEYOND_BYTES, BEYOND_SHARE = 2**31, 10


def memory_problem(plan: DevicePlan, own_pids: Collection[int]) -> Problem | None:
    """All engines of a device against its free memory before any of them starts."""
    missing = plan.needed_bytes - plan.available_bytes
    if missing <= 0:
        return None
    share = Decimal(missing + ROUNDING_BYTES * len(plan.awake)) / plan.device.usable_bytes
    excess = share.quantize(HUNDREDTH, rounding=ROUND_CEILING)
    lower = f"lower the fractions by {fraction_text(excess)} in total" if excess < plan.fraction else None
    with_contexts = " with their CUDA contexts" if plan.context_bytes else ""
    return Problem(
        f"the engines need {gib(plan.needed_bytes)} GiB{with_contexts}, "
        f"{spoken_name(plan.device)} has {gib(plan.available_bytes)} GiB free",
        _holder_lines(plan.device, own_pids),
        _hint(plan.device, own_pids, missing, lower),
    )


def check_start(budget: Budget, device: Device, own_pids: Collection[int]) -> Problem | None:
    """One engine about to touch `device`. The snapshot must be fresh: running engines' memory is already in
    use, so the engine needs its own budget free and no more.

    vLLM compares free memory with the request once the engine's CUDA context exists (`request_memory` in
    vllm/v1/worker/utils.py). Here it does not exist yet, so it is added, with a margin because its size is an
    estimate. On a host both are 0, and the comparison is that of vLLM's CPU worker, made even where vLLM
    skips it (`memoria.plan.plan` says why).

    `own_pids` are the processes of memoria's engines: summed up in one line, never among those to stop.
    """
    missing = budget.start_bytes - device.free_bytes
    if missing <= 0:
        return None
    around = budget.context_bytes + budget.margin_bytes + ROUNDING_BYTES
    share = Decimal(device.free_bytes - around) / device.usable_bytes
    fitting = share.quantize(HUNDREDTH, rounding=ROUND_FLOOR)
    lower = f"lower {budget.engine} to {fraction_text(fitting)}" if fitting > 0 else None
    return Problem(
        f"{budget.engine} needs {gib(budget.start_bytes)} GiB, "
        f"{spoken_name(device)} has {gib(device.free_bytes)} GiB free",
        _holder_lines(device, own_pids),
        _hint(device, own_pids, missing, lower),
    )


def check_wake(
    budget: Budget, device: Device, own_pids: Collection[int], needed: int | None
) -> Problem | None:
    """One engine about to wake. `needed`: what it gave back when it fell asleep; None: its whole budget."""
    wanted = budget.requested_bytes if needed is None else needed
    missing = wanted - device.free_bytes
    if missing <= 0:
        return None
    return Problem(
        f"{budget.engine} needs {gib(wanted)} GiB to wake, "
        f"{spoken_name(device)} has {gib(device.free_bytes)} GiB free",
        _holder_lines(device, own_pids),
        _hint(device, own_pids, missing, None),
    )


def check_held(budget: Budget, device: Device, pids: Collection[int]) -> Problem | None:
    """The memory that one engine's processes use, against its budget. Contexts and graphs lie outside a
    fraction, so a problem is only what they cannot explain. None also where the driver gives no figures, and
    where the KV cache has a fixed size."""
    used = [process.used_bytes for process in device.processes if process.pid in pids]
    if device.is_host or None in used or budget.kv_cache_bytes is not None:
        return None
    total = sum(size or 0 for size in used)
    if total <= budget.start_bytes + max(BEYOND_BYTES, budget.requested_bytes // BEYOND_SHARE):
        return None
    return Problem(
        f"{budget.engine} uses {gib(total)} GiB, its fraction is {gib(budget.requested_bytes)} GiB: "
        "it took memory that a neighbour freed while it started"
    )


def foreign(device: Device, own_pids: Collection[int]) -> tuple[DeviceProcess, ...]:
    """The processes that use memory of `device` and are not memoria's, largest first."""
    others = [process for process in device.processes if process.pid not in own_pids]
    return tuple(sorted(others, key=lambda process: -(process.used_bytes or 0)))


def _holder_lines(device: Device, own_pids: Collection[int]) -> tuple[str, ...]:
    others = foreign(device, own_pids)
    rows = [
        (
            f"pid {process.pid}",
            process.user or "-",
            process.command or "-",
            f"{gib(process.used_bytes)} GiB" if process.used_bytes is not None else "size unknown",
        )
        for process in others[:HOLDERS_SHOWN]
    ]
    lines = list(aligned(rows, right={3})) if rows else []
    if len(others) > HOLDERS_SHOWN:
        lines.append(f"and {len(others) - HOLDERS_SHOWN} more")
    own = sum(process.used_bytes or 0 for process in device.processes if process.pid in own_pids)
    if own:
        lines.append(f"memoria's own engines  {gib(own)} GiB")
    unnamed = device.used_bytes - sum(process.used_bytes or 0 for process in device.processes)
    if not device.is_host and unnamed >= UNNAMED_BYTES:
        lines.append(f"processes the driver does not name  {gib(unnamed)} GiB")
    return tuple(lines)


def _hint(device: Device, own_pids: Collection[int], missing: int, lower: str | None) -> str:
    # On a host the largest process may be the user's desktop: it is named, but never proposed to be stopped.
    to_stop = () if device.is_host else _enough_to_stop(foreign(device, own_pids), missing)
    if to_stop:
        free = "stop " + " and ".join(f"pid {process.pid}" for process in to_stop)
    else:
        free = f"free {gib(missing)} GiB"
    return f"{free}, or {lower}" if lower else free


def _enough_to_stop(holders: Sequence[DeviceProcess], missing: int) -> tuple[DeviceProcess, ...]:
    """The fewest processes that together use `missing` bytes; none where even all of them use less."""
    freed = 0
    for count, process in enumerate(holders[:HOLDERS_SHOWN], 1):
        freed += process.used_bytes or 0
        if freed >= missing:
            return tuple(holders[:count])
    return ()
