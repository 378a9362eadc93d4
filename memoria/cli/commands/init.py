"""`memoria init`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memoria.cli.commands.plan import as_data
from memoria.cli.options import Options, command
from memoria.cli.screens.check import shown
from memoria.cli.screens.layout import render_problems
from memoria.cli.screens.plan import render_choices, render_outcomes
from memoria.errors import ConfigError, ExitCode, NoGpuError, Problem, UnavailableError, UsageError
from memoria.gpu import open_reader, read_devices
from memoria.gpu.catalogue import named_device

if TYPE_CHECKING:
    from memoria.config.model import Config
    from memoria.gpu.device import Device
    from memoria.init.choose import Chosen
    from memoria.init.draft import Draft, Published
    from memoria.vllm.install.facts import VllmInstall

LOOPBACK = "127.0.0.1"


@command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="A compose file, or a command line in quotes: `vllm serve ...`, `docker run ...`.",
)
@click.option("--gpu", metavar="GPU", help="For a GPU that is not here: `24GiB`, `RTX 4090`.")
def init(options: Options, models: tuple[str, ...], sources: tuple[str, ...], gpu: str | None) -> int:
    """Write a memoria.yaml for these models, or for what runs vLLM today. Prints its plan, and what it had to
    leave out. An existing file is never overwritten.

    \b
    Example:  memoria init Qwen/Qwen3-Embedding-0.6B Qwen/Qwen3-8B-FP8
    Example:  memoria init --from compose.yml
    Example:  memoria init --from 'vllm serve Qwen/Qwen3-8B --max-model-len 8192'
    """
    path = Path.cwd() / (options.config or os.environ.get("MEMORIA_CONFIG") or "memoria.yaml")
    _check_place(path)
    if not models and not sources:
        raise UsageError("name a model, or what to translate", hint="memoria init --help")
    from memoria.init.choose import complete

    machine = _Machine(gpu)
    draft = _draft(models, sources, path, machine)
    install = machine.install
    chosen = complete(
        draft,
        path,
        os.environ,
        machine.devices,
        version=install.version if install else None,
        beside_others=not sources and gpu is None,
    )
    if install is not None and install.options is not None:
        from memoria.vllm.flags import find_problems

        if wrong := find_problems(chosen.config, install.options):
            raise ConfigError(replace(problem, where=problem.where[-1:]) for problem in wrong)
    _write(path, chosen.text)
    if options.json:
        data = {
            "file": str(path),
            "device": chosen.config.device,
            "left_out": [asdict(one) for one in draft.left_out],
            "plan": as_data(chosen.plan, chosen.outcomes, ()),
        }
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
        return ExitCode.OK
    _show(options, chosen, draft, has_vllm=install is not None)
    return ExitCode.OK


class _Machine:
    """What the file is for: the GPUs that are here, one by its name, or the host where there is none."""

    def __init__(self, gpu: str | None) -> None:
        from memoria.vllm.install.find import data_home, find
        from memoria.vllm.install.options import with_options

        self.planned = named_device(gpu) if gpu is not None else None
        self.reader = open_reader("cuda")
        self.is_cpu = False
        if gpu is None:
            try:
                self.reader.snapshot(0)
            except NoGpuError:
                self.reader, self.is_cpu = open_reader("cpu"), True
        home = data_home(os.environ)
        self.install: VllmInstall | None = None
        with suppress(UnavailableError):
            self.install = with_options(find("auto", home, "cpu" if self.is_cpu else "cuda"), home)

    @property
    def name(self) -> str:
        device = self.planned or self.reader.snapshot(0)
        return f"{device.usable_bytes / 2**30:.0f} GiB of memory" if self.is_cpu else device.name

    def devices(self, config: Config) -> Mapping[int | str, Device]:
        which = dict.fromkeys(engine.gpu for engine in config.engines)
        if self.planned is None:
            return read_devices(self.reader, which)
        return {
            one: replace(self.planned, index=number, uuid=f"planned-{number}")
            for number, one in enumerate(which)
        }


def _check_place(path: Path) -> None:
    """Raises `UsageError`."""
    if path.exists() or path.is_symlink():
        raise UsageError(f"{shown(path)} is there already", hint="name another file with --config")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {shown(path.parent)}", hint="make it first")


def _draft(models: tuple[str, ...], sources: tuple[str, ...], path: Path, machine: _Machine) -> Draft:
    from memoria.config.paths import is_local_model
    from memoria.init.draft import Draft, DraftEngine
    from memoria.init.serve_line import Translator
    from memoria.init.sources import read_source, settle_names

    translator = Translator(os.environ, machine.install.options if machine.install else None)
    engines: list[DraftEngine] = []
    for model in models:
        folder = Path.cwd() / Path(model).expanduser()
        local = is_local_model(model) or folder.is_dir()
        engines.append(DraftEngine("", str(folder.absolute()) if local else model))
    router: Published | None = None
    for source in sources:
        found, at = read_source(source, Path.cwd(), os.environ, translator)
        engines += found
        router = router or at
    draft = Draft(engines, translator.left_out)
    draft.title = f"Written by `memoria init` for {machine.name}."
    settle_names(draft, path.parent)
    _settle_addresses(draft, router)
    if machine.is_cpu:
        draft.top["device"] = ("cpu", "no GPU was found; `cuda` for one")
        for engine in engines:
            engine.keys.pop("gpu", None)
    return draft


def _settle_addresses(draft: Draft, router: Published | None) -> None:
    """Clients keep their addresses, where they can. Beyond this machine, memoria wants keys first."""
    from memoria.init.draft import LeftOut

    engines = draft.engines
    alone = engines[0].published if len(engines) == 1 and router is None else None
    main = router or alone
    port = main.port if main else 8200
    draft.top["listen"] = (f"{LOOPBACK}:{port}", "all engines; beyond this machine it needs `keys`")
    taken = {port}
    for engine in engines:
        found = engine.published
        if found is not None and found.port not in taken:
            engine.keys["port"] = found.port
            engine.notes["port"] = "this engine alone"
            taken.add(found.port)
    addresses = (router, *(engine.published for engine in engines))
    wide = [one for one in addresses if one is not None and one.host != LOOPBACK]
    if wide:
        ports = ", ".join(dict.fromkeys(str(one.port) for one in wide))
        why = f"memoria listens on {LOOPBACK} until there are `keys: FILE`, or `open_to_network: true`"
        draft.left_out.append(LeftOut("", f"ports open to other machines ({ports})", why))


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _check_place(path)
    except OSError as error:
        raise ConfigError(Problem(f"cannot write {shown(path)}: {error.strerror}")) from error


def _show(options: Options, chosen: Chosen, draft: Draft, *, has_vllm: bool) -> None:
    lines: list[str] = []
    if draft.left_out:
        lines += ["left out:", *(f"  {one}" for one in draft.left_out), ""]
    config = chosen.config
    screen = render_outcomes(config, chosen.plan, chosen.outcomes, options.width, options.colored, ok=True)
    lines += [screen, ""]
    if chosen.choices:
        lines += [*render_choices(chosen.choices, written=False), ""]
    sys.stdout.write("\n".join(lines) + "\n")
    if held := chosen.plan.memory_problems:
        sys.stdout.flush()
        sys.stderr.write(render_problems(held, options.colored, "warning") + "\n\n")
    name = shown(config.path) if config.path else ""
    setup = "" if has_vllm else f"memoria setup{' --cpu' if config.device == 'cpu' else ''} && "
    named = "" if name == "memoria.yaml" else f" -c {name}"
    sys.stdout.write(f"{name} is written; next: {setup}memoria check{named} && memoria run{named}\n")
