"""The commands that steer or watch a running daemon, and those that set memoria up on a machine."""

from __future__ import annotations

import click

from memoria.cli.options import Globals, complete_engine, pass_globals, with_globals

engine_argument = click.argument("engine", shell_complete=complete_engine)
now_flag = click.option("--now", is_flag=True, help="Without waiting for requests in flight.")


@click.command(short_help="Start an engine, and wait until it is ready.")
@with_globals
@engine_argument
@pass_globals
def start(globals_: Globals, engine: str) -> int:
    """Start an engine that was stopped or has failed, and wait until it is ready.

    Exit code 0: it is ready, 1: it has failed, 3: memoria is not running.

    \b
    Example:  memoria start generation
    """
    from memoria.cli.commands.control import steer

    return steer(globals_.config, "start", engine, as_json=globals_.json)


@click.command()
@with_globals
@engine_argument
@now_flag
@pass_globals
def stop(globals_: Globals, engine: str, now: bool) -> int:
    """Stop one engine. Requests in flight may finish first; the other engines go on.

    \b
    Example:  memoria stop generation --now
    """
    from memoria.cli.commands.control import steer

    return steer(globals_.config, "stop", engine, now=now, as_json=globals_.json)


@click.command()
@with_globals
@engine_argument
@now_flag
@pass_globals
def restart(globals_: Globals, engine: str, now: bool) -> int:
    """Stop one engine and start it again. Requests for it wait meanwhile, as far as `hold` allows.

    Exit code 0: it is ready again, 1: it has failed, 3: memoria is not running.

    \b
    Example:  memoria restart generation
    """
    from memoria.cli.commands.control import steer

    return steer(globals_.config, "restart", engine, now=now, as_json=globals_.json)


@click.command()
@with_globals
@pass_globals
def top(globals_: Globals) -> int:
    """Watch the engines: memory, rates, latency, what happened last. Ctrl-C ends it; in a pipe, one picture.

    \b
    Example:  memoria top
    """
    from memoria.cli.commands.top import show_top

    return show_top(globals_.config, width=globals_.width, color=globals_.colored)


@click.command(short_help="Print what completes commands and names in a shell.")
@with_globals
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print what makes the shell complete commands, flags and engines' names.

    \b
    Example:  memoria completion bash > ~/.local/share/bash-completion/completions/memoria
    """
    from memoria.cli.commands.completion import print_completion

    return print_completion(context.find_root().command, shell)


@click.group(short_help="Run memoria as a systemd service.")
@with_globals
def service() -> None:
    """Run memoria as a systemd service: as root for the machine, otherwise for this user.

    \b
    Example:  memoria service install -c memoria.yaml
    """


@service.command()
@with_globals
@click.option(
    "--user",
    "account",
    metavar="NAME",
    default="memoria",
    show_default=True,
    help="Who runs it, where root installs it.",
)
@click.option("--print", "only_print", is_flag=True, help="Show the unit, write nothing.")
@pass_globals
def install(globals_: Globals, account: str, only_print: bool) -> int:
    """Write the unit for this environment and this configuration, and say the next command.

    \b
    Example:  memoria service install -c /etc/memoria/memoria.yaml --print
    """
    from memoria.cli.commands.service import install_unit

    return install_unit(globals_.config, account, only_print=only_print)


@service.command()
@with_globals
def uninstall() -> int:
    """Remove the unit that `install` wrote.

    \b
    Example:  memoria service uninstall
    """
    from memoria.cli.commands.service import uninstall_unit

    return uninstall_unit()


@click.command(short_help="Show the requests that were answered last.")
@with_globals
@click.option(
    "-n", "--lines", type=click.IntRange(0, 500), default=20, show_default=True, help="How many of the last."
)
@click.option("-f", "--follow", is_flag=True, help="Then those that come.")
@pass_globals
def requests(globals_: Globals, lines: int, follow: bool) -> int:
    """Show the requests that were answered last: engine, times, tokens. Never what was asked or answered.

    \b
    Example:  memoria requests -f
    """
    from memoria.cli.commands.requests import show_requests

    return show_requests(
        globals_.config,
        lines=lines,
        follow=follow,
        as_json=globals_.json,
        width=globals_.line_width,
        color=globals_.colored,
    )


OPERATIONS: tuple[click.Command, ...] = (start, stop, restart, top, requests, completion, service)
