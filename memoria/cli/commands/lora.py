"""`memoria lora`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.parse import quote, urlencode

import click

from memoria.cli.client import find_daemon, parsing, request
from memoria.cli.options import Options, command, common_options, complete_engine
from memoria.errors import ExitCode
from memoria.logs import printable

PATIENCE = 330.0  # seconds; the daemon gives the engine 300

engine_argument = click.argument("engine", shell_complete=complete_engine)


@click.group()
@common_options
def lora() -> None:
    """Load and unload LoRA adapters of a running engine.

    The engine must allow it: `args: {enable-lora: true}`, `env: {VLLM_ALLOW_RUNTIME_LORA_UPDATING: "1"}`. An
    adapter that is always wanted belongs into the file, under `lora-modules`: a restart forgets the others.

    \b
    Example:  memoria lora load generation sql-lora ./adapters/sql
    """


@command()
@engine_argument
@click.argument("name")
@click.argument("path")
def load(options: Options, engine: str, name: str, path: str) -> int:
    """Load an adapter: from a folder, or by its name on the hub. Clients reach it by NAME.

    \b
    Example:  memoria lora load generation sql-lora ./adapters/sql
    """
    folder = Path(path).expanduser()
    return _change(
        options, engine, "load", name=name, path=str(folder.absolute() if folder.exists() else path)
    )


@command()
@engine_argument
@click.argument("name")
def unload(options: Options, engine: str, name: str) -> int:
    """Unload an adapter.

    \b
    Example:  memoria lora unload generation sql-lora
    """
    return _change(options, engine, "unload", name=name)


lora.add_command(load)
lora.add_command(unload)


def _change(options: Options, engine: str, action: str, **query: str) -> int:
    socket = find_daemon(options.config).admin_socket
    path = f"/engines/{quote(engine, safe='')}/lora/{action}?{urlencode(query)}"
    answer = request(socket, path, "POST", patience=PATIENCE)
    with parsing(socket):
        text = json.dumps(answer) if options.json else f"{engine}  {', '.join(map(str, answer['models']))}"
    sys.stdout.write(f"{printable(text)}\n")
    return ExitCode.OK
