"""`memoria config`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from memoria.config.explain import explain
from memoria.config.file import find
from memoria.errors import ExitCode
from memoria.text import aligned


def show_config(flag: Path | None, *, as_json: bool, width: int) -> int:
    """Prints every effective value with its source."""
    settings = explain(find(flag, os.environ, Path.cwd()), os.environ)
    if as_json:
        rows = {setting.key: {"value": setting.value, "source": setting.source} for setting in settings}
        sys.stdout.write(json.dumps(rows, indent=2, default=str) + "\n")
        return ExitCode.OK
    for line in aligned([(setting.key, str(setting.value), setting.source) for setting in settings]):
        sys.stdout.write(line + "\n")
    return ExitCode.OK


def show_schema() -> int:
    """What configs/memoria.schema.json holds, for those who have no source tree."""
    from memoria.config.schema import json_schema

    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
    return ExitCode.OK
