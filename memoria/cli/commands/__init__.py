"""The commands of `memoria`: each in a module of its own, imported when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from memoria import __version__
from memoria.cli.options import common_options

# name: (module, what `memoria --help` says)
COMMANDS: Mapping[str, tuple[str, str]] = {
    "bench": ("bench", "Put a load on the running daemon and measure it."),
    "check": ("check", "Validate the configuration and print the plan."),
    "completion": ("completion", "Print a shell completion script."),
    "config": ("config", "Show the effective configuration and its sources."),
    "demo": ("demo", "Run two tiny real models without a GPU."),
    "init": ("init", "Write a memoria.yaml, also from a compose file."),
    "logs": ("logs", "Show engine logs."),
    "lora": ("lora", "Load and unload LoRA adapters."),
    "plan": ("plan", "Show what each memory fraction buys."),
    "pull": ("pull", "Fetch the engines' models from the hub."),
    "reload": ("reload", "Reload the configuration of the running daemon."),
    "requests": ("requests", "Show the latest requests."),
    "restart": ("control", "Restart an engine."),
    "run": ("run", "Run the daemon in the foreground."),
    "service": ("service", "Run memoria as a systemd service."),
    "setup": ("setup", "Install or update vLLM in its own environment."),
    "sleep": ("control", "Let an engine on demand give its memory back."),
    "start": ("control", "Start an engine and wait until it is ready."),
    "status": ("status", "Show engine status."),
    "stop": ("control", "Stop an engine."),
    "top": ("status", "Watch memory, rates, latency and events."),
    "wake": ("control", "Wake an engine on demand."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"{__name__}.{COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table: importing every command takes too long."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """From the table, too."""
        found = [
            CompletionItem(name, help=summary)
            for name, (_, summary) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@common_options
@click.version_option(__version__, message="memoria %(version)s")
def cli() -> None:
    """Several vLLM models on one GPU, in one command, without Docker.

    \b
    With a GPU:     memoria setup && memoria run
    Without one:    memoria demo
    """
