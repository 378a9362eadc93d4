"""A ready engine gives its memory back with its process alive, and takes it again: vLLM's sleep mode.

vLLM asserts for the whole device that falling asleep freed memory. What a neighbour takes meanwhile makes
that fail although the memory is gone, and a wake would then run on unmapped memory (`GPUWorker.sleep` in
vllm/v1/worker/gpu_worker.py). So both happen behind the gate, every answer of vLLM's counts, and whatever
goes wrong ends the process: a cold start heals it. A woken engine may be silently wrong (vLLM #29341,
#53888), so it must answer one request as it did before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from memoria.config.model import Timeouts
from memoria.engine.events import EventKind, Journal
from memoria.engine.lifecycle import Event
from memoria.engine.snapshot import SleepFigures
from memoria.engine.start import Pauses, Start
from memoria.errors import MemoriaError, Problem
from memoria.text import GIB, gib
from memoria.vllm.facts import agree
from memoria.vllm.log_lines import StartFigures

STEADY_BYTES = 16 << 20  # two readings this close count as the same
BETWEEN_READINGS = 0.05  # seconds
# What a process may keep asleep: contexts, graphs and libraries. Published: 0.8 to 1.5 GiB, with tensor
# parallelism up to 7 per GPU. Beyond the least, also no more than half of what it held.
LEAST_KEPT_BYTES, MOST_KEPT_BYTES = 3 * 2**29, 8 * GIB
OTHER_SLEEPS_BYTES = 2**29  # by which a later sleep may differ from the first


class SleepError(Exception):
    """Why an engine did not fall asleep, or did not wake."""


class Waiter(Protocol):
    """The engine that wakes. `on_blocked`: called while its memory is not free."""

    def on_blocked(self, problem: Problem) -> None: ...

    def mark_ready(self) -> None: ...


class Sleeper:
    """The work of three states, for all starts of one engine. `publish`: changes the engine's snapshot."""

    def __init__(self, engine: str, journal: Journal, publish: Callable[..., None]) -> None:
        self._engine, self._journal, self._publish = engine, journal, publish
        self._figures = SleepFigures()

    def may_sleep(self, start: Start, figures: StartFigures) -> bool:
        """Whether it is to sleep, and the host has memory for its weights."""
        if not start.host.sleep_level:
            return False
        assert start.id is not None
        weights = None if figures.weights_gib is None else round(figures.weights_gib * GIB)
        problem = start.host.reserve_host_memory(start.id, weights)
        if problem is not None:
            self._journal.add_event(EventKind.ENDS_INSTEAD, self._engine, problem.line)
        return problem is None

    async def fall_asleep(self, start: Start, timeouts: Timeouts) -> Event:
        began = asyncio.get_running_loop().time()
        try:
            await start.enter_gate_first(_no_check, lambda _: None)
            began = asyncio.get_running_loop().time()
            async with asyncio.timeout(timeouts.release):
                await self._fall_asleep(start)
        except TimeoutError:
            failed = f"not asleep in {timeouts.release:g} s (`timeouts.release`)"
        except (SleepError, MemoriaError, OSError) as error:
            failed = str(error)
        else:
            seconds = asyncio.get_running_loop().time() - began
            self._figures = replace(self._figures, asleep_bytes=start.asleep_bytes, sleep_seconds=seconds)
            self._publish(sleep=self._figures)
            start.leave_gate()
            return Event.SLEPT
        start.trouble = failed
        self._journal.add_event(EventKind.SLEEP_FAILED, self._engine, failed)
        return Event.SLEEPLESS

    async def _fall_asleep(self, start: Start) -> None:
        host, address, process = start.host, start.address, start.process
        assert address is not None
        assert process is not None
        if host.verifies_wakes and start.sample is None:
            start.sample = await host.sample(address)
        pids = await process.tree()
        start.awake_bytes = held = await host.used_bytes(pids)
        if failed := await host.fall_asleep(address):
            raise SleepError(failed)
        kept = await _steady(lambda: host.used_bytes(pids))
        if kept is None or held is None:
            return  # the driver gives no figures: the plan's stand
        most = max(LEAST_KEPT_BYTES, min(MOST_KEPT_BYTES, held // 2))
        if start.asleep_bytes is not None:
            most = start.asleep_bytes + OTHER_SLEEPS_BYTES
        if kept > most:
            raise SleepError(f"it keeps {gib(kept)} of {gib(held)} GiB, at most {gib(most)} are expected")
        if (problem := host.check_asleep(kept)) is not None:
            raise SleepError(problem.line)
        start.asleep_bytes = kept if start.asleep_bytes is None else max(kept, start.asleep_bytes)

    async def stay_asleep(self, start: Start, pauses: Pauses) -> Event:
        """Until its core is lost: its leader then ends by itself, or is ended."""
        await start.until_core_lost()
        await asyncio.sleep(pauses.core_grace)
        start.trouble = "its engine core ended while it was asleep"
        return Event.HUNG

    async def wake(self, start: Start, timeouts: Timeouts, waiter: Waiter) -> Event:
        await start.enter_gate_first(lambda: start.host.check_wake(start.sleeping_bytes), waiter.on_blocked)
        self._publish(detail="", diagnosis=None)
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(timeouts.start):
                right = await self._wake(start)
        except TimeoutError:
            start.trouble = f"not awake in {timeouts.start:g} s (`timeouts.start`)"
        except (SleepError, MemoriaError, OSError) as error:
            start.trouble = str(error)
        else:
            if right:
                seconds = asyncio.get_running_loop().time() - began
                self._figures = replace(self._figures, wake_seconds=seconds)
                self._publish(sleep=self._figures)
                waiter.mark_ready()
                return Event.ANSWERED
            start.trouble = "since it woke it answers a request differently than before"
            self._journal.add_event(EventKind.WRONG_AFTER_WAKE, self._engine, start.trouble)
            return Event.WRONG
        self._journal.add_event(EventKind.WAKE_FAILED, self._engine, start.trouble)
        return Event.UNWOKEN

    async def _wake(self, start: Start) -> bool:
        """Whether it answers as before."""
        host, address = start.host, start.address
        assert address is not None
        if failed := await host.wake_up(address):
            raise SleepError(failed)
        now = await host.sample(address)
        return start.sample is None or (now is not None and agree(start.sample, now))


async def _no_check() -> Problem | None:
    return None


async def _steady(read: Callable[[], Awaitable[int | None]]) -> int | None:
    """The reading once it is the same twice in a row; None where there is none."""
    before: int | None = None
    while True:
        now = await read()
        if now is None or (before is not None and abs(now - before) <= STEADY_BYTES):
            return now
        before = now
        await asyncio.sleep(BETWEEN_READINGS)
