"""`memoria demo`: installs vLLM's CPU build if it is missing, then runs two tiny real models."""

from __future__ import annotations

import os
import sys

import click

from memoria.cli.options import Options, command
from memoria.demo import config_path, names_to_environ


@command()
@click.option("--names", metavar="ENGINE=MODEL,...", help="Serve the models under other names.")
def demo(options: Options, names: str | None) -> int:
    """Run two tiny real models on the CPU, without downloading weights. Their text is noise.

    \b
    Example:  memoria demo --names embedding=my-embedder,generation=my-writer
    """
    from memoria.cli.commands.run import run_daemon
    from memoria.cli.commands.setup import make_environment
    from memoria.config.load import load
    from memoria.errors import UnavailableError
    from memoria.vllm.install.find import data_home, find

    if names is not None:
        os.environ.update(names_to_environ(names))  # a reload reads them again
    config = load(config_path(), os.environ)
    try:
        find(config.vllm, data_home(os.environ), config.device)
    except UnavailableError:
        sys.stdout.write("vLLM for the CPU is not installed yet: memoria setup --cpu\n")
        make_environment("cpu", None, color=options.colored)
    sys.stdout.write(
        "Two real vLLM engines with tiny untrained models on the CPU: the text is noise, the rest is real.\n"
    )
    for line in _examples(config.listen.port, [engine.served_model_name[0] for engine in config.engines]):
        sys.stdout.write(line + "\n")
    sys.stdout.flush()
    return run_daemon(config, options)


def _examples(port: int, models: list[str]) -> list[str]:
    base = f"curl http://127.0.0.1:{port}/v1"
    embedding, generation = models
    return [
        "When both are ready, try in another terminal:",
        f'  {base}/embeddings --json \'{{"model":"{embedding}","input":"hi"}}\'',
        f'  {base}/completions --json \'{{"model":"{generation}","prompt":"hi"}}\'',
        "  memoria status",
        "",
    ]
