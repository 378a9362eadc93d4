"""`${NAME}` in values, by the rules of Docker compose files (the Compose specification, "Interpolation").

| form | value |
|---|---|
| `${NAME}`, `$NAME` | of the variable; blank when it is unset |
| `${NAME:-text}` / `${NAME-text}` | `text` when it is unset or blank / unset |
| `${NAME:?text}` / `${NAME?text}` | an error that says `text` when it is unset or blank / unset |
| `${NAME:+text}` / `${NAME+text}` | `text` when it is set and not blank / set, else blank |
| `$$` | a dollar sign |

`text` may contain such forms again. The value of a variable is not interpolated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_DOLLAR = re.compile(r"\$(?:(?P<dollar>\$)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<brace>\{))")
_BRACED = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:(?P<operator>:?[-?+])(?P<operand>.*))?", re.DOTALL)
_MAX_NESTING = 20
ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True)
class Variable:
    """`source` is `ENVIRONMENT` or, for example, `.env:3`."""

    name: str
    value: str
    source: str

    def __str__(self) -> str:
        """Without its value, which may be a secret."""
        return f"{self.name} in {'the environment' if self.source == ENVIRONMENT else self.source}"


class InterpolationError(ValueError):
    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Interpolated:
    """The text, the variables used in it, and the names without a value or a default."""

    text: str
    variables: tuple[Variable, ...] = ()
    unset: tuple[str, ...] = ()


def interpolate(text: str, variables: Mapping[str, Variable]) -> Interpolated:
    """Raises `InterpolationError` for a form that is not in the table, and for an unset `${NAME?text}`."""
    return _interpolate(text, variables, nesting=0)


def _interpolate(text: str, variables: Mapping[str, Variable], nesting: int) -> Interpolated:
    if nesting > _MAX_NESTING:
        raise InterpolationError("`${...}` is nested too deeply", "write the innermost default alone")
    parts: list[Interpolated] = []
    position = 0
    while match := _DOLLAR.search(text, position):
        parts.append(Interpolated(text[position : match.start()]))
        position = match.end()
        if match["dollar"]:
            parts.append(Interpolated("$"))
        elif match["name"]:
            parts.append(_substitute(match["name"], "", "", variables, nesting))
        else:
            end = _closing_brace(text, position)
            form = _BRACED.fullmatch(text[position:end])
            if form is None:
                raise InterpolationError(
                    f"`${{{text[position:end]}}}` is not a form of `${{NAME}}`",
                    "write ${NAME}, ${NAME:-default} or ${NAME:?message}; a plain dollar sign is $$",
                )
            parts.append(
                _substitute(form["name"], form["operator"] or "", form["operand"] or "", variables, nesting)
            )
            position = end + 1
    parts.append(Interpolated(text[position:]))
    return Interpolated(
        "".join(part.text for part in parts),
        tuple(variable for part in parts for variable in part.variables),
        tuple(name for part in parts for name in part.unset),
    )


def _substitute(
    name: str, operator: str, operand: str, variables: Mapping[str, Variable], nesting: int
) -> Interpolated:
    variable = variables.get(name)
    found = variable is not None and (bool(variable.value) or not operator.startswith(":"))
    kind = operator[-1:]
    if kind == "+":
        return _interpolate(operand, variables, nesting + 1) if found else Interpolated("")
    if variable is not None and found:
        return Interpolated(variable.value, (variable,))
    if kind == "-":
        return _interpolate(operand, variables, nesting + 1)
    if kind == "?":
        message = _interpolate(operand, variables, nesting + 1).text
        raise InterpolationError(
            f"the variable {name} is not set" + (f": {message}" if message else ""),
            f"set {name} in the environment or in .env",
        )
    return Interpolated("", unset=(name,))


def _closing_brace(text: str, start: int) -> int:
    # Plain braces count too, as in Compose: ${POOLER:-{"pooling_type":"CLS"}} is one form.
    depth = 1
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise InterpolationError("`${` without its `}`", "a plain dollar sign is written $$")
