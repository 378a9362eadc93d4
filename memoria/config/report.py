"""Collects everything that is wrong with a configuration, so that a person sees it all at once."""

from __future__ import annotations

from memoria.config.interpolate import Variable
from memoria.config.model import ConfigPath, nearest_mark
from memoria.errors import ConfigError, Mark, Problem


def key_name(path: ConfigPath) -> str:
    """A key as a person says it: `embedding.port`, not `engines.embedding.port`."""
    return ".".join(path[1:] if len(path) > 1 and path[0] == "engines" else path)


class Report:
    """`marks` and `variables` are filled while the file is read; problems name a key, and where its value
    comes from is looked up for them."""

    def __init__(self) -> None:
        self.marks: dict[ConfigPath, Mark] = {}
        self.variables: dict[ConfigPath, tuple[Variable, ...]] = {}  # that a value was made with
        self._errors: list[tuple[Mark | None, Problem]] = []
        self._warnings: list[Problem] = []

    def move(self, here: ConfigPath, to: ConfigPath) -> None:
        """The value of one key is that of another from now on."""
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
        """`also` are other keys to show; `at` is a place that is no key of the file."""
        mark = at or nearest_mark(self.marks, path)
        self._errors.append((mark, self._problem(what, path, mark, also, hint)))

    def warning(self, what: str, path: ConfigPath, *, hint: str) -> None:
        self._warnings.append(self._problem(what, path, nearest_mark(self.marks, path), (), hint))

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return tuple(self._warnings)

    def raise_errors(self) -> None:
        """Raises `ConfigError` with everything found so far, in the order of the files' lines."""
        if self._errors:
            raise ConfigError(problem for _, problem in sorted(self._errors, key=_place))

    def _problem(
        self, what: str, path: ConfigPath, mark: Mark | None, also: tuple[ConfigPath, ...], hint: str
    ) -> Problem:
        places = [(mark, path), *((nearest_mark(self.marks, other), other) for other in also)]
        where = []
        for place, key in places:
            if place:
                where.append(f"{place}  {key_name(key)}".rstrip())
            where += [f"from {variable}" for variable in self.variables.get(key, ())]
        return Problem(what, tuple(where), hint)


def _place(found: tuple[Mark | None, Problem]) -> tuple[str, int, int]:
    mark = found[0]
    return (mark.file, mark.line, mark.column or 0) if mark else ("", 0, 0)
