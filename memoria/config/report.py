"""Collects all problems of a configuration, so that they are reported at once."""

from __future__ import annotations

from memoria.config.interpolate import Variable
from memoria.config.model import ConfigPath, nearest_mark
from memoria.errors import ConfigError, Mark, Problem


def key_name(path: ConfigPath) -> str:
    """A key as messages show it: `embedding.port`, not `engines.embedding.port`."""
    return ".".join(path[1:] if len(path) > 1 and path[0] == "engines" else path)


class Report:
    """`marks` and `variables` are filled while the file is read, and give each problem the place and the
    sources of its key's value."""

    def __init__(self) -> None:
        self.marks: dict[ConfigPath, Mark] = {}
        self.variables: dict[ConfigPath, tuple[Variable, ...]] = {}  # that went into a value
        self.unset: dict[ConfigPath, tuple[str, ...]] = {}  # variables that a value wanted
        self._errors: list[tuple[Mark | None, Problem]] = []
        self._warnings: list[Problem] = []

    def move(self, here: ConfigPath, to: ConfigPath) -> None:
        """Moves the place and the sources of a value to another key."""
        self.marks[to] = self.marks[here]
        if here in self.variables:
            self.variables[to] = self.variables[here]

    def error(
        self,
        what: str,
        path: ConfigPath = (),
        *,
        at: Mark | None = None,
        also: tuple[ConfigPath, ...] = (),
        hint: str,
    ) -> None:
        """`also` are other keys to show; `at` is a place that is not a key's."""
        mark = at or nearest_mark(self.marks, path)
        self._errors.append((mark, self._problem(what, path, mark, also, hint)))

    def warning(self, what: str, path: ConfigPath, *, hint: str) -> None:
        self._warnings.append(self._problem(what, path, nearest_mark(self.marks, path), (), hint))

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return tuple(self._warnings)

    @property
    def errors(self) -> tuple[Problem, ...]:
        """In the order of their lines."""
        return tuple(problem for _, problem in sorted(self._errors, key=_place))

    def raise_errors(self) -> None:
        """Raises `ConfigError` if there are any."""
        if self._errors:
            raise ConfigError(self.errors)

    def _problem(
        self, what: str, path: ConfigPath, mark: Mark | None, also: tuple[ConfigPath, ...], hint: str
    ) -> Problem:
        places = [(mark, path), *((nearest_mark(self.marks, other), other) for other in also)]
        where = []
        for place, key in places:
            if place:
                where.append(f"{place}  {key_name(key)}".rstrip())
            where += [f"from {variable}" for variable in self.variables.get(key, ())]
            where += [f"the variable {name} is not set" for name in self.unset.get(key, ())]
        return Problem(what, tuple(where), hint)


def _place(found: tuple[Mark | None, Problem]) -> tuple[str, int, int]:
    mark = found[0]
    return (mark.file, mark.line, mark.column or 0) if mark else ("", 0, 0)
