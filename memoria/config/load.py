"""memoria.yaml + environment -> `Config`, or every problem at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from memoria.config import paths
from memoria.config.checks import check_engines, check_front, check_memory
from memoria.config.environment import fill_in_log, pass_on_hub_variables, read_variables
from memoria.config.file import find, read_text, shown
from memoria.config.flag_paths import resolve_paths
from memoria.config.messages import report_findings, without_wrong
from memoria.config.model import (
    A_START,
    LONGEST_HOLD,
    Access,
    CommonKeys,
    Config,
    EngineConfig,
    EngineKeys,
    Hold,
    TlsFiles,
    default_max_requests,
)
from memoria.config.report import Report
from memoria.config.schema import FILE, VLLM_KEYS, File, Tls
from memoria.config.vllm_flags import check_variables, read_pooler, sort_flags
from memoria.config.yaml import Document, parse
from memoria.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration with its sources."""

    config: Config
    file: File
    document: Document


class WrongValuesError(ConfigError):
    """`usable` is the configuration without its wrong values, for further checks: engines, their devices and
    the fractions that are right are as written."""

    def __init__(self, problems: Iterable[Problem], usable: Config) -> None:
        super().__init__(problems)
        self.usable = usable


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Without a `path` the usual places are searched (`find`). Raises `ConfigError` with all problems."""
    return read(path or find(None, environ, Path.cwd()), environ).config


def read(path: Path, environ: Mapping[str, str], text: str | None = None) -> Loaded:
    """Raises as `load` does. `text` is what the file will hold, before there is one."""
    report = Report()
    text = read_text(path) if text is None else text
    dotenv = path.with_name(".env")
    variables = read_variables(environ, dotenv, shown(dotenv), report)
    document = parse(text, shown(path), variables, report)
    for name, engine in document.engines():
        sort_flags(engine, name, report)
        check_variables(engine, name, report)
        read_pooler(engine, name, report)
        resolve_paths(engine, name, path.absolute().parent, environ, report)
        pass_on_hub_variables(engine, name, variables, report)
    fill_in_log(document.data, variables, report)
    check_engines(document, path.absolute().parent, environ, report)
    runtime_dir, _ = paths.runtime_dir(document.text("runtime_dir"), path, environ)
    if len(os.fsencode(runtime_dir)) > paths.SOCKET_PATH_MAX - paths.SOCKET_NAME_MAX - 1:
        report.error(
            f"the runtime folder's path is too long for Unix sockets: {runtime_dir}",
            ("runtime_dir",),
            hint="name a shorter one with `runtime_dir` or MEMORIA_RUNTIME_DIR",
        )
    try:
        file = FILE.validate_python(document.data)
    except ValidationError as error:
        raise _wrong_values(error, document, path, environ, report) from error
    check_memory(document, report)
    check_front(file, report)
    report.raise_errors()
    return Loaded(_build(file, document, path, environ, report), file, document)


def _wrong_values(
    error: ValidationError, document: Document, path: Path, environ: Mapping[str, str], report: Report
) -> ConfigError:
    wrong = report_findings(error, document, report)
    check_memory(document, report)
    usable = without_wrong(document, error)
    if usable is not None:
        check_front(usable[0], report, wrong)
    if usable is None or wrong & {"gpu", "gpu_limit", "device", "[key]"}:
        return ConfigError(report.errors)
    return WrongValuesError(report.errors, _build(*usable, path, environ, report))


def _shared(keys: Any, section: type) -> dict[str, Any]:
    return {field.name: getattr(keys, field.name) for field in fields(section)}


def _build(file: File, document: Document, path: Path, environ: Mapping[str, str], report: Report) -> Config:
    """The file's values, with what they leave to their surroundings: paths, and defaults from other keys."""
    folder = path.absolute().parent
    engines = tuple(_build_engine(name, file, document, folder, environ) for name in file.engines)
    for engine in engines:
        if engine.vllm_args.get("trust_remote_code"):
            report.warning(
                f"{engine.name} runs code out of the repository of {engine.model}",
                ("engines", engine.name, "trust_remote_code"),
                hint="read that code first; most models need none",
            )
    computed = {
        "hold": _hold(file, document),
        "vllm": str(paths.expand(file.vllm, folder, environ)) if "/" in file.vllm else file.vllm,
        "runtime_dir": paths.runtime_dir(document.text("runtime_dir"), path, environ)[0],
        "logging": replace(file.logging, dir=paths.log_dir(document.text("log", "dir"), path, environ)[0]),
    }
    return Config(
        **_shared(file, CommonKeys) | computed,
        path=path.absolute(),
        engines=engines,
        access=Access(
            keys=None if file.keys is None else paths.expand(file.keys, folder, environ),
            admin_keys=None if file.admin_keys is None else paths.expand(file.admin_keys, folder, environ),
            allowed_hosts=file.allowed_hosts,
            origins=file.cors.origins,
        ),
        tls_files=_tls_files(file.tls, folder, environ),
        warnings=report.warnings,
        marks=report.marks,
    )


def _tls_files(tls: Tls, folder: Path, environ: Mapping[str, str]) -> TlsFiles | None:
    if tls.cert is None:
        return None
    key = None if tls.private_key is None else paths.expand(tls.private_key, folder, environ)
    return TlsFiles(paths.expand(tls.cert, folder, environ), key)


def _hold(file: File, document: Document) -> Hold:
    """A request for an engine on demand may have to wait for a turn and a start of each of them."""
    away = sum(engine.on_demand for engine in file.engines.values())
    if not away or document.get("hold", "seconds") is not None:
        return file.hold
    return replace(
        file.hold, seconds=min(LONGEST_HOLD, file.hold.seconds + away * (file.swap.turn + A_START))
    )


def _build_engine(
    name: str, file: File, document: Document, folder: Path, environ: Mapping[str, str]
) -> EngineConfig:
    engine = file.engines[name]
    local = paths.is_local_model(engine.model)
    model = str(paths.expand(engine.model, folder, environ)) if local else engine.model
    computed: dict[str, Any] = {
        "model": model,
        "served_model_name": tuple(
            dict.fromkeys(engine.served_model_name or [Path(model).name if local else model])
        ),
    }
    if document.get("engines", name, "gpu") is None:
        computed["gpu"] = file.gpu
    if document.get("engines", name, "max_requests") is None:
        computed["max_requests"] = default_max_requests(engine.max_num_seqs)
    flags: dict[str, Any] = {}
    if engine.want and engine.want.context:
        flags["max_model_len"] = engine.want.context
    flags |= {key: value for key in VLLM_KEYS if (value := getattr(engine, key)) is not None}
    return EngineConfig(**_shared(engine, EngineKeys) | computed, name=name, vllm_args=flags | engine.args)
