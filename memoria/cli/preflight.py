"""What `check` and `run` look at before an engine is started: the daemon's preflight, and the keys."""

from __future__ import annotations

import os
from dataclasses import replace

from memoria.config.model import Config
from memoria.errors import ConfigError
from memoria.gpu.device import DeviceReader
from memoria.supervisor.preflight import Preflight, preflight


def look(config: Config, reader: DeviceReader | None) -> Preflight:
    """`reader` None leaves the device out."""
    checked = preflight(config, reader, os.environ)
    for path in (config.access.keys, config.access.admin_keys):
        if path is not None:
            from memoria.proxy.keys import KeyRing

            try:
                KeyRing(path)
            except ConfigError as error:
                checked = replace(checked, errors=(*checked.errors, error))
    return checked
