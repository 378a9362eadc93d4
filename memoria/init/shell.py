"""Text pasted from a terminal or a script: commands, and their words as a shell makes them.

Nothing is run: a command substitution is refused, and of the environment only variables are filled in.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from memoria.config.interpolate import ENVIRONMENT, InterpolationError, Variable, interpolate
from memoria.errors import UsageError

# Also where blanks, or a comment, follow the backslash: a shell ends the command there, people mean to go on.
_CONTINUED = re.compile(r"\\[ \t]*(#[^\n]*)?\r?\n")
_QUOTED = r"""(?P<quoted>'[^']*'|"(?:\\.|[^"\\])*")|"""
_COMMENT = re.compile(_QUOTED + r"(?<!\S)#[^\n]*")
_REDIRECTION = re.compile(_QUOTED + r"(?<=\s)(?:\d|&)?>>?\s*(?:&\d|[^\s'\"&;|]+)")
_PROMPT = re.compile(r"^[ \t]*[$%>][ \t]+(?=\S)", re.MULTILINE)
_ASSIGNED = re.compile(
    r"""^[ \t]*(?:export[ \t]+)?([A-Za-z_]\w*)=("[^"]*"|'[^']*'|[^\s;&|]*)[ \t]*;?[ \t]*$""", re.M
)
_OPERATORS = frozenset(";&|\n")


def commands(text: str, variables: Mapping[str, str]) -> list[list[str]]:
    """The words of each command. A line that begins with a dash belongs to the command before it. Raises
    `UsageError`."""
    text = _CONTINUED.sub(" ", text.strip() + "\n")
    text = _without(_COMMENT, _PROMPT.sub("", text))
    if "$(" in text or "`" in text:
        raise UsageError(
            "a command line with a command in it (`$(...)`) cannot be translated",
            hint="put what it prints in its place",
        )
    assigned = {name: value.strip("'\"") for name, value in _ASSIGNED.findall(text)}
    known = {name: Variable(name, value, ENVIRONMENT) for name, value in {**variables, **assigned}.items()}
    try:
        filled = interpolate(_without(_REDIRECTION, text), known)
        words = _words(filled.text)
    except InterpolationError as error:
        raise UsageError(f"the command line cannot be read: {error}", hint=error.hint) from error
    except ValueError as error:  # of shlex
        raise UsageError(
            f"the command line cannot be read: {str(error).lower()}", hint="close every quote"
        ) from error
    if filled.unset:
        raise UsageError(
            f"the command line needs {', '.join(dict.fromkeys(filled.unset))}, which is not set",
            hint="export it first, or put its value in its place",
        )
    found: list[list[str]] = [[]]
    for word, is_operator in words:
        if is_operator:
            found.append([])
        elif not found[-1] and word.startswith("-") and len(found) > 1:
            found.pop()
            found[-1].append(word)
        else:
            found[-1].append(word)
    return [command for command in found if command]


def _without(pattern: re.Pattern[str], text: str) -> str:
    """What stands in quotes stays."""
    return pattern.sub(lambda match: match["quoted"] or "", text)


def _words(text: str) -> list[tuple[str, bool]]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars="".join(_OPERATORS))
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    return [(word, bool(word) and set(word) <= _OPERATORS) for word in lexer]
