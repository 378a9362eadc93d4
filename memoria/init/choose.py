"""What a draft leaves open: runners, names, and as generous a `want` for each engine as all have room for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path

from memoria.config.load import read
from memoria.config.model import Config
from memoria.errors import ConfigError, MemoryHeldError, Problem, UnavailableError
from memoria.gpu.device import Device
from memoria.init.draft import Draft, DraftEngine, LeftOut, Verbatim, engine_name, render
from memoria.plan.budgets import HUNDREDTH, MARGIN_BYTES, ROUNDING_BYTES, context_bytes
from memoria.plan.checkpoint import ModelFiles
from memoria.plan.outcome import Outcomes, footprint_of
from memoria.plan.plan import Plan, make_plan
from memoria.plan.problems import plan_problems
from memoria.plan.wishes import Choice, settle
from memoria.preflight.models import look_for_models
from memoria.preflight.outcomes import make_outcomes, read_models
from memoria.vllm.runner import runner_of

GPU_LIMIT = Decimal("0.95")  # the file's default
# Left alone: other programs' memory comes and goes.
GPU_SHARE, HOST_SHARE = Decimal("0.90"), Decimal("0.80")
HOST_SPARE = 2**30
# Tokens of a request, and such requests at once: from generous to what is just of use.
_GENERATE = ((32768, 8), (16384, 8), (8192, 8), (8192, 4), (4096, 4), (4096, 1), (2048, 1), (512, 1))
_POOLING = ((8192, 4), (8192, 4), (8192, 4), (8192, 4), (4096, 4), (4096, 1), (2048, 1), (512, 1))

Devices = Callable[[Config], Mapping[int | str, Device]]


@dataclass(frozen=True, slots=True)
class Chosen:
    """`text` is the file. `config` has a fraction for every engine."""

    text: str
    config: Config
    plan: Plan
    outcomes: Outcomes
    choices: tuple[Choice, ...]


class _Drafted:
    """A draft as the rest of memoria reads it."""

    def __init__(self, draft: Draft, path: Path, environ: Mapping[str, str]) -> None:
        self.draft, self.text = draft, render(draft)
        try:
            self.config = read(path, environ, self.text).config
        except ConfigError as error:
            raise ConfigError(_without_places(error.problems)) from error


def complete(
    draft: Draft,
    path: Path,
    environ: Mapping[str, str],
    devices_of: Devices,
    *,
    version: str | None,
    beside_others: bool,
) -> Chosen:
    """Fills in the draft, for a file at `path`. Fractions that were written are kept if they fit.
    `beside_others`: what other processes hold is left to them. Raises `ConfigError` with every problem where
    the engines do not fit, or a model is not there, `MemoryHeldError` where they would fit without the
    others, and `UnavailableError` where a fraction needs a model's files and they cannot be read."""
    for engine in draft.engines:
        engine.keys.setdefault("gpu_memory_utilization", "auto")
    config = _Drafted(draft, path, environ).config
    looked = look_for_models(config, environ)
    files, unknown = read_models(config, environ)
    if looked.problems:
        raise ConfigError(_without_places(looked.problems))
    if missing := [unknown[e.name] for e in config.engines if e.is_auto and e.name not in files]:
        raise UnavailableError(missing)
    for engine in draft.engines:
        engine.keys = {"runner": runner_of(engine.model, files.get(engine.name)), **engine.keys}
    files, unknown = _name(draft, files), {}
    config = _Drafted(draft, path, environ).config
    devices = devices_of(config)
    problems: tuple[Problem, ...] = ()
    for alone in (False, True) if beside_others else (True,):
        seen = {which: _emptied(device) for which, device in devices.items()} if alone else devices
        for candidate in _candidates(draft, config, files, seen, version):
            drafted = _Drafted(candidate, path, environ)
            settled = settle(drafted.config, devices, files, unknown, vllm=version)
            if problems := settled.problems:
                continue
            plan = make_plan(settled.config, devices)
            outcomes = make_outcomes(settled.config, plan, files, unknown, vllm=version)
            if not (problems := plan_problems(settled.config, plan, outcomes)):
                if alone and beside_others:
                    raise MemoryHeldError(_without_places(plan.memory_problems))
                draft.left_out = candidate.left_out
                return Chosen(drafted.text, settled.config, plan, outcomes, settled.choices)
    raise ConfigError(_without_places(problems))


def _emptied(device: Device) -> Device:
    return replace(device, free_bytes=device.usable_bytes, used_bytes=0, processes=())


def _without_places(problems: Iterable[Problem]) -> Iterator[Problem]:
    """There is no file yet."""
    for problem in problems:
        rows = tuple(re.sub(r"^\S+:\d+(:\d+)?\s+", "", row) for row in problem.where)
        yield replace(problem, where=tuple(row for row in rows if not re.fullmatch(r"\S+:\d+", row)))


def _name(draft: Draft, files: Mapping[str, ModelFiles]) -> dict[str, ModelFiles]:
    """Engines that came without a name get that of their task, or of their model; the files by the new
    names."""
    tasks = [_task(engine) for engine in draft.engines]
    renamed: dict[str, ModelFiles] = {}
    taken = {engine.name for engine in draft.engines if engine.is_named}
    for engine, task in zip(draft.engines, tasks, strict=True):
        before = engine.name
        if not engine.is_named:
            alone = tasks.count(task) == 1
            engine.name = engine_name(task if alone else engine.model.rstrip("/").rpartition("/")[2], taken)
            taken.add(engine.name)
        if before in files:
            renamed[engine.name] = files[before]
    return renamed


def _task(engine: DraftEngine) -> str:
    if engine.keys["runner"] == "generate":
        return "generation"
    return "reranker" if re.search("rerank", engine.model, re.IGNORECASE) else "embedding"


def _candidates(
    draft: Draft,
    config: Config,
    files: Mapping[str, ModelFiles],
    devices: Mapping[int | str, Device],
    version: str | None,
) -> Iterator[Draft]:
    """As it is, where every fraction was written; else, and after that, with wishes for the others."""
    written = [engine for engine in draft.engines if engine.keys["gpu_memory_utilization"] != "auto"]
    longest = {e.name: _longest(config, e.name, files, devices[e.gpu], version) for e in config.engines}
    drafts = [draft]
    if written:
        freed = deepcopy(draft)
        for engine in freed.engines:
            engine.keys["gpu_memory_utilization"] = "auto"
        for e in written:
            what = f"its fraction of {e.keys['gpu_memory_utilization']}"
            freed.left_out.append(LeftOut(e.source, what, _DO_NOT_FIT))
        if all(engine.name in files for engine in draft.engines):
            drafts.append(freed)
    for base in drafts:
        if all(engine.keys["gpu_memory_utilization"] != "auto" for engine in base.engines):
            yield base
            continue
        for step in range(len(_GENERATE)):
            for limit in _limits(config, devices):
                yield _with_wishes(base, longest, step, limit, on_host=config.device == "cpu")


_DO_NOT_FIT = "together they do not fit, so fractions are chosen anew"


def _longest(
    config: Config, name: str, files: Mapping[str, ModelFiles], device: Device, version: str | None
) -> int | None:
    """The longest context of a model, in tokens; 0 for one that cannot be planned."""
    if name not in files:
        return 0
    try:
        found = footprint_of(config.engine(name), files[name], device, vllm=version)
    except ValueError:
        return 0
    return found.settings.longest or 8192


def _limits(config: Config, devices: Mapping[int | str, Device]) -> tuple[Decimal, ...]:
    """From one with room for other programs to the largest."""
    found: list[Decimal] = []
    for device in {device.uuid: device for device in devices.values()}.values():
        number = sum(1 for engine in config.engines if devices[engine.gpu].uuid == device.uuid)
        around = HOST_SPARE
        if not device.is_host:
            around = (context_bytes(device) + ROUNDING_BYTES) * number + MARGIN_BYTES
        share = Decimal(device.free_bytes - around) / device.usable_bytes
        found.append(max(HUNDREDTH, share.quantize(HUNDREDTH, rounding=ROUND_FLOOR)))
    free, on_host = min(found), config.device == "cpu"
    shares = (HOST_SHARE,) if on_host else (GPU_SHARE, GPU_LIMIT)
    return tuple(dict.fromkeys(min(free, share) for share in shares))


def _with_wishes(
    base: Draft, longest: Mapping[str, int | None], step: int, limit: Decimal, *, on_host: bool
) -> Draft:
    made = deepcopy(base)
    why = "the rest is for other programs" if on_host else "the rest is for CUDA contexts and other programs"
    made.top["gpu_limit"] = (Verbatim(limit), why)
    for engine in made.engines:
        if engine.keys["gpu_memory_utilization"] != "auto":
            continue
        most = longest[engine.name]
        if not most:
            share = (limit / len(made.engines)).quantize(HUNDREDTH, rounding=ROUND_FLOOR)
            engine.keys["gpu_memory_utilization"] = Verbatim(share)
            engine.notes["gpu_memory_utilization"] = "a guess: memoria cannot plan models of this kind"
            continue
        generates = engine.keys["runner"] == "generate"
        context, requests = (_GENERATE if generates else _POOLING)[step]
        want: dict[str, int] = {"concurrency": requests}
        if "max_model_len" not in engine.keys:
            want = {"context": min(context, most), **want}
        if generates and not on_host:
            want["weight"] = 1
        keys = engine.keys
        place = list(keys).index("gpu_memory_utilization") + 1
        engine.keys = dict([*list(keys.items())[:place], ("want", want), *list(keys.items())[place:]])
        engine.notes["gpu_memory_utilization"] = "chosen from `want` by each start; `memoria plan` shows it"
        engine.notes["want"] = f"{requests} requests at once" + (
            ", and a share of what is left" if "weight" in want else ""
        )
    return made
