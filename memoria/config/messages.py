"""Pydantic's findings as messages: what is wrong, where, and a hint."""

from __future__ import annotations

import difflib
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from memoria.config.dropped_flags import SUCCESSORS
from memoria.config.environment import looks_secret
from memoria.config.model import ConfigPath, Filters, Want
from memoria.config.report import Report
from memoria.config.schema import FILE, SECTIONS, Engine, File
from memoria.config.values import Section, default_of, keys
from memoria.config.vllm_flags import refusal
from memoria.config.yaml import Document, Node, Scalar

if TYPE_CHECKING:
    from dataclasses import Field

    from pydantic_core import ErrorDetails

_MUST_BE = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "finite": "a number",
    "bool": "true or false",
    "string": "text",
    **dict.fromkeys(("dict", "mapping", "dataclass"), "a mapping (`key: value` lines)"),
    **dict.fromkeys(("list", "tuple"), "a list"),
}
_PLACEHOLDER = "a model"
_ENGINE_NAME = "begin with a letter or digit, go on with a-z, 0-9, _ and -, 31 characters at most"
_UNKNOWN = "unexpected_keyword_argument"
_WITHIN_ENGINE: dict[str, type[Section]] = {"want": Want, "filters": Filters}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
}


def report_findings(error: ValidationError, document: Document, report: Report) -> frozenset[str]:
    """Adds all findings to `report`. Returns the names of the keys whose values cannot be relied on."""
    findings = [(tuple(map(str, finding["loc"])), finding) for finding in error.errors(include_url=False)]
    misspelt = {(*path[:-1], _meant(path)) for path, finding in findings if finding["type"] == _UNKNOWN}
    missing = [path for path, finding in findings if finding["type"] == "missing" and path not in misspelt]
    for path in dict.fromkeys(path[:-1] if path[0] == "guard" else path for path in missing):
        _report_missing(path, report)
    for path, finding in findings:
        if finding["type"] == "missing":
            continue
        if finding["type"] == _UNKNOWN:
            report.error(f"unknown key `{path[-1]}`", path, hint=_known_keys(path))
        elif path[-1] == "[key]":
            report.error(f"`{path[-2]}` is no name for an engine", path[:-1], hint=_ENGINE_NAME)
        else:
            key = path[-2] if path[-1].isdigit() and path[:-1] != ("engines",) else path[-1]
            instead = "" if _is_of_parts(finding) else _instead_of(document.get(*path), path)
            report.error(f"`{key}` {_sentence(finding)}{instead}", path, hint=_hint(path, finding))
    wrong = {path for path, _ in findings} | {(name,) for *_, name in misspelt if name}
    return frozenset(key for path in wrong for key in path)


def without_wrong(document: Document, error: ValidationError) -> tuple[File, Document] | None:
    """The file without its wrong values, and what it was read from; None if nothing usable is left."""
    data = {key: _copied(value) for key, value in document.data.items()}
    for finding in error.errors(include_url=False, include_context=False, include_input=False):
        path = tuple(map(str, finding["loc"]))
        if path[0] == "guard" and finding["type"] != _UNKNOWN:  # as a whole: it needs both its keys
            data.pop("guard", None)
        elif finding["type"] == "missing":
            _parent(data, path)[path[-1]] = Scalar(_PLACEHOLDER, _PLACEHOLDER)
        else:
            _drop(data, path)
    try:
        return FILE.validate_python(data), replace(document, data=data)
    except ValidationError:
        return None


def _copied(node: Node) -> Node:
    return {key: _copied(value) for key, value in node.items()} if isinstance(node, dict) else node


def _parent(data: dict[str, Node], path: ConfigPath) -> dict[str, Node]:
    for key in path[:-1]:
        if data.get(key) is None:  # a blank mapping
            data[key] = {}
        data = cast("dict[str, Node]", data[key])
    return data


def _drop(data: dict[str, Node], path: ConfigPath) -> None:
    """Removes the innermost mapping key of `path`: a list with a wrong item goes as a whole."""
    within: dict[str, Node] = data
    for key in path:
        node = within.get(key)
        if not isinstance(node, dict) or key == path[-1]:
            within.pop(key, None)
            return
        within = node


def _sentence(finding: ErrorDetails) -> str:
    kind, context = finding["type"], finding.get("ctx", {})
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"must be {words} {float(context[bound]):g}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"must be {context['expected'].replace(chr(39), '`')}"
    if kind in ("string_too_short", "too_short"):
        return "must not be empty"
    return f"must be {_MUST_BE.get(kind.partition('_')[0], 'another value')}"


def _hint(path: ConfigPath, finding: ErrorDetails) -> str:
    """Advice for this key, or else its meaning."""
    key = path[-2] if path[-1].isdigit() else path[-1]
    if finding["type"].startswith("dataclass"):
        return f"its keys: {', '.join(keys(_section((*path, ''))))}"
    if key == "gpu_memory_utilization":
        return "it is a share of the whole: 30 % is 0.30"
    if key == "pooler_config":
        return """or such a mapping as JSON text: '{"use_activation": true}'"""
    if key == "runner":
        return "embedding, reranking and classifying is `pooling`, writing text is `generate`"
    return _meaning(path)


def _meaning(path: ConfigPath) -> str:
    while path[-1] not in keys(_section(path)):  # an item of a list, an entry of `args` or `env`
        path = path[:-1]
    return _as_clause(keys(_section(path))[path[-1]])


def _as_clause(field: Field[Any]) -> str:
    text = field.metadata["description"].rstrip(".")
    if text[:2].istitle() or text[1:2] == " ":  # a word, not a name
        text = text[0].lower() + text[1:]
    default = default_of(field)
    plain = isinstance(default, (str, int, float, Decimal)) and not isinstance(default, bool)
    shown = f"{default:g}" if isinstance(default, float) else default
    return f"{text} (if left out: {shown})" if plain else text


def _report_missing(path: ConfigPath, report: Report) -> None:
    if path == ("engines",):
        report.error(
            "no engines: there is nothing to run", hint="see memoria.yaml, or configs/, for ready files"
        )
    elif path == ("guard",):
        report.error(
            "`guard` needs both its keys, or none",
            path,
            hint="write `guard: {protect: generation, inter_token_ms: 50}`, say",
        )
    else:
        report.error("`model` is missing", path, hint="write `model: Qwen/Qwen3-Embedding-0.6B`, say")


def _section(path: ConfigPath) -> type[Section]:
    """The section that a key belongs to."""
    if path[0] == "engines" and len(path) > 2:
        return _WITHIN_ENGINE.get(path[2], Engine) if len(path) > 3 else Engine
    return SECTIONS.get(path[0], File) if len(path) > 1 else File


def _meant(path: ConfigPath) -> str | None:
    written = path[-1].removeprefix("--").replace("-", "_").lower()
    close = difflib.get_close_matches(written, keys(_section(path)), n=1, cutoff=0.75)
    return close[0] if close else None


def _known_keys(path: ConfigPath) -> str:
    if meant := _meant(path):
        return f"did you mean `{meant}`?"
    if _section(path) is Engine:
        flag = path[-1].removeprefix("--").replace("-", "_")
        return SUCCESSORS.get(flag) or refusal(flag) or "any other flag of vLLM goes under `args`"
    return f"known here: {', '.join(keys(_section(path)))}"


def _is_of_parts(finding: ErrorDetails) -> bool:
    """Whether the value is a list or a mapping, as it should be, with something wrong in it."""
    return finding["type"] == "value_error" and isinstance(finding["input"], (list, dict))


def _instead_of(node: Node, path: ConfigPath) -> str:
    if isinstance(node, dict):
        return ", not a mapping" if node else ""
    if isinstance(node, list):
        return ", not a list" if node else ""
    if not isinstance(node, Scalar) or not node or "env" in path:
        return ""
    if any(looks_secret(variable.name) for variable in node.variables):
        return ""
    text = node if len(node) <= 40 else f"{node[:39]}…"
    return f", not `{text}`" if text.isprintable() else ""
