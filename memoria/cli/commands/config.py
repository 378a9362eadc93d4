"""`memoria config`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from memoria.cli.options import Options, command
from memoria.errors import ExitCode
from memoria.text import aligned


@command()
@click.option("--schema", is_flag=True, help="Print the JSON schema of the file, for editors.")
def config(options: Options, schema: bool) -> int:
    """Show every effective value and its source.

    \b
    Example:  VLLM_GEN_GPU_MEMORY=0.5 memoria config
    """
    if schema:
        from memoria.config.schema import json_schema

        sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
        return ExitCode.OK
    from memoria.config.explain import explain
    from memoria.config.file import find

    settings = explain(find(options.config, os.environ, Path.cwd()), os.environ)
    if options.json:
        rows = {setting.key: {"value": setting.value, "source": setting.source} for setting in settings}
        sys.stdout.write(json.dumps(rows, indent=2, default=str) + "\n")
        return ExitCode.OK
    for line in aligned([(setting.key, str(setting.value), setting.source) for setting in settings]):
        sys.stdout.write(line + "\n")
    return ExitCode.OK
