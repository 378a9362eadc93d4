"""Types of values in memoria.yaml: how their text is read, and what the JSON schema says about them.

A parser's `ValueError` completes a sentence that begins with the key: "`listen` must be HOST:PORT". Pydantic
is imported only when a schema is built: it takes 200 ms, and most commands validate nothing.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([KMGT]i?B)")
_UNITS = {
    f"{letter}{i}B": (1024 if i else 1000) ** power
    for power, letter in enumerate("KMGT", 1)
    for i in ("", "i")
}
LEAST_FRACTION = Decimal("0.001")  # 24 MiB of 24 GiB: no engine starts with less
LEAST_WEIGHT = Decimal("0.001")
_PLAIN_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)")
_SCALED = re.compile(
    r"(?P<number>\d{1,9}(\.\d{1,9})?)(?P<decimal>[kmgt])|(?P<whole>\d{1,9})(?P<binary>[KMGT])"
)
_GPU_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")
_ENGINE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")


@dataclass(frozen=True, eq=False, slots=True)
class Reader:
    """How pydantic reads a value (for `Annotated`).

    `before` and `after` run around the validation of the type (or of `like`) within its `bounds`, which are
    `pydantic.Field`'s; `instead` replaces it all. `schema` is the JSON schema, where pydantic's does not fit.
    A reader with `bounds` or `like` must be the first of its `Annotated`.
    """

    bounds: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[Any], Any] | None = None
    after: Callable[[Any], Any] | None = None
    instead: Callable[[Any], Any] | None = None
    like: Any = None
    schema: Mapping[str, Any] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import Field  # noqa: PLC0415 (see above)
        from pydantic_core import core_schema  # noqa: PLC0415

        if self.instead:
            return core_schema.no_info_plain_validator_function(self.instead)
        if self.bounds or self.like:
            read = handler.generate_schema(Annotated[self.like or source, Field(**self.bounds)])
        else:
            read = handler(source)
        if self.before:
            read = core_schema.no_info_before_validator_function(self.before, read)
        return core_schema.no_info_after_validator_function(self.after, read) if self.after else read

    def __get_pydantic_json_schema__(self, read: Any, handler: Any) -> Any:
        return handler(read) if self.schema is None else dict(self.schema)


class Section:
    """A mapping of known keys. A key without a value is unset."""

    __slots__ = ()
    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema  # noqa: PLC0415 (see above)

        return core_schema.no_info_before_validator_function(cls.without_blanks, handler(source))

    @classmethod
    def without_blanks(cls, node: Any) -> Any:
        """A mapping without the known keys that have no value; anything else as it is."""
        if not isinstance(node, dict):
            return {} if node is None else node
        known = keys(cls)
        return {key: value for key, value in node.items() if value is not None or key not in known}


def key(meaning: str, default: Any, *, alias: str | None = None, shown: Any = MISSING) -> Any:
    """A key of a section with a default: a value, or the class of a section.

    `alias` is its name in the file. `shown` is the default in the documentation where that differs; None
    where it depends on other things, as `meaning` then says.
    """
    metadata: dict[str, Any] = {"description": meaning}
    if alias:
        metadata["alias"] = alias
    if shown is not MISSING:
        metadata["json_schema_extra"] = {"default": shown}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def keys(section: type) -> dict[str, dataclasses.Field[Any]]:
    """The keys of a section by their names in the file."""
    return {field.metadata.get("alias", field.name): field for field in fields(section)}


def default_of(key: dataclasses.Field[Any]) -> Any:
    """A key's default as the documentation shows it; None where there is none, or it is a section."""
    shown = key.metadata.get("json_schema_extra", {}).get("default", key.default)
    return None if shown is MISSING else shown


def _parse_gpu(text: Any) -> int | str:
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 4:
        return int(text)
    if isinstance(text, str) and _GPU_UUID.fullmatch(text):
        return str(text)
    raise ValueError("must be the index of a GPU, or its UUID as `nvidia-smi -L` prints it")


def _host(text: str) -> str:
    """A host in the form used for comparison: lower case, IPv6 in its brackets, without a port."""
    if text == "*" or _HOST.fullmatch(text):
        return text.lower()
    raise ValueError("must be a host's name or address without a port, as in `box.example.org`, or `*`")


def _origin(text: str) -> str:
    """An origin as browsers send it (RFC 6454, 6.2): lower case, without its scheme's default port."""
    if text == "*" or _ORIGIN.fullmatch(text):
        scheme, _, _ = text.lower().partition(":")
        return text.lower().removesuffix({"http": ":80", "https": ":443"}.get(scheme, " "))
    raise ValueError("must be an origin, as in https://app.example.org, without a path, or `*`")


def _engine_name(text: str) -> str:
    if not _ENGINE_NAME.fullmatch(text):
        raise ValueError("must be the name of an engine")
    return str(text)


def _without_model(fields: Any) -> Any:
    if "model" in fields:
        raise ValueError("must leave `model` alone: it chose the engine")
    return fields


def _changes(values: dict[str, Any]) -> dict[str, Any]:
    _without_model(values)
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("must hold what JSON can say: no `.inf`, no `.nan`") from None
    return values


def _scaled(text: Any) -> Any:
    """`32k` as 32 000 and `32K` as 32 768, anything else as it is (`human_readable_int` of
    vllm/utils/argparse_utils.py, with its way of rounding)."""
    match = _SCALED.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return text
    if match["binary"]:
        return int(match["whole"]) << 10 * (1 + "KMGT".index(match["binary"]))
    return int(float(match["number"]) * 1000 ** (1 + "kmgt".index(match["decimal"])))


def _parse_model_len(text: Any) -> int | str:
    if text in ("auto", "-1"):
        return "auto"
    tokens = _scaled(text)
    if isinstance(tokens, str) and tokens.isascii() and tokens.isdigit() and len(tokens) < 10:
        tokens = int(tokens)
    if isinstance(tokens, int) and 0 < tokens < 10**9:
        return tokens
    raise ValueError("must be a number of tokens, as in 8192 or 32k, or `auto`")


def _parse_fraction(text: Any) -> Decimal:
    """0 for `auto`."""
    if text == "auto":
        return Decimal(0)
    try:
        fraction = Decimal(text) if isinstance(text, str) and "_" not in text else Decimal("NaN")
    except InvalidOperation:
        fraction = Decimal("NaN")
    if not fraction.is_finite():
        raise ValueError("must be a number, or `auto`")
    if fraction <= 0:
        raise ValueError("must be more than 0")
    if fraction < LEAST_FRACTION:
        raise ValueError(f"must be at least {LEAST_FRACTION}")
    if fraction > 1:
        raise ValueError("must be at most 1")
    return fraction


def _weight(weight: Decimal) -> Decimal:
    if 0 < weight < LEAST_WEIGHT:
        raise ValueError(f"must be 0, or at least {LEAST_WEIGHT}")
    return weight


def _parse_sleep_level(text: Any) -> int:
    """0 for `none`."""
    levels = {"none": 0, "1": 1, "2": 2}
    if not isinstance(text, str) or text not in levels:
        raise ValueError("must be `1`, `2` or `none`")
    return levels[text]


def _parse_size_or_auto(text: Any) -> int | None:
    return None if text == "auto" else _parse_size(text)


def _parse_size(text: Any) -> int:
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    size = int(Decimal(match[1]) * _UNITS[match[2]]) if match else 0
    if size <= 0:
        raise ValueError("must be a size with its unit, as in `12GiB`")
    return size


def _parse_pinned(text: Any) -> int:
    """0 for `budget`."""
    return 0 if text == "budget" else _parse_size(text)


def _digits(text: Any) -> Any:
    """Refuses `010`, `1_0` and `10.0`, which pydantic takes for ten and other programs do not."""
    if isinstance(text, str) and re.search(r"\d", text) and not _PLAIN_NUMBER.fullmatch(text):
        raise ValueError("must be a whole number in plain digits, as in 8101")
    return text


def plain(node: Any) -> Any:
    """A node of `memoria.config.yaml` as plain Python values by YAML's types."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(item) for item in node]
    return getattr(node, "value", node)


def _without_blanks(node: Any) -> Any:
    if isinstance(node, list):
        return [item for item in node if item is not None]
    return (
        {key: value for key, value in node.items() if value is not None} if isinstance(node, dict) else node
    )


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not hold control characters")
    return text


def _no_flag(text: str) -> str:
    """Refuses what vLLM's parser would take for a flag."""
    if text.startswith("-"):
        raise ValueError("must be text that does not begin with `-`, as a flag of vLLM's does")
    return text


_NOT_FLAG = {"minLength": 1, "not": {"pattern": "^-"}}
_NOT_MODEL = {"not": {"const": "model"}}
_SHARE = {"type": "number", "minimum": float(LEAST_FRACTION), "maximum": 1}

_GT_0, _GE_0, _NOT_EMPTY = {"gt": 0}, {"ge": 0}, {"min_length": 1}

Word = Annotated[str, Reader(_NOT_EMPTY, after=_printable)]
# A word on vLLM's command line.
Argument = Annotated[Word, Reader(after=_no_flag, schema={"type": "string", **_NOT_FLAG})]
Folder = Annotated[Path, Reader(like=Word, after=Path)]
Whole = Annotated[int, Reader(_GE_0)]
Count = Annotated[int, Reader(_GT_0)]
_TOKENS = {
    "anyOf": [
        {"type": "integer", "exclusiveMinimum": 0},
        {"type": "string", "pattern": r"^(\d+(\.\d+)?[kmgt]|\d+[KMGT])$"},
    ]
}
ScaledCount = Annotated[int, Reader(_GT_0, before=_scaled, schema=_TOKENS)]  # may be written as `32k`
Seconds = Annotated[float, Reader(_GT_0)]
SecondsOrZero = Annotated[float, Reader(_GE_0)]
Concurrency = Annotated[float, Reader({"gt": 0, "le": 1e6})]
Mebibytes = Annotated[int, Reader(_GT_0, after=lambda mebibytes: mebibytes << 20)]  # the fact is in bytes
Port = Annotated[int, Reader({"ge": 1, "le": 65535}, before=_digits)]
Weight = Annotated[Decimal, Reader({"ge": 0, "le": 1000}, after=_weight)]
Fraction = Annotated[Decimal, Reader({"ge": LEAST_FRACTION, "le": 1}, schema=_SHARE)]
FractionOrAuto = Annotated[
    Decimal, Reader(instead=_parse_fraction, schema={"anyOf": [_SHARE, {"const": "auto"}]})
]
Size = Annotated[int, Reader(instead=_parse_size, schema={"type": "string", "pattern": f"^{_SIZE.pattern}$"})]
SizeOrAuto = Annotated[
    int | None,
    Reader(
        instead=_parse_size_or_auto,
        schema={"anyOf": [{"type": "string", "pattern": f"^{_SIZE.pattern}$"}, {"const": "auto"}]},
    ),
]
SleepLevel = Annotated[int, Reader(instead=_parse_sleep_level, schema={"enum": [1, 2, "none"]})]
SizeOrBudget = Annotated[
    int,
    Reader(
        instead=_parse_pinned,
        schema={"anyOf": [{"type": "string", "pattern": f"^{_SIZE.pattern}$"}, {"const": "budget"}]},
    ),
]
Percent = Annotated[int, Reader({"ge": 1, "le": 100})]
Gpu = Annotated[
    int | str,
    Reader(
        instead=_parse_gpu,
        schema={
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": f"^{_GPU_UUID.pattern}$"},
            ]
        },
    ),
]
EngineName = Annotated[
    str, Reader(after=_engine_name, schema={"type": "string", "pattern": f"^{_ENGINE_NAME.pattern}$"})
]


def _one_or_more(item: Any, item_schema: Mapping[str, Any], after: Callable[[Any], Any] = tuple) -> Reader:
    """One text, or a list of them."""
    text = {"type": "string", **item_schema}
    return Reader(
        _NOT_EMPTY,
        like=list[item],
        before=lambda node: [node] if isinstance(node, str) else _without_blanks(node),
        after=after,
        schema={"anyOf": [text, {"type": "array", "items": text, "minItems": 1}]},
    )


Names = Annotated[tuple[str, ...], _one_or_more(Argument, _NOT_FLAG)]
Hosts = Annotated[
    tuple[str, ...],
    _one_or_more(Annotated[str, Reader(after=_host)], {"pattern": rf"^(\*|{_HOST.pattern})$"}),
]
Origins = Annotated[
    tuple[str, ...],
    _one_or_more(Annotated[str, Reader(after=_origin)], {"pattern": rf"^(\*|{_ORIGIN.pattern})$"}),
]
Fields = Annotated[
    tuple[str, ...],
    _one_or_more(Word, {"minLength": 1, **_NOT_MODEL}, lambda names: tuple(_without_model(names))),
]
Changes = Annotated[
    Mapping[str, Any],
    Reader(before=plain, after=_changes, schema={"type": "object", "propertyNames": _NOT_MODEL}),
]
ModelLen = Annotated[
    int | str,
    Reader(
        instead=_parse_model_len,
        schema={"anyOf": [*_TOKENS["anyOf"], {"enum": ["auto", -1]}]},
    ),
]
# A flag without a value is unset; within its JSON, null is a value.
Flags = Annotated[dict[str, Any], Reader(before=lambda node: plain(_without_blanks(node)))]
PoolerConfig = Annotated[
    dict[str, Any], Reader(before=plain, schema={"anyOf": [{"type": "object"}, {"type": "string"}]})
]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    Reader(before=lambda level: level.upper() if isinstance(level, str) else level),
]
LogFormat = Annotated[
    Literal["text", "json"], Reader(before=lambda name: name.lower() if isinstance(name, str) else name)
]
Variables = Annotated[
    Mapping[str, str],
    Reader(
        before=_without_blanks,
        schema={"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}},
    ),
]
