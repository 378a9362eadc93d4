"""Records of past starts: one small file per engine in memoria's state directory."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from memoria.config.model import Config, EngineConfig
from memoria.config.paths import state_dir
from memoria.gpu.device import Device
from memoria.plan.checkpoint import identity
from memoria.plan.outcome import Learned
from memoria.plan.plan import Plan
from memoria.plan.records import Record, fingerprint
from memoria.preflight.outcomes import choice_of
from memoria.vllm.install.facts import VllmInstall

DRIVER = Path("/proc/driver/nvidia/version")

logger = logging.getLogger(__name__)


class Records:
    """A record that cannot be read counts as missing: records only ever make a plan more exact."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def is_empty(self) -> bool:
        return not any(self._folder.glob("*.json"))

    def find(self, engine: str, wanted_fingerprint: str | None) -> Record | None:
        """The record of the last start, if that had exactly these settings."""
        try:
            record = Record.from_json(json.loads(self._path(engine).read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError, RecursionError):
            return None
        return record if record.fingerprint == wanted_fingerprint else None

    def keep(self, engine: str, record: Record) -> None:
        """Replaces the file in one step. A full disk is logged only."""
        path = self._path(engine)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft.write_text(json.dumps(record.to_json(), indent=2) + "\n", encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            logger.warning("%s: its record cannot be written: %s", engine, error)

    def forget(self, engine: str) -> None:
        try:
            self._path(engine).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s: its record cannot be removed: %s", engine, error)

    def _path(self, engine: str) -> Path:
        return self._folder / f"{engine}.json"


def records_dir(config: Config, environ: Mapping[str, str]) -> Path:
    return state_dir(config.path or Path("demo"), environ) / "plan"


def learned(
    config: Config, plan: Plan, install: VllmInstall, environ: Mapping[str, str]
) -> dict[str, Learned]:
    """What earlier starts with exactly these settings measured, by engine."""
    records = Records(records_dir(config, environ))
    if records.is_empty:
        return {}
    found = {
        engine.name: records.find(
            engine.name, fingerprint_now(engine, plan.device(engine.name), install, environ)
        )
        for engine in config.engines
    }
    return {
        name: record.learned if holds(record, {**environ, **config.engine(name).env}) else record.unmeasured
        for name, record in found.items()
        if record is not None
    }


def measured_asleep(
    config: Config, devices: Mapping[int | str, Device], install: VllmInstall, environ: Mapping[str, str]
) -> dict[str, int]:
    """What engines were seen to keep asleep, with exactly these settings."""
    records = Records(records_dir(config, environ))
    found = {
        engine.name: records.find(engine.name, fingerprint_now(engine, devices[engine.gpu], install, environ))
        for engine in config.engines
        if engine.sleep_level
    }
    return {name: record.asleep_bytes for name, record in found.items() if record and record.asleep_bytes}


def holds(record: Record, environ: Mapping[str, str]) -> bool:
    """Whether the next start takes no more memory than the recorded one: with an empty compile cache it takes
    more than one that found its graphs there (vllm/compilation/backends.py)."""
    if record.is_cold is not False:
        return True
    root = environ.get("VLLM_CACHE_ROOT") or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/vllm"
    try:
        return any((Path(root).expanduser() / "torch_compile_cache").iterdir())
    except OSError:
        return False


def fingerprint_now(
    engine: EngineConfig, device: Device, install: VllmInstall, environ: Mapping[str, str]
) -> str | None:
    """None where vLLM or the model's files are not known."""
    try:
        model_identity = identity(engine.model, {**environ, **engine.env}, choice_of(engine.vllm_args))
        software = " ".join((_vllm_identity(install), _torch(install), "" if device.is_host else _driver()))
    except OSError:
        return None
    return None if model_identity is None else fingerprint(engine, device, software, model_identity, environ)


def _torch(install: VllmInstall) -> str:
    """The name of its dist-info folder, which holds the version; empty where there is none."""
    root = install.root
    found = sorted(root.glob("lib/python*/site-packages/torch-*.dist-info")) if root else []
    return found[0].name if found else ""


def _driver() -> str:
    """The version of NVIDIA's kernel module; empty where there is none."""
    try:
        return DRIVER.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return ""


def _vllm_identity(install: VllmInstall) -> str:
    """Its version, else size and time of its executable, which pip writes anew with every version."""
    if install.version is not None:
        return f"{install.version} {install.variant}"
    stat = Path(install.command[0]).stat()
    return f"{install.command[0]} {stat.st_size} {stat.st_mtime_ns}"
