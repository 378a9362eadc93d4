"""A memoria.yaml before it is written: engines as they were found, and what found no place in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from memoria.config.checks import RESERVED

_LONGEST_NAME = 31
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9_-]+")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """`what` stands at `where` and has no counterpart, and the reason."""

    where: str
    what: str
    why: str

    def __str__(self) -> str:
        return f"{f'{self.where}  ' if self.where else ''}{self.what}: {self.why}"


@dataclass(frozen=True, slots=True)
class Published:
    """The address at which clients have reached a server. `host` is empty for all of the machine's."""

    host: str
    port: int


@dataclass(slots=True)
class DraftEngine:
    """`keys` are those of memoria.yaml, `args` vLLM's flags with dashes. `source` is where it was found."""

    name: str
    model: str
    keys: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # comments, by key
    published: Published | None = None
    source: str = ""
    is_named: bool = True  # else its task gives the name, once it is known


@dataclass(slots=True)
class Draft:
    """`top` are the keys above `engines`, each with its comment."""

    engines: list[DraftEngine]
    left_out: list[LeftOut] = field(default_factory=list)
    title: str = ""
    top: dict[str, tuple[Any, str]] = field(default_factory=dict)


def engine_name(wish: str, taken: Collection[str]) -> str:
    """A name that memoria.yaml takes, and that is not `taken`."""
    plain = _NOT_IN_A_NAME.sub("-", wish.lower()).strip("-_")[:_LONGEST_NAME].rstrip("-_") or "engine"
    if plain in RESERVED:
        plain = f"{plain}-engine"
    name, number = plain, 2
    while name in taken:
        ending = f"-{number}"
        name, number = plain[: _LONGEST_NAME - len(ending)] + ending, number + 1
    return name


def render(draft: Draft) -> str:
    return "\n".join(_lines(draft)) + "\n"


def _lines(draft: Draft) -> Iterator[str]:
    yield f"# {draft.title}"
    yield "# `memoria check` says whether it fits, `memoria run` runs it, `memoria config` shows every key."
    yield ""
    yield from _commented([(f"{key}: {_value(value)}", note) for key, (value, note) in draft.top.items()])
    yield ""
    yield "engines:  # started in this order"
    for engine in draft.engines:
        yield f"  {engine.name}:" + (f"  # {engine.source}" if engine.source else "")
        rows = [
            (f"    {key}: {_value(value)}", engine.notes.get(key, ""))
            for key, value in {"model": engine.model, **engine.keys}.items()
        ]
        yield from _commented(rows)
        yield from _section("args", engine.args)
        yield from _section("env", engine.env)


def _commented(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    width = max((len(text) for text, note in rows if note and len(text) <= 60), default=0)
    for text, note in rows:
        yield f"{text:<{width}}  # {note}" if note else text


def _section(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    if values:
        yield f"    {name}:"
        yield from (f"      {_value(key)}: {_value(value)}" for key, value in values.items())


def number(word: str) -> int | float | str:
    """A word of a command line as YAML should have it: a number only if nothing of its spelling is lost."""
    if _NUMBER.fullmatch(word):
        return float(word) if "." in word else int(word)
    return word


class Verbatim(str):
    """Text that is written without quotes, as `0.30`."""

    __slots__ = ()


def _value(value: Any) -> str:
    if isinstance(value, Verbatim):
        return str(value)
    text: str = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True
    )
    # a scalar at the top is a document that ends with dots; `$` would begin a variable
    return text.removesuffix("\n").removesuffix("\n...").replace("$", "$$")
