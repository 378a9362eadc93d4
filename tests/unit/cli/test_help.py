"""Every command's `--help` has an example, and the example is one that its command takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from memoria.cli.commands import COMMANDS as REGISTERED
from memoria.cli.commands import cli

CONTEXT = click.Context(cli, **cli.context_settings)


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name in command.list_commands(CONTEXT):
            child = command.get_command(CONTEXT, name)
            assert child is not None
            yield from commands(child, (*path, name))
    else:
        yield " ".join(path), command


COMMANDS = dict(commands(cli))


def test_the_shell_completes_the_names_of_commands() -> None:
    found = cli.shell_complete(CONTEXT, "re")
    assert [(item.value, item.help) for item in found] == [
        (name, summary) for name, (_, summary) in REGISTERED.items() if name.startswith("re")
    ]
    assert [item.value for item in found] == ["reload", "requests", "restart"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_is_one_that_it_takes(name: str) -> None:
    example = re.search(r"^\s*Example:  (.+)$", COMMANDS[name].help or "", re.MULTILINE)
    assert example is not None
    words = shlex.split(example[1].partition(" > ")[0])
    called = words[words.index("memoria") + 1 :]
    assert called[: len(name.split())] == name.split()
    # raises for an unknown flag; nothing is read or run
    COMMANDS[name].make_context(name, called[len(name.split()) :], parent=CONTEXT, resilient_parsing=True)
