"""What `check` and `run` look at before an engine is started: the daemon's preflight, and the keys."""

from __future__ import annotations

import os
from dataclasses import replace

from memoria.config.model import Config
from memoria.engine.log.file import LogFile
from memoria.errors import ConfigError, UnavailableError
from memoria.gpu.device import DeviceReader
from memoria.preflight.preflight import Preflight, preflight
from memoria.supervisor.runtime_dir import RuntimeDir


def look_at_places(config: Config, checked: Preflight) -> Preflight:
    """Adds what else `run` would find out: ports that are taken, logs that cannot be written, a runtime
    directory that cannot be used. While this
    configuration's own daemon runs, the ports are its own."""
    problems = [
        problem
        for engine in config.engines
        if (problem := LogFile.of(config.logging, engine.name).problem()) is not None
    ]
    runtime = RuntimeDir(config.runtime_dir)
    if not runtime.is_locked():
        if (problem := runtime.problem()) is not None:
            problems.append(problem)
        from memoria.daemon.listeners import unavailable

        problems += unavailable(config)
    if not problems:
        return checked
    return replace(checked, errors=(*checked.errors, UnavailableError(problems)))


def look(config: Config, reader: DeviceReader | None) -> Preflight:
    """`reader` None leaves the device out."""
    checked = preflight(config, reader, os.environ)
    for path in (config.access.keys, config.access.admin_keys):
        if path is not None:
            from memoria.proxy.access.keys import KeyRing

            try:
                KeyRing(path)
            except ConfigError as error:
                checked = replace(checked, errors=(*checked.errors, error))
    return checked
