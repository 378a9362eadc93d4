"""The types of values in memoria.yaml: how their text is read, and what the JSON schema says of them.

A validator's `ValueError` is the rest of a sentence that begins with the key: "`listen` must be HOST:PORT".
"""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, StringConstraints, WithJsonSchema

from memoria.config.model import Address
from memoria.config.yaml import Scalar, plain

_ADDRESS = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[A-Za-z0-9.-]+)):(?P<port>[1-9][0-9]{0,4})"
)
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
_GPU_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")


def parse_address(text: Any) -> Address:
    """`HOST:PORT`, an IPv6 host in brackets."""
    match = _ADDRESS.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match["port"]) > 65535:
        raise ValueError("must be HOST:PORT, as in 127.0.0.1:8200 or [::1]:8200")
    return Address(match["ipv6"] or match["host"], int(match["port"]))


def parse_gpu(text: Any) -> int | str:
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 4:
        return int(text)
    if isinstance(text, str) and _GPU_UUID.fullmatch(text):
        return str(text)
    raise ValueError("must be the index of a GPU, or its UUID as `nvidia-smi -L` prints it")


def _host(text: str) -> str:
    """A host as it is compared: lower case, IPv6 in its brackets, without a port."""
    if text == "*" or _HOST.fullmatch(text):
        return text.lower()
    raise ValueError("must be a host's name or address without a port, as in `box.example.org`, or `*`")


def _origin(text: str) -> str:
    """An origin as browsers send it (RFC 6454, 6.2): lower case, without its scheme's own port."""
    if text == "*" or _ORIGIN.fullmatch(text):
        scheme, _, _ = text.lower().partition(":")
        return text.lower().removesuffix({"http": ":80", "https": ":443"}.get(scheme, " "))
    raise ValueError("must be an origin, as in https://app.example.org, without a path, or `*`")


def _without_model(fields: Any) -> Any:
    if "model" in fields:
        raise ValueError("must leave `model` alone: it chose the engine")
    return fields


def _json(values: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("must hold what JSON can say: no `.inf`, no `.nan`") from None
    return values


def _parse_model_len(text: Any) -> int | str:
    if text == "auto":
        return "auto"
    if isinstance(text, str) and text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text) > 0:
        return int(text)
    raise ValueError("must be a number of tokens, or `auto`")


def _parse_fraction(text: Any) -> Decimal | str:
    if text == "auto":
        return "auto"
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


def _parse_size(text: Any) -> int:
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    size = int(Decimal(match[1]) * _UNITS[match[2]]) if match else 0
    if size <= 0:
        raise ValueError("must be a size with its unit, as in `12GiB`")
    return size


def _digits(text: Any) -> Any:
    """Only as one writes a number: `010`, `1_0` and `10.0` are ten for pydantic, and not for everybody."""
    if isinstance(text, str) and re.search(r"\d", text) and not _PLAIN_NUMBER.fullmatch(text):
        raise ValueError("must be a whole number in plain digits, as in 8101")
    return text


def _one_or_more(node: Any) -> Any:
    return [node] if isinstance(node, Scalar) else node


def _without_blanks(node: Any) -> Any:
    return (
        {key: value for key, value in node.items() if value is not None} if isinstance(node, dict) else node
    )


def _upper(node: Any) -> Any:
    return node.upper() if isinstance(node, str) else node


def _lower(node: Any) -> Any:
    return node.lower() if isinstance(node, str) else node


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not hold control characters")
    return text


def _no_flag(text: str) -> str:
    """vLLM's parser would take it for one of its flags, memoria's own among them."""
    if text.startswith("-"):
        raise ValueError("must be text that does not begin with `-`, as a flag of vLLM's does")
    return text


def _text_or_list(**bounds: Any) -> WithJsonSchema:
    text = {"type": "string", **bounds}
    return WithJsonSchema({"anyOf": [text, {"type": "array", "items": text, "minItems": 1}]})


_NOT_FLAG = {"minLength": 1, "not": {"pattern": "^-"}}
_NOT_MODEL = {"not": {"const": "model"}}
Word = Annotated[str, StringConstraints(min_length=1), AfterValidator(_printable)]
Weight = Annotated[Decimal, Field(ge=0, le=1000), AfterValidator(_weight)]
Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# A word that stands on vLLM's command line.
Argument = Annotated[Word, AfterValidator(_no_flag), WithJsonSchema({"type": "string", **_NOT_FLAG})]
Port = Annotated[int, Field(ge=1, le=65535), BeforeValidator(_digits)]
_SHARE = {"type": "number", "minimum": float(LEAST_FRACTION), "maximum": 1}
Fraction = Annotated[Decimal, Field(ge=LEAST_FRACTION, le=1), WithJsonSchema(_SHARE)]
FractionOrAuto = Annotated[
    Decimal | Literal["auto"],
    PlainValidator(_parse_fraction),
    WithJsonSchema({"anyOf": [_SHARE, {"const": "auto"}]}),
]
Size = Annotated[
    int, PlainValidator(_parse_size), WithJsonSchema({"type": "string", "pattern": f"^{_SIZE.pattern}$"})
]
Gpu = Annotated[
    int | str,
    PlainValidator(parse_gpu),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": f"^{_GPU_UUID.pattern}$"},
            ]
        }
    ),
]
Names = Annotated[
    list[Argument],
    BeforeValidator(_one_or_more),
    Field(min_length=1),
    _text_or_list(**_NOT_FLAG),
]
Hosts = Annotated[
    list[Annotated[str, AfterValidator(_host)]],
    BeforeValidator(_one_or_more),
    Field(min_length=1),
    _text_or_list(pattern=rf"^(\*|{_HOST.pattern})$"),
]
Origins = Annotated[
    list[Annotated[str, AfterValidator(_origin)]],
    BeforeValidator(_one_or_more),
    Field(min_length=1),
    _text_or_list(pattern=rf"^(\*|{_ORIGIN.pattern})$"),
]
Fields = Annotated[
    list[Word],
    BeforeValidator(_one_or_more),
    AfterValidator(_without_model),
    Field(min_length=1),
    _text_or_list(minLength=1, **_NOT_MODEL),
]
Changes = Annotated[
    dict[str, Any],
    BeforeValidator(plain),
    AfterValidator(_without_model),
    AfterValidator(_json),
    WithJsonSchema({"type": "object", "propertyNames": _NOT_MODEL}),
]
EngineName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,30}$")]
ModelLen = Annotated[
    int | str,
    PlainValidator(_parse_model_len),
    WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"const": "auto"}]}),
]
Flags = Annotated[dict[str, Any], BeforeValidator(plain)]
PoolerConfig = Annotated[
    dict[str, Any],
    BeforeValidator(plain),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}]}),
]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)]
LogFormat = Annotated[Literal["text", "json"], BeforeValidator(_lower)]
Listen = Annotated[Address, PlainValidator(parse_address), WithJsonSchema({"type": "string"})]
Variables = Annotated[
    dict[str, str],
    BeforeValidator(_without_blanks),
    WithJsonSchema(
        {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}}
    ),
]
