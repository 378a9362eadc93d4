"""Everything that can be known before an engine is spawned, and every reason not to spawn one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

from memoria.config.model import Config
from memoria.errors import ConfigError, MemoriaError, Problem, UnavailableError
from memoria.gpu import read_devices
from memoria.gpu.device import Device, DeviceReader
from memoria.plan.checkpoint import ModelFiles
from memoria.plan.plan import Plan, limit_problems, make_plan
from memoria.preflight.models import look_for_models
from memoria.preflight.mps import mps_errors
from memoria.supervisor.runtime_dir import RuntimeDir
from memoria.vllm.command import reads_uuids
from memoria.vllm.flags import find_problems
from memoria.vllm.install.facts import VllmInstall
from memoria.vllm.install.find import data_home, find
from memoria.vllm.install.options import with_options

Models = tuple[dict[str, ModelFiles], dict[str, Problem]]  # and why the others are not known; by engine
NOT_CERTAIN = "not certain; `memoria plan` shows every term"


@dataclass(frozen=True, slots=True)
class Deployment:
    """What engines are started from: a configuration that passed the preflight, with its plan and its vLLM.
    Every engine of `config` has a fraction."""

    config: Config
    plan: Plan
    install: VllmInstall


@dataclass(frozen=True, slots=True)
class Preflight:
    """`config` has a fraction for every engine, chosen where the file leaves that to the plan, and warns of
    what could not be checked. `plan` is None where the device could not be read, `install` where there is no
    vLLM."""

    config: Config
    install: VllmInstall | None
    plan: Plan | None
    driver: str
    errors: tuple[MemoriaError, ...]

    def raise_for_errors(self) -> None:
        """Raises one error with every problem; its kind, and so its exit code, is that of the first."""
        if self.errors:
            raise type(self.errors[0])(problem for error in self.errors for problem in error.problems)

    def deployment(self) -> Deployment:
        """Raises as `raise_for_errors` does."""
        self.raise_for_errors()
        if self.install is None or self.plan is None:
            raise ValueError("this preflight left the device out")
        return Deployment(self.config, self.plan, self.install)


def preflight(config: Config, reader: DeviceReader | None, environ: Mapping[str, str]) -> Preflight:
    """Checks the plan, vLLM and the models; `reader` None leaves the device out (`check --no-gpu`). What
    this configuration's own daemon holds of the device, if it runs, counts as free."""
    errors: list[MemoriaError] = []
    plan: Plan | None = None
    driver = ""
    install, not_found = _find_vllm(config, environ)
    if install and install.options and (wrong := find_problems(config, install.options)):
        errors.append(ConfigError(wrong))

    @cache  # one look at the hub at most
    def models() -> Models:
        # Half of the planner, and a seventh of what `memoria check` takes where no fraction is left to it.
        from memoria.preflight.outcomes import read_models  # noqa: PLC0415

        return read_models(written, environ)

    written = config
    try:
        if reader is None:
            if problems := limit_problems(config):
                raise ConfigError(problems)
        else:
            driver, devices = _read(reader, config)
            config = _with_fractions(config, devices, models)
            asleep = _asleep(config, devices, install, environ)
            plan = make_plan(config, devices, RuntimeDir(config.runtime_dir).own_pids(), asleep)
            config, plan = _with_models(config, plan, install, environ, models)
            errors += _unreachable_slices(plan, install)
            plan.raise_for_problems()
    except MemoriaError as error:
        errors.append(error)
    errors += mps_errors(config, plan, driver, environ) if reader is not None else ()
    errors += not_found
    looked = look_for_models(config, environ)
    if looked.problems:
        errors.append(ConfigError(looked.problems))
    config = replace(config, warnings=config.warnings + looked.unknown)
    return Preflight(config, install, plan, driver, tuple(errors))


def _find_vllm(
    config: Config, environ: Mapping[str, str]
) -> tuple[VllmInstall | None, tuple[UnavailableError, ...]]:
    try:
        home = data_home(environ)
        return with_options(find(config.vllm, home, config.device), home), ()
    except UnavailableError as error:
        mark = config.where("vllm") if config.vllm != "auto" else None
        where = (f"{mark}  vllm",) if mark else ()
        return None, (UnavailableError(replace(p, where=where + p.where) for p in error.problems),)


def _read(reader: DeviceReader, config: Config) -> tuple[str, dict[int | str, Device]]:
    """Raises `UnavailableError`; or `ConfigError`, with that in it, where the fractions are wrong on any
    device."""
    try:
        return reader.driver(), read_devices(reader, (engine.gpu for engine in config.engines))
    except UnavailableError as error:
        if wrong := limit_problems(config):
            raise ConfigError((*wrong, *error.problems)) from error
        raise


def _unreachable_slices(plan: Plan, install: VllmInstall | None) -> Iterator[UnavailableError]:
    """A MIG slice has no index, and vLLM before 0.24 takes nothing else."""
    if install is None or reads_uuids(install.version):
        return
    for planned in plan.devices:
        if planned.device.uuid.startswith("MIG-"):
            yield UnavailableError(
                f"vLLM {install.version} cannot run on {planned.device.label}, a MIG slice",
                hint="`memoria setup` installs a vLLM that can (0.24 and later)",
            )


def _asleep(
    config: Config,
    devices: Mapping[int | str, Device],
    install: VllmInstall | None,
    environ: Mapping[str, str],
) -> dict[str, int]:
    if install is None or not any(engine.sleep_level for engine in config.engines):
        return {}
    from memoria.preflight.records import measured_asleep  # noqa: PLC0415 (see `preflight`)

    return measured_asleep(config, devices, install, environ)


def _with_fractions(
    config: Config, devices: Mapping[int | str, Device], models: Callable[[], Models]
) -> Config:
    """The configuration with every fraction chosen. Raises `ConfigError` where the wishes cannot be granted.
    The models' files are read only where a wish needs them."""
    if all(engine.gpu_memory_utilization for engine in config.engines):
        return config
    from memoria.plan.wishes import settle  # noqa: PLC0415 (see `preflight`)

    files, unknown = models() if any(e.is_auto for e in config.engines) else ({}, {})
    chosen = settle(config, devices, files, unknown)
    if chosen.problems:
        raise ConfigError(chosen.problems)
    return chosen.config


def _with_models(
    config: Config,
    plan: Plan,
    install: VllmInstall | None,
    environ: Mapping[str, str],
    models: Callable[[], Models],
) -> tuple[Config, Plan]:
    """The plan with what its models certainly make impossible, the configuration with warnings of what they
    likely do. Only the config.json and the headers of the weights are read, on this machine or on the hub; a
    model that is on neither, or is of no known kind, is left to vLLM.

    What is likely is checked again with the figures of earlier starts, where there are any: an estimate must
    not doubt what has worked. Skipped where the budgets will change anyway."""
    if plan.config_problems:
        return config, plan
    from memoria.plan.problems import find_misfits  # noqa: PLC0415 (see `preflight`)
    from memoria.preflight.outcomes import make_outcomes  # noqa: PLC0415
    from memoria.preflight.records import learned  # noqa: PLC0415

    files, unknown = models()
    version = install.version if install else None
    outcomes = make_outcomes(config, plan, files, unknown, vllm=version)
    plan = replace(plan, holdings={name: outcome.holding for name, outcome in outcomes.known.items()})
    found = find_misfits(config, plan, outcomes)
    if found.likely and install is not None and (known := learned(config, plan, install, environ)):
        found = find_misfits(config, plan, make_outcomes(config, plan, files, unknown, known, vllm=version))
    likely = tuple(replace(problem, where=(*problem.where, NOT_CERTAIN)) for problem in found.likely)
    return replace(config, warnings=config.warnings + likely), replace(plan, config_problems=found.certain)
