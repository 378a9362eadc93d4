"""Every command, its flags and an example; the work is in the modules they call, imported when needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from memoria import __version__
from memoria.cli.commands.operate import OPERATIONS
from memoria.cli.options import Globals, complete_engine, pass_globals, with_globals
from memoria.errors import ExitCode


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@with_globals
@click.version_option(__version__, message="memoria %(version)s")
def cli() -> None:
    """Several vLLM models on one GPU, in one command, without Docker.

    \b
    With a GPU:     memoria setup && memoria run
    Without one:    memoria demo
    """


@cli.command()
@with_globals
@click.option("--cpu", "variant", flag_value="cpu", help="The CPU build.")
@click.option("--cuda", "variant", flag_value="cuda", help="The CUDA build.")
@click.option("--vllm", "version", metavar="VERSION", help="Another vLLM version than this release's.")
@pass_globals
def setup(globals_: Globals, variant: str | None, version: str | None) -> int:
    """Make or update vLLM's own environment.

    The CUDA build where a GPU is found, the CPU build elsewhere. Can be repeated at any time.

    \b
    Example:  memoria setup --cpu
    """
    from memoria.cli.commands.setup import run_setup

    return run_setup(variant, version, color=globals_.colored)


@cli.command()
@with_globals
@click.option("--no-gpu", is_flag=True, help="Do not read the GPU.")
@pass_globals
def check(globals_: Globals, no_gpu: bool) -> int:
    """Validate the file, read the GPU, print the plan. Starts nothing.

    \b
    Example:  memoria check -c configs/one-gpu-two-models.yaml
    """
    from memoria.cli.commands.check import run_check

    return run_check(
        globals_.load(), no_gpu=no_gpu, as_json=globals_.json, width=globals_.width, color=globals_.colored
    )


@cli.command(short_help="Say what each fraction buys, before anything starts.")
@with_globals
@click.option("--gpu", metavar="GPU", help="Plan for a machine that is not here: `24GiB`, `RTX 4090`.")
@click.option("--hub", is_flag=True, help="Ask the Hugging Face hub of models that are not in the cache.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the plan as a page.")
@click.option("--write", is_flag=True, help="Put the fractions chosen for `auto` into the file.")
@pass_globals
def plan(globals_: Globals, gpu: str | None, hub: bool, html: Path | None, write: bool) -> int:
    """Say what each fraction buys: weights, KV cache, requests at once. Reads files alone.

    \b
    Example:  memoria plan --gpu "RTX 4090"
    """
    from memoria.cli.commands.plan import run_plan

    return run_plan(
        globals_.load(),
        gpu=gpu,
        write=write,
        ask_hub=hub,
        html=html,
        as_json=globals_.json,
        width=globals_.width,
        color=globals_.colored,
    )


@cli.command()
@with_globals
@click.option("--take-over", is_flag=True, help="Replace the daemon that runs: no connection is refused.")
@pass_globals
def run(globals_: Globals, take_over: bool) -> int:
    """Run the daemon in the foreground: all engines, and the proxy. Ctrl-C drains, a second one kills.

    \b
    Example:  memoria run -c memoria.yaml
    """
    from memoria.cli.commands.run import run_daemon

    return run_daemon(globals_.load(), verbose=globals_.verbose, color=globals_.colored, take_over=take_over)


@cli.command()
@with_globals
@click.option("--names", metavar="ENGINE=MODEL,...", help="Serve them under other model names.")
@pass_globals
def demo(globals_: Globals, names: str | None) -> int:
    """Run two tiny real models: no GPU, no download of weights. Their text is noise.

    \b
    Example:  memoria demo --names embedding=my-embedder,generation=my-writer
    """
    from memoria.cli.commands.demo import run_demo

    return run_demo(names, verbose=globals_.verbose, color=globals_.colored)


@cli.command()
@with_globals
@click.option("--schema", is_flag=True, help="Print the file's JSON schema, for editors.")
@pass_globals
def config(globals_: Globals, schema: bool) -> int:
    """Show the effective values, each with its source.

    \b
    Example:  VLLM_GEN_GPU_MEMORY=0.5 memoria config
    """
    from memoria.cli.commands.config import show_config, show_schema

    if schema:
        return show_schema()
    return show_config(globals_.config, as_json=globals_.json, width=globals_.width)


@cli.command()
@with_globals
@click.argument("engine", required=False, shell_complete=complete_engine)
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    help="Lines of history  [default: 100, or all --since]",
)
@click.option("-f", "--follow", is_flag=True, help="Then what is written from now on.")
@click.option("--since", metavar="WHEN", help="Lines since then: 10m, 2h, 1d, or a time, as 14:30.")
@pass_globals
def logs(globals_: Globals, engine: str | None, lines: int | None, follow: bool, since: str | None) -> int:
    """Show the engines' logs, of one or of all. They are files: this works without a daemon, too.

    \b
    Example:  memoria logs generation -f --since 10m
    """
    from memoria.cli.commands.logs import show_logs

    return show_logs(
        globals_.config,
        engine,
        lines=lines,
        follow=follow,
        since=since,
        as_json=globals_.json,
        color=globals_.colored,
    )


@cli.command()
@with_globals
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@pass_globals
def reload(globals_: Globals, dry_run: bool) -> int:
    """Have the running daemon read its file again. Only engines whose own settings changed restart, one after
    the other; an invalid file changes nothing.

    \b
    Example:  memoria reload --dry-run
    """
    from memoria.cli.commands.reload import ask_for_reload

    return ask_for_reload(globals_.config, dry_run=dry_run, as_json=globals_.json)


@cli.command()
@with_globals
@click.option("-w", "--watch", is_flag=True, help="Again with every change, until Ctrl-C.")
@pass_globals
def status(globals_: Globals, watch: bool) -> int:
    """Ask the running daemon how its engines do. Exit code 0: all ready, 1: degraded, 3: not running.

    \b
    Example:  memoria status --watch
    """
    from memoria.cli.commands.status import show_status, watch_status

    if watch:
        return watch_status(globals_.config, as_json=globals_.json, color=globals_.colored)

    healthy = show_status(
        globals_.config, as_json=globals_.json, width=globals_.line_width, color=globals_.colored
    )
    return ExitCode.OK if healthy else ExitCode.FAILURE


@cli.command(short_help="Load the running daemon, each engine alone and then all.")
@with_globals
@click.argument("engines", nargs=-1, metavar="[ENGINE]...", shell_complete=complete_engine)
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(1), help="Of each phase.")
@click.option("--streams", default=16, show_default=True, type=click.IntRange(1), help="Texts made at once.")
@click.option("--prompt", default=128, show_default=True, type=click.IntRange(1), help="Words of a prompt.")
@click.option("--tokens", default=128, show_default=True, type=click.IntRange(1), help="Tokens of an answer.")
@click.option("--clients", default=16, show_default=True, type=click.IntRange(1), help="Embedding at once.")
@click.option("--texts", default=8, show_default=True, type=click.IntRange(1), help="Texts of a request.")
@click.option("--words", default=64, show_default=True, type=click.IntRange(1), help="Words of a text.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture (SVG).")
@pass_globals
def bench(globals_: Globals, /, engines: tuple[str, ...], plot: Path | None, **load: Any) -> int:
    """Load the running daemon: each ready engine alone, then all together.

    Texts or tokens per second, and how much of that is KEPT beside the others; time to an answer, to the
    FIRST token and to each NEXT one. Name engines to load only these. Exit code 1: requests failed. An API
    key is taken from MEMORIA_KEY: as an argument, other users of the machine would see it.

    \b
    Example:  memoria bench --seconds 60 --plot bench.svg
    """
    from memoria.bench.clients import Load
    from memoria.cli.commands.bench import run_bench

    return run_bench(
        globals_.config,
        engines,
        Load(
            seconds=load["seconds"],
            warm_up=min(3.0, load["seconds"] / 4),
            streams=load["streams"],
            prompt_words=load["prompt"],
            max_tokens=load["tokens"],
            embedders=load["clients"],
            texts=load["texts"],
            text_words=load["words"],
        ),
        key=os.environ.get("MEMORIA_KEY") or None,
        plot=plot,
        as_json=globals_.json,
        color=globals_.colored,
    )


for operation in OPERATIONS:
    cli.add_command(operation)
