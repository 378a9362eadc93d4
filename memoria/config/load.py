"""memoria.yaml + environment -> `Config`, or every problem at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from memoria.config import paths
from memoria.config.checks import check_engines, check_front, check_memory
from memoria.config.environment import fill_in_log, pass_on_hub_variables, read_variables
from memoria.config.file import find, read_text, shown
from memoria.config.messages import report_findings, without_wrong
from memoria.config.model import (
    Access,
    Config,
    EngineConfig,
    Filters,
    Guard,
    Hold,
    Limits,
    Logging,
    Restart,
    Timeouts,
    Want,
    default_max_requests,
)
from memoria.config.report import Report
from memoria.config.schema import VLLM_KEYS, Engine, File
from memoria.config.vllm_flags import check_variables, read_pooler, sort_flags
from memoria.config.yaml import Document, parse
from memoria.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration with what it was made from."""

    config: Config
    file: File
    document: Document


class WrongValuesError(ConfigError):
    """`usable` is the configuration without its wrong values, for what else there is to say of it: engines,
    their devices and the fractions that are right are as written."""

    def __init__(self, problems: Iterable[Problem], usable: Config) -> None:
        super().__init__(problems)
        self.usable = usable


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Raises `ConfigError` with all problems. Without a `path` the usual places are searched (`find`)."""
    return read(path or find(None, environ, Path.cwd()), environ).config


def read(path: Path, environ: Mapping[str, str]) -> Loaded:
    report = Report()
    text = read_text(path)
    dotenv = path.with_name(".env")
    variables = read_variables(environ, dotenv, shown(dotenv), report)
    document = parse(text, shown(path), variables, report)
    engines = document.data.get("engines")
    for name, engine in engines.items() if isinstance(engines, dict) else ():
        if isinstance(engine, dict):
            sort_flags(engine, ("engines", name), report)
            check_variables(engine, ("engines", name), report)
            read_pooler(engine, ("engines", name), report)
            pass_on_hub_variables(engine, ("engines", name), variables, report)
    fill_in_log(document.data, variables, report)
    check_engines(document, path.absolute().parent, environ, report)
    runtime_dir, _ = paths.runtime_dir(_text(document, "runtime_dir"), path, environ)
    if len(os.fsencode(runtime_dir)) > paths.SOCKET_PATH_MAX - paths.SOCKET_NAME_MAX - 1:
        report.error(
            f"the runtime folder's path is too long for Unix sockets: {runtime_dir}",
            ("runtime_dir",),
            hint="name a shorter one with `runtime_dir` or MEMORIA_RUNTIME_DIR",
        )
    try:
        file = File.model_validate(document.data)
    except ValidationError as error:
        wrong = report_findings(error, document, report)
        check_memory(document, report)
        usable = without_wrong(document, error)
        if usable is not None:
            check_front(usable, report, wrong)
        try:
            report.raise_errors()
        except ConfigError as found:
            if usable is None or wrong & {"gpu", "gpu_limit", "device", "[key]"}:
                raise
            raise WrongValuesError(found.problems, _build(usable, path, environ, report)) from error
        raise
    check_memory(document, report)
    check_front(file, report)
    report.raise_errors()
    return Loaded(_build(file, path, environ, report), file, document)


def _text(document: Document, *path: str) -> str | None:
    node = document.get(*path)
    return str(node) if isinstance(node, str) else None


def _build(file: File, path: Path, environ: Mapping[str, str], report: Report) -> Config:
    folder = path.absolute().parent
    engines = tuple(
        _build_engine(name, engine, file, folder, environ) for name, engine in file.engines.items()
    )
    for engine in engines:
        if engine.vllm_args.get("trust_remote_code"):
            report.warning(
                f"{engine.name} runs code out of the repository of {engine.model}",
                ("engines", engine.name, "trust_remote_code"),
                hint="read that code first; most models need none",
            )
    return Config(
        path=path.absolute(),
        listen=file.listen,
        device=file.device,
        gpu_limit=file.gpu_limit,
        vllm=str(paths.expand(file.vllm, folder, environ)) if "/" in file.vllm else file.vllm,
        timeouts=Timeouts(**file.timeouts.model_dump()),
        restart=Restart(**file.restart.model_dump()),
        limits=Limits(body_bytes=file.limits.body_mb << 20),
        logging=Logging(
            level=file.log.level,
            format=file.log.format,
            requests=file.log.requests,
            dir=paths.log_dir(file.log.dir, path, environ)[0],
            max_bytes=file.log.max_mb << 20,
            keep=file.log.keep,
        ),
        runtime_dir=paths.runtime_dir(file.runtime_dir, path, environ)[0],
        engines=engines,
        access=Access(
            keys=None if file.keys is None else paths.expand(file.keys, folder, environ),
            admin_keys=None if file.admin_keys is None else paths.expand(file.admin_keys, folder, environ),
            allowed_hosts=tuple(file.allowed_hosts or ()),
            origins=tuple(file.cors.origins or ()),
        ),
        hold=Hold(**file.hold.model_dump()),
        guard=_build_guard(file),
        warnings=report.warnings,
        marks=report.marks,
    )


def _build_engine(
    name: str, engine: Engine, file: File, folder: Path, environ: Mapping[str, str]
) -> EngineConfig:
    local = paths.is_local_model(engine.model)
    model = str(paths.expand(engine.model, folder, environ)) if local else engine.model
    want = engine.want
    flags: dict[str, Any] = {} if want.context is None else {"max_model_len": want.context}
    flags |= {key: value for key in VLLM_KEYS if (value := getattr(engine, key)) is not None}
    return EngineConfig(
        name=name,
        model=model,
        runner=engine.runner,
        served_model_name=tuple(
            dict.fromkeys(engine.served_model_name or [Path(model).name if local else model])
        ),
        gpu=file.gpu if engine.gpu is None else engine.gpu,
        gpu_memory_utilization=Decimal(0)
        if engine.gpu_memory_utilization in (None, "auto")
        else Decimal(engine.gpu_memory_utilization or 0),
        gpu_memory=engine.gpu_memory,
        want=None if want == type(want)() else Want(**want.model_dump()),
        learn=engine.learn,
        port=engine.port,
        transport=engine.transport,
        vllm_args=flags | engine.args,
        env=engine.env,
        max_requests=engine.max_requests or default_max_requests(engine.max_num_seqs),
        standby=engine.standby,
        filters=Filters(tuple(engine.filters.strip or ()), engine.filters.set),
    )


def _build_guard(file: File) -> Guard | None:
    guard = file.guard
    if guard.protect is None or guard.inter_token_ms is None:
        return None
    return Guard(guard.protect, guard.inter_token_ms)
