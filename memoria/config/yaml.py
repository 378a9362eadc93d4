"""YAML with the place of every key and `${NAME}` filled in.

The tree holds mappings, lists and `Scalar`s: the text as written and its YAML type side by side, because only
the schema knows which one counts (`gpu_memory_utilization: 0.30` is an exact decimal, `model: 0.30` a name).
Only YAML's plain types exist, as for `yaml.safe_load`; merge keys (`<<`) work, duplicate keys are a problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Union

import yaml

from memoria.config.interpolate import InterpolationError, Variable, interpolate
from memoria.config.model import ConfigPath
from memoria.config.report import Report
from memoria.errors import ConfigError, Mark, Problem

Node = Union["Scalar", dict[str, "Node"], list["Node"], None]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER: Any = yaml.SafeLoader("")
_TAG = "tag:yaml.org,2002:"
_TYPED = {_TAG + name for name in ("int", "float", "bool", "null")}
_KNOWN = _TYPED | {_TAG + name for name in ("str", "map", "seq", "timestamp", "value", "merge")}
_UNUSABLE = re.compile(r"[\x00\ud800-\udfff]")  # no path, argument or variable may hold them
_LOOK_AROUND = "look at the lines before it, too: indentation, colons, brackets, quotes"
EXTENSION = "x-"  # at the top, as in Compose: parts that are only there to be merged into others
_MAX_DEPTH = 50  # libyaml's composer recurses on the C stack, and ends the process when that is full
_MAX_NODES = 20_000  # aliases of aliases can grow a small file without end


class Scalar(str):
    """A value's text, its `value` by YAML's types, and the variables that went into it."""

    __slots__ = ("value", "variables")
    value: Any
    variables: tuple[Variable, ...]

    def __new__(cls, text: str, value: Any, variables: tuple[Variable, ...] = ()) -> Scalar:
        self = super().__new__(cls, text)
        self.value = value
        self.variables = variables
        return self


@dataclass(frozen=True, slots=True)
class Document:
    data: dict[str, Node]
    marks: Mapping[ConfigPath, Mark]
    variables: Mapping[ConfigPath, tuple[Variable, ...]]

    def get(self, *path: str) -> Node:
        node: Node = self.data
        for key in path:
            if isinstance(node, dict):
                node = node.get(key)
            elif isinstance(node, list) and key.isdigit():
                node = node[int(key)]
            else:
                return None
        return node

    def engines(self) -> Iterator[tuple[ConfigPath, dict[str, Node]]]:
        """The engines that are mappings, or blank, each with its path."""
        engines = self.data.get("engines")
        for name, engine in engines.items() if isinstance(engines, dict) else ():
            if engine is None or isinstance(engine, dict):
                yield ("engines", name), {} if engine is None else engine

    def text(self, *path: str) -> str | None:
        """The text of a value; None where there is none, or it is a mapping or a list."""
        node = self.get(*path)
        return str(node) if isinstance(node, Scalar) else None


def parse(text: str, file: str, variables: Mapping[str, Variable], report: Report) -> Document:
    """Raises `ConfigError` if the text is no YAML mapping; lesser problems go to `report`."""
    report.marks[()] = Mark(file, 1)
    try:
        _refuse_deep_nesting(text, file)
        root = yaml.compose(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError) as error:
        raise _syntax_error(error, text, file) from error
    if root is None:
        return Document({}, report.marks, report.variables)
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            Problem(
                "the configuration must be a mapping (`key: value` lines)",
                (str(_mark(root, file)),),
                "the smallest one is: engines: {generation: {model: NAME, gpu_memory_utilization: 0.5}}",
            )
        )
    data = _Reader(file, variables, report).mapping(root, ())
    return Document(data, report.marks, report.variables)


class _Reader:
    def __init__(self, file: str, variables: Mapping[str, Variable], report: Report) -> None:
        self._file = file
        self._variables = variables
        self._report = report
        self._nodes = 0
        self._open: set[int] = set()

    def node(self, node: yaml.Node, path: ConfigPath) -> Node:
        if node.tag not in _KNOWN:
            self._report.error(
                f"the tag `{node.tag}` has no meaning here", path, at=self._mark(node), hint="leave it out"
            )
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        return self._sequence(node, path)

    def mapping(self, node: yaml.MappingNode, path: ConfigPath) -> dict[str, Node]:
        with self._inside(node):
            data: dict[str, Node] = {}
            for key, value, merged in self._pairs(node):
                if not isinstance(key, yaml.ScalarNode) or _UNUSABLE.search(key.value):
                    self._report.error(
                        "a key must be plain text",
                        path,
                        at=self._mark(key),
                        hint="configs/README.md explains every key",
                    )
                    continue
                if not path and key.value.startswith(EXTENSION):
                    continue
                here = (*path, str(key.value))
                if key.value in data:
                    if not merged:
                        self._report.error(
                            f"the key `{key.value}` is here a second time",
                            here,
                            at=self._mark(key),
                            also=(here,),
                            hint="remove one of them, or give it another name",
                        )
                    continue
                self._report.marks[here] = self._mark(key)
                data[key.value] = self.node(value, here)
            return data

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node, bool]]:
        """Keys and values, the mapping's own before those merged into it."""
        merges: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                merges += value.value if isinstance(value, yaml.SequenceNode) else [value]
            else:
                yield key, value, False
        for merge in merges:
            if not isinstance(merge, yaml.MappingNode):
                self._report.error(
                    "`<<` takes a mapping, or a list of mappings",
                    at=self._mark(merge),
                    hint="as in `<<: *defaults`",
                )
                continue
            with self._inside(merge):
                for key, value, _ in self._pairs(merge):
                    yield key, value, True

    def _sequence(self, node: yaml.Node, path: ConfigPath) -> list[Node]:
        with self._inside(node):
            items: list[Node] = []
            for child in node.value:
                here = (*path, str(len(items)))
                self._report.marks[here] = self._mark(child)
                items.append(self.node(child, here))
            return items

    def _scalar(self, node: yaml.ScalarNode, path: ConfigPath) -> Scalar | None:
        self._count(node)
        try:
            filled = interpolate(node.value, self._variables)
        except InterpolationError as error:
            self._report.error(str(error), path, hint=error.hint)
            return None
        if filled.variables:
            self._report.variables[path] = filled.variables
        for name in filled.unset:
            self._report.warning(
                f"the variable {name} is not set", path, hint=f"write ${{{name}:-}} if it may be"
            )
        if filled.unset:
            self._report.unset[path] = filled.unset
        if _UNUSABLE.search(filled.text):
            self._report.error("a value holds a character that is no text", path, hint="write it again")
            return None
        if "$" not in node.value:
            value = _typed(filled.text, node.tag)
        elif not filled.text.strip():
            return None
        else:
            value = _typed(filled.text, _RESOLVER.resolve(yaml.ScalarNode, filled.text, (True, False)))
        return None if value is None else Scalar(filled.text, value, filled.variables)

    @contextmanager
    def _inside(self, node: yaml.Node) -> Iterator[None]:
        self._count(node)
        if id(node) in self._open:
            raise ConfigError(
                Problem("an anchor contains itself", (str(self._mark(node)),), "take the alias out of it")
            )
        self._open.add(id(node))
        try:
            yield
        finally:
            self._open.discard(id(node))

    def _count(self, node: yaml.Node) -> None:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise ConfigError(
                Problem(f"more than {_MAX_NODES} values", (str(self._mark(node)),), "use fewer aliases")
            )

    def _mark(self, node: yaml.Node) -> Mark:
        return _mark(node, self._file)


def _mark(node: Any, file: str) -> Mark:
    return Mark(file, node.start_mark.line + 1, node.start_mark.column + 1)


def _typed(text: str, tag: str) -> Any:
    # YAML 1.1 reads 1:30 as ninety.
    if tag not in _TYPED or ":" in text:
        return text
    try:
        return _RESOLVER.construct_object(yaml.ScalarNode(tag, text))
    except (ValueError, KeyError):
        return text


def _refuse_deep_nesting(text: str, file: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ConfigError(
                Problem(
                    f"more than {_MAX_DEPTH} levels of nesting", (str(_mark(event, file)),), "close brackets"
                )
            )


def _syntax_error(error: Exception, text: str, file: str) -> ConfigError:
    place = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if place is None:
        return ConfigError(Problem(f"this is not YAML: {str(error).splitlines()[0]}", (file,), _LOOK_AROUND))
    lines = text.split("\n")
    line = lines[place.line] if place.line < len(lines) else ""
    hint = _LOOK_AROUND
    if "${" in line:
        hint = 'inside { } and [ ] a value with ${NAME} needs quotes: "${NAME}"'
    elif line.startswith("\t") or line.lstrip(" ").startswith("\t"):
        hint = "YAML indents with spaces, not with tabs"
    what = getattr(error, "problem", None) or "it cannot be read"
    return ConfigError(
        Problem(f"this is not YAML: {what}", (str(Mark(file, place.line + 1, place.column + 1)),), hint)
    )
