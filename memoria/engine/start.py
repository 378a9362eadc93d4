"""One start of an engine: its process, its place at the gate, its way to ready, and what is left to clear.

The actor and the standby say when; a start knows how. Its shared memory is removed with it: Python's
`multiprocessing.shared_memory` makes files named /dev/shm/psm_*, through which vLLM's workers exchange
messages, and which a killed process leaves behind to hold the host's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from memoria.aio import in_daemon_thread
from memoria.engine.hang import CORE_GONE, HangWatch
from memoria.engine.host import CoreConnections, EngineHost, Ticket
from memoria.engine.lifecycle import FACTS, Event, Exit, State
from memoria.engine.log import Follower, LogFile
from memoria.engine.process.process import EngineProcess
from memoria.engine.process.watch import oom_kills, watch
from memoria.engine.traffic import Traffic
from memoria.errors import Problem, UnavailableError
from memoria.vllm.diagnosis import Diagnosis, diagnose
from memoria.vllm.facts import EngineAddress, ExitStatus, FetchProgress, Sample
from memoria.vllm.fetch.launch import FetchError
from memoria.vllm.log_lines import Observation, Phase, read_line

logger = logging.getLogger(__name__)

LONGEST_LOOK = 5.0  # seconds at what the processes have mapped, or written
LOOK_STARTING, LOOK_RUNNING = 0.1, 1.0  # seconds between two looks at the log
ENDING = 20.0  # seconds in which a killed process ends, unless it is stuck in the kernel
TAIL_LINES = 400  # read for a diagnosis
AGAIN = 0.1  # seconds until its last processes are looked for again

_SHARED = re.compile(r" (/dev/shm/psm_\w+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds; tests shorten them."""

    after_bug: float = 1.0
    retry_held: float = 5.0  # until memory that is held is looked at again, after a look that failed
    core_grace: float = 10.0  # for a leader to end after its core; vLLM's takes 4 at most
    stacks: float = 0.5  # in which a hanging engine core may write where its threads are
    second_look: float = 1.0  # at least, between the first suspicion of a hang and the verdict


class Start:
    """Written by the engine's actor alone, or by its standby. Times are monotonic seconds.

    `trouble`: why memoria itself ended it; `failure`: why its model did not come; `suspicion`: why it seems
    to hang. `end_requested`: its end is no crash; `has_made_room`: for another engine, so it is not to come
    back by itself. `let_through`: a passenger held its core at the gate until its turn. `behind_gate`: it
    may hold device memory. `sample`: an answer from before its first sleep; `awake_bytes`, `asleep_bytes`:
    of the device, that it held then and keeps asleep.
    """

    def __init__(self, host: EngineHost, log: LogFile) -> None:
        self.host, self.log = host, log
        self.id: str | None = None
        self.ticket: Ticket | None = None
        self.connections: CoreConnections | None = None
        self.process: EngineProcess | None = None
        self.address: EngineAddress | None = None
        self.log_from = 0  # bytes
        self.follower: Follower | None = None
        self.spawned_at: float | None = None
        self.ready_at: float | None = None
        self.exited_at: float | None = None
        self.exit: ExitStatus | None = None
        self.trouble: str | None = None
        self.failure: Diagnosis | None = None
        self.suspicion = ""
        self.end_requested = self.has_made_room = False
        self.let_through = self.behind_gate = False
        self.sample: Sample | None = None
        self.awake_bytes: int | None = None
        self.asleep_bytes: int | None = None
        self._core_lost = asyncio.Event()
        self._hang_watch: HangWatch | None = None
        self._is_forgotten = False
        self._last_log: list[str] = []
        self._slipped_through = asyncio.Event()  # its core went on by itself: no passenger holds it
        self._segments: frozenset[str] = frozenset()  # of shared memory, that it had when it was ready
        self._oom_kills = oom_kills()  # that there had been before

    def __repr__(self) -> str:
        return f"<Start {self.id} {self.process}>"

    async def fetch(self, publish: Callable[..., None]) -> FetchProgress | None:
        """Wait until its model is here; returns what has come, or None if it does not come. `publish`:
        changes the engine's snapshot."""

        def on_progress(so_far: FetchProgress) -> None:
            publish(fetch=so_far, percent=so_far.percent, detail=str(so_far))

        try:
            return await self.host.fetch_model(on_progress)
        except FetchError as error:
            self.failure, self.trouble = error.diagnosis, error.diagnosis.cause
            return None

    # ------------------------------------------------------------------ process and log

    async def spawn(self) -> None:
        """Raises `MemoriaError`."""
        try:
            await self._spawn()
        except OSError as error:
            what = f"cannot start {error.filename or 'the engine'}: {error.strerror}"
            raise UnavailableError(what) from error

    async def _spawn(self) -> None:
        opened = await in_daemon_thread(lambda: _OpenLog(self.log))
        await self.host.check_address()
        # no await from here on: a cancelled start has spawned nothing
        self.id = uuid.uuid4().hex[:12]
        self.connections = self.host.expect(self.id)
        spec = self.host.spec(self.id)
        try:
            self.log_from, self.follower = opened.size, opened.follower
            self.address = spec.address
            self.process = EngineProcess.spawn(
                spec.argv,
                spec.env,
                start_id=self.id,
                log=opened.descriptor,
                process_table=self.host.process_table,
            )
        finally:
            opened.close()
        self.host.spawned(self.id, self.process.pid)
        self.spawned_at = time.monotonic()

    async def watch(
        self, on_line: Callable[[str, Observation | None], None], pause: float | None = None
    ) -> ExitStatus:
        """Read its log every `pause` seconds until its leader ends; returns how it ended. By default more
        often while it starts: a person watches that."""
        assert self.process is not None
        assert self.follower is not None

        def read(line: str) -> None:
            seen = read_line(line)
            if seen is not None and seen.phase is Phase.ENGINE and not self.let_through:
                self._slipped_through.set()
            on_line(line, seen)

        def until_next_look() -> float:
            return pause or (LOOK_STARTING if self.ready_at is None else LOOK_RUNNING)

        try:
            await watch(self.process, self.log, self.follower, read, until_next_look)
        except Exception:  # its end must be seen whatever becomes of the watch
            logger.exception("a bug in memoria while it watched %s", self)
        self.exit = await self.process.exited()
        self.exited_at = time.monotonic()
        return self.exit

    # ------------------------------------------------------------------ gate

    async def reaches_gate(self) -> bool:
        """Wait until the engine core is held at the gate. False: it went on by itself, no passenger holds
        it."""
        assert self.connections is not None
        arrived = asyncio.ensure_future(self.connections.at_gate.wait())
        slipped = asyncio.ensure_future(self._slipped_through.wait())
        try:
            await asyncio.wait({arrived, slipped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            arrived.cancel()
            slipped.cancel()
        return self.waits_at_gate

    @property
    def waits_at_gate(self) -> bool:
        return self.connections is not None and self.connections.at_gate.is_set()

    async def enter_gate(self, on_blocked: Callable[[Problem], None]) -> None:
        """Wait for its turn, and for enough memory. From then on it may hold some."""
        assert self.ticket is not None
        await self.ticket.enter(self.host.check_memory, on_blocked)
        self.behind_gate = True

    async def enter_gate_first(
        self, check: Callable[[], Awaitable[Problem | None]], on_blocked: Callable[[Problem], None]
    ) -> None:
        """Of a start that was ready: it measures nothing, and waits only for who is inside."""
        self.ticket = ticket = self.host.ticket(first=True)
        try:
            await ticket.enter(check, on_blocked)
        except BaseException:
            ticket.leave()
            raise

    def leave_gate(self) -> None:
        if self.ticket is not None:
            self.ticket.leave()

    @property
    def is_blocked(self) -> bool:
        """Whether it waits at the gate for memory that is not free."""
        return self.ticket is not None and self.ticket.blocked is not None

    @property
    def sleeping_bytes(self) -> int | None:
        """What it takes when it wakes; None if that is unknown."""
        if self.awake_bytes is None or self.asleep_bytes is None:
            return None
        return self.awake_bytes - self.asleep_bytes

    @property
    def core_lost(self) -> bool:
        """Its core has ended, which its leader may not have noticed."""
        return self._core_lost.is_set()

    async def until_core_lost(self) -> None:
        await self._core_lost.wait()

    def let_core_through(self) -> None:
        assert self.connections is not None
        self.let_through = True
        self.connections.on_lost = self._on_core_lost
        self.connections.let_through()

    def _on_core_lost(self) -> None:
        """Its memory is on its way back, though its leader has not ended yet and can only refuse what it
        gets meanwhile."""
        if not self._is_forgotten:
            self._core_lost.set()
            self.set_releasing(True)
            self.alert(CORE_GONE)

    @property
    def spoiled(self) -> bool:
        """A neighbour's memory moved while this start measured the device's."""
        return self.ticket is not None and self.ticket.spoiled

    def set_releasing(self, releasing: bool) -> None:
        """A start that was never behind the gate has nothing that could come back."""
        self.host.set_releasing(self.id or "", releasing and self.behind_gate)

    # ------------------------------------------------------------------ ready

    async def until_answering(self) -> None:
        assert self.address is not None
        assert self.id is not None
        await self.host.until_answering(self.address, self.id)

    async def find_excess(self) -> Problem | None:
        """It has answered: note the processes whose memory must come back. Returns what it holds beyond its
        budget, if a neighbour's memory moved while it measured: it may have taken that, too."""
        assert self.process is not None
        with contextlib.suppress(OSError):  # also when that takes too long
            known = await self.process.tree()
            async with asyncio.timeout(LONGEST_LOOK):
                self._segments = await in_daemon_thread(lambda: _shared_memory(known))
        return await self.host.check_held(self.process.known) if self.spoiled else None

    def mark_ready(self, traffic: Traffic, patience: float, second_look: float) -> None:
        """The next one may pass the gate; this one is watched for hangs (`HangWatch`)."""
        assert self.address is not None
        if self.ready_at is None:
            self.ready_at = time.monotonic()
        self.has_made_room = False
        self._hang_watch = HangWatch(self.host, self.address, traffic, patience, second_look)
        if self.core_lost:
            self._hang_watch.alert(CORE_GONE)
        self.leave_gate()

    @property
    def seconds_to_ready(self) -> float | None:
        return _between(self.spawned_at, self.ready_at)

    @property
    def seconds_of_ready(self) -> float | None:
        return _between(self.ready_at, self.exited_at)

    @property
    def hang_watch(self) -> HangWatch:
        """Of a start that was ready."""
        assert self._hang_watch is not None
        return self._hang_watch

    def alert(self, reason: str) -> None:
        """A suspicion that it hangs, if that is watched."""
        if self._hang_watch is not None:
            self._hang_watch.alert(reason)

    def set_patience(self, patience: float) -> None:
        if self._hang_watch is not None:
            self._hang_watch.set_patience(patience)

    async def until_drained(self, traffic: Traffic, stalled: float) -> bool:
        """Wait until its requests are finished (`Traffic.finished`). False: it seems to hang."""
        drained = asyncio.ensure_future(traffic.finished(stalled))
        silent = asyncio.ensure_future(self.hang_watch.until_silent())
        try:
            await asyncio.wait({drained, silent}, return_when=asyncio.FIRST_COMPLETED)
            if not drained.done():
                self.suspicion = silent.result()
            return drained.done()
        finally:
            drained.cancel()
            silent.cancel()

    # ------------------------------------------------------------------ end

    def may(self, request: Event) -> bool:
        """One that is past the gate holds memory: it does not step back."""
        return request is not Event.STEP_BACK or self.is_blocked

    def note(self, before: State, event: Event, state: State) -> None:
        """What an event says of its end."""
        if event.intends_end:
            self.end_requested = True
        drained = event is Event.DRAINED and before is State.YIELDING
        if drained or event in (Event.DOZE, Event.STEP_BACK):
            self.has_made_room, self.end_requested = True, state is State.STOPPING
        elif event in (Event.UNWOKEN, Event.WRONG):
            self.has_made_room = False  # it is needed: a cold start follows

    def reason(self, state: State, event: Event) -> str:
        """Why the engine is in this state."""
        match state:
            case State.RELEASING if event is Event.EXITED and not self.end_requested:
                return str(self.exit) if self.exit else ""
            case State.SUSPECT:
                return self.suspicion
            case State.STOPPING | State.RELEASING | State.FAILED | State.BACKOFF:
                return self.trouble or ""
            case State.DORMANT | State.ASLEEP:
                return self.trouble or FACTS[state].detail
        return FACTS[state].detail

    async def end_leader(self, grace: float | None, release: float, on_killed: Callable[[], None]) -> bool:
        """SIGTERM, unless `grace` is None, then SIGKILL; `on_killed` is called when the grace was too short.
        False: it has not ended `release` seconds later, stuck in the kernel where no signal ends it."""
        assert self.process is not None
        if grace is not None:
            self.process.terminate()
            try:
                async with asyncio.timeout(grace):
                    await self.process.exited()
            except TimeoutError:
                on_killed()
        self.process.kill()
        try:
            async with asyncio.timeout(release):
                await self.process.exited()
        except TimeoutError:
            return False
        return True

    def last_log(self) -> list[str]:
        """As it was diagnosed by; before, this reads the file."""
        return self._last_log or self.log.tail(TAIL_LINES, self.log_from)

    async def diagnose(self, engine: str, kv_gib: float | None) -> Diagnosis:
        """Why it crashed. `kv_gib`: what vLLM said was left for the KV cache."""
        if self.failure is not None:
            return self.failure
        if self.trouble is not None:
            return Diagnosis(self.trouble, f"memoria logs {engine}", "yes", "memoria")
        oom_kill = oom_kills().hit_since(self._oom_kills)
        settings = replace(self.host.launch_settings, kv_gib=kv_gib, oom_kill=oom_kill)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_LOOK):
                self._last_log = await in_daemon_thread(self.last_log)
        return diagnose(self._last_log, self.exit or ExitStatus(code=None), settings)

    def crash(self, diagnosis: Diagnosis) -> Exit:
        ready_for = self.seconds_of_ready
        spoiled, counts = ready_for is None and self.spoiled, self.failure is None or diagnosis.retry != "yes"
        return Exit(ready_for, diagnosis.cause, diagnosis.retry, spoiled, counts)

    async def until_released(self, on_orphans: Callable[[Collection[int]], None]) -> None:
        """Kill and reap what is left, until it is gone and its memory is back. `on_orphans`: called with the
        processes that outlived their leader."""
        if (process := self.process) is None:
            return

        async def clear() -> set[int]:
            cleared = await process.clear()
            if cleared.outlived:
                on_orphans(cleared.outlived)
            return cleared.left

        await self.host.until_released(clear, process.known)

    async def until_surely_released(
        self, on_orphans: Callable[[Collection[int]], None], retry: float
    ) -> None:
        """Whatever goes wrong: until the memory is back nothing may pass the gate. `retry`: seconds."""
        while True:
            try:
                return await self.until_released(on_orphans)
            except Exception:
                logger.exception("%s: a bug in memoria while its memory is held", self)
                await asyncio.sleep(retry)

    async def discard(self) -> None:
        """End one that holds no device memory: kill it, and reap its last processes."""
        if (process := self.process) is not None:
            process.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ENDING):
                    await process.exited()
            while await _lives(process):  # noqa: ASYNC110 - killed, and not our children: only looking tells
                await asyncio.sleep(AGAIN)
        self.forget()

    def forget(self) -> None:
        """Nothing is left of it."""
        self._is_forgotten = True
        self.leave_gate()
        if self.id is not None:
            self.host.set_releasing(self.id, False)
            self.host.forget(self.id)
        _remove(self._segments)


class _OpenLog:
    """For a new process. A start that is cancelled meanwhile drops it."""

    def __init__(self, log: LogFile) -> None:
        self.descriptor = -1
        log.rotate_if_large()
        self.descriptor = log.open()
        self.size, self.follower = log.size(), log.follow()

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close


def _between(first: float | None, then: float | None) -> float | None:
    return None if first is None or then is None else then - first


async def _lives(process: EngineProcess) -> bool:
    try:
        return bool((await process.clear()).left)
    except OSError as error:
        logger.warning("the processes of a discarded start are not known: %s", error)
        return True


def _shared_memory(pids: Collection[int]) -> frozenset[str]:
    """The segments that these processes have mapped (proc_pid_maps(5)). Blocks, see `process/table.py`."""
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            found.update(_SHARED.findall(Path(f"/proc/{pid}/maps").read_text(errors="replace")))
    return frozenset(found)


def _remove(files: Iterable[str]) -> None:
    for file in files:
        with contextlib.suppress(OSError):  # removed in time
            Path(file).unlink()
