"""The plan compared with what each engine reports once it is ready, kept as a record for the next start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from dataclasses import replace

from memoria.config.model import EngineConfig
from memoria.engine.events import EventKind, Journal
from memoria.engine.lifecycle import FACTS, State
from memoria.engine.snapshot import EngineSnapshot
from memoria.errors import MemoriaError
from memoria.gpu.device import Device
from memoria.plan.budgets import Budget, Holding
from memoria.plan.outcome import Outcome, make_outcome
from memoria.plan.records import Comparison, Record, block_bytes, may_pin, planned_tokens
from memoria.preflight.outcomes import read_engine_model
from memoria.preflight.preflight import Deployment
from memoria.preflight.records import Records, fingerprint_now, holds
from memoria.text import GIB, gib, grouped
from memoria.vllm.install.facts import VllmInstall
from memoria.vllm.log_lines import StartFigures

logger = logging.getLogger(__name__)


class Verifier:
    """Receives every snapshot. Files are read in a thread, away from the requests."""

    def __init__(self, records: Records, environ: Mapping[str, str], journal: Journal) -> None:
        self._records, self._environ, self._journal = records, environ, journal
        self._latest: dict[str, Record] = {}
        self._holdings: dict[str, Holding] = {}
        self._pinned: set[str] = set()
        self._verified: dict[str, str | None] = {}  # the start that was verified last, by engine
        self._tasks: set[asyncio.Task[None]] = set()

    def latest(self, engine: str) -> Record | None:
        """The record of the start that is ready now, or was last."""
        return self._latest.get(engine)

    def holding(self, engine: str) -> Holding | None:
        """What that start's budget was planned to hold, by its model's files; None where they say nothing."""
        return self._holdings.get(engine)

    def pinned(self, engine: EngineConfig, device: Device, install: VllmInstall) -> EngineConfig:
        """The engine with the KV cache that an earlier start with these settings measured, if `learn` is set.
        vLLM then neither measures nor estimates it (`kv_cache_memory_bytes`)."""
        self._pinned.discard(engine.name)
        if not may_pin(engine):
            return engine
        record = self._records.find(engine.name, fingerprint_now(engine, device, install, self._environ))
        if record is None or not record.kv_bytes or not holds(record, {**self._environ, **engine.env}):
            return engine
        self._pinned.add(engine.name)
        return replace(engine, vllm_args={**engine.vllm_args, "kv_cache_memory_bytes": record.kv_bytes})

    def on_change(self, snapshot: EngineSnapshot, deployment: Deployment) -> None:
        """Call from the event loop, with the deployment in force."""
        name = snapshot.name
        if FACTS[snapshot.state].crashed:
            if snapshot.start_seconds is None and name in self._pinned:
                # It did not get ready with the recorded size: the next start measures anew.
                self._pinned.discard(name)
                self._records.forget(name)
        elif snapshot.state is State.ASLEEP:
            self._begin(self._keep_asleep(snapshot, deployment), f"{name} asleep")
        elif snapshot.state is not State.READY or not _is_complete(snapshot.figures):
            return
        elif self._verified.get(name, "") != snapshot.start_id:
            self._verified[name] = snapshot.start_id
            self._begin(self._verify(snapshot, deployment), f"{name} verify")

    def _begin(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_asleep(self, snapshot: EngineSnapshot, deployment: Deployment) -> None:
        if (kept := snapshot.sleep.asleep_bytes) is not None:
            await asyncio.to_thread(self._record_asleep, snapshot.name, kept, deployment)

    def _record_asleep(self, name: str, kept: int, deployment: Deployment) -> None:
        engine, plan = deployment.config.engine(name), deployment.plan
        wanted = fingerprint_now(engine, plan.device(name), deployment.install, self._environ)
        if wanted is None:
            return
        record = self._records.find(name, wanted) or Record(wanted, plan.budget(name).requested_bytes)
        if record.asleep_bytes != kept:
            self._records.keep(name, replace(record, asleep_bytes=kept))

    async def settled(self) -> None:
        """Waits until every record that was begun is written."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _verify(self, snapshot: EngineSnapshot, deployment: Deployment) -> None:
        name = snapshot.name
        record = await asyncio.to_thread(self._record, name, snapshot.figures, deployment)
        if record is None:
            return
        self._latest[name] = record
        if beside := [in_words(found) for found in record.comparisons if found.is_notable]:
            self._journal.add_event(EventKind.OFF_PLAN, name, "; ".join(beside))

    def _record(self, name: str, figures: StartFigures, deployment: Deployment) -> Record | None:
        engine, plan = deployment.config.engine(name), deployment.plan
        budget, device = plan.budget(name), plan.device(name)
        wanted = fingerprint_now(engine, device, deployment.install, self._environ)
        if wanted is None:
            return None
        outcome = self._outcome(engine, budget, device, deployment.install.version)
        if outcome is not None:
            self._holdings[name] = outcome.holding
        record = make_record(wanted, figures, budget, outcome)
        if (before := self._records.find(name, wanted)) is not None:
            record = replace(record, asleep_bytes=before.asleep_bytes)
            if name in self._pinned:
                # With a given size nothing was measured: the condition is that of the start that was.
                record = replace(record, is_cold=before.is_cold)
        self._records.keep(name, record)
        return record

    def _outcome(
        self, engine: EngineConfig, budget: Budget, device: Device, vllm: str | None
    ) -> Outcome | None:
        try:
            return make_outcome(engine, budget, read_engine_model(engine, self._environ), device, vllm=vllm)
        except (MemoriaError, OSError, ValueError) as error:
            logger.debug("%s: no plan to compare with: %s", engine.name, error)
            return None


def _is_complete(figures: StartFigures) -> bool:
    """Whether the log was read past its figures; an encoder's log has no KV cache."""
    return figures.kv_tokens is not None or figures.init_s is not None


def make_record(fingerprint: str, figures: StartFigures, budget: Budget, outcome: Outcome | None) -> Record:
    """The KV cache is counted in blocks where the layout is known: sizes in a log have two decimals."""
    kv_bytes = None
    if outcome is not None and figures.kv_tokens is not None and figures.max_model_len is not None:
        kv_bytes = block_bytes(outcome.kv_cache, figures.kv_tokens, figures.max_model_len)
    is_cold = None if figures.compile_s is None else figures.compiling_s is not None
    tokens, bar = planned_tokens(outcome, is_cold=is_cold)
    return Record(
        fingerprint=fingerprint,
        requested_bytes=budget.requested_bytes,
        kv_tokens=figures.kv_tokens,
        planned_kv_tokens=tokens,
        kv_bytes=kv_bytes,
        weights_bytes=_bytes(figures.weights_gib),
        planned_weights_bytes=None if outcome is None else outcome.terms.weights_bytes,
        graph_bytes=_bytes(figures.graphs_gib),
        planned_graph_bytes=None if outcome is None else outcome.footprint.peaks.graph_bytes,
        planned_bar_tokens=bar,
        is_cold=is_cold,
    )


def in_words(found: Comparison) -> str:
    match found.term:
        case "kv_tokens":
            return f"KV cache of {grouped(found.said)} tokens, {grouped(found.planned)} were planned"
        case "weights_bytes":
            return f"weights of {gib(found.said)} GiB, {gib(found.planned)} were planned"
    return f"CUDA graphs of {gib(found.said)} GiB, {gib(found.planned)} were planned"


def _bytes(size: float | None) -> int | None:
    return None if size is None or size < 0 else round(size * GIB)
