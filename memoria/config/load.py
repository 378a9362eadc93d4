"""memoria.yaml + environment -> `Config`, or every problem at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from stat import S_ISREG
from typing import Any

from pydantic import ValidationError

from memoria.config import paths
from memoria.config.checks import check_engines, check_front, check_memory
from memoria.config.environment import SAVE_AS_UTF8, fill_in_log, pass_on_hub_variables, read_variables
from memoria.config.flags import check_variables, read_pooler, sort_flags
from memoria.config.marks import Document, parse
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
from memoria.config.wording import report_findings, without_wrong
from memoria.errors import ConfigError, Problem

SYSTEM_FILE = Path("/etc/memoria/memoria.yaml")


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


def find(flag: Path | None, environ: Mapping[str, str], cwd: Path) -> Path:
    """The file to use: `flag`, MEMORIA_CONFIG, `cwd`/memoria.yaml, /etc/memoria/memoria.yaml.

    The first two are taken at their word. Raises `ConfigError` when nothing is there."""
    if flag is not None:
        return cwd / flag
    if named := environ.get("MEMORIA_CONFIG"):
        return cwd / named
    absent = {}
    for candidate in (cwd / "memoria.yaml", SYSTEM_FILE):
        reason = _absence(candidate)
        if reason is None:
            return candidate
        absent[candidate] = reason
    raise ConfigError(
        Problem(
            "no configuration file",
            tuple(f"{shown(candidate)}  {reason}" for candidate, reason in absent.items()),
            "name one with --config or MEMORIA_CONFIG; `memoria demo` needs none",
        )
    )


def _absence(path: Path) -> str | None:
    """Why there is no file at `path`; None where there is one."""
    try:
        return None if S_ISREG(path.stat().st_mode) else "not a file"
    except (FileNotFoundError, NotADirectoryError):
        return "not there"
    except OSError as error:
        return (error.strerror or "not readable").lower()


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Raises `ConfigError` with all problems. Without a `path` the usual places are searched (`find`)."""
    return read(path or find(None, environ, Path.cwd()), environ).config


def read(path: Path, environ: Mapping[str, str]) -> Loaded:
    report = Report()
    text = _read_text(path)
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


def shown(path: Path) -> str:
    """A path as a person in this folder would write it."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def _read_text(path: Path) -> str:
    name = shown(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        hint = "name another with --config or MEMORIA_CONFIG"
        raise ConfigError(Problem(f"no configuration file at {name}", hint=hint)) from error
    except IsADirectoryError as error:
        hint = f"name the file in it: {name}/memoria.yaml"
        raise ConfigError(Problem(f"{name} is a folder", hint=hint)) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(Problem("this is not UTF-8 text", (f"{name}:{line}",), SAVE_AS_UTF8)) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        hint = "let memoria's user read it, or name another with --config or MEMORIA_CONFIG"
        raise ConfigError(Problem(f"cannot read {name}: {reason}", hint=hint)) from error


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
