"""Every key of memoria.yaml in a table: the README's table of keys is tested against it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import Any

from pydantic import TypeAdapter

from memoria.config.schema import SECTIONS, Engine, File
from memoria.config.values import Section, default_of, keys


@dataclass(frozen=True, slots=True)
class KeyDoc:
    """`key` is dotted, with NAME for an engine's name. `default` is "required", blank where the key is unset
    unless given (`meaning` then says what follows), else the value as written in the file."""

    key: str
    type: str
    default: str
    meaning: str


def reference() -> list[KeyDoc]:
    """In the order of the schema; engines last."""
    docs: list[KeyDoc] = []
    for name in keys(File):
        if name in SECTIONS:
            docs += _section(SECTIONS[name], f"{name}.")
        elif name == "engines":
            docs += _section(Engine, "engines.NAME.")
        else:
            docs += [doc for doc in _section(File, "") if doc.key == name]
    return docs


def _section(section: type[Section], prefix: str) -> list[KeyDoc]:
    properties = TypeAdapter(section).json_schema()["properties"]
    return [
        KeyDoc(prefix + name, _type(properties[name]), _default(section, name), field.metadata["description"])
        for name, field in keys(section).items()
    ]


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(
            dict.fromkeys(_type(choice) for choice in schema["anyOf"] if choice.get("type") != "null")
        )
    if "enum" in schema:
        return " or ".join(f"`{choice}`" for choice in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    words = {"string": "text", "integer": "whole number", "boolean": "true or false", "array": "list"}
    kind = schema.get("type", "object")
    return words.get(kind, "mapping" if kind == "object" else kind)


def _default(section: type[Section], name: str) -> str:
    field, default = keys(section)[name], default_of(keys(section)[name])
    if default is None:
        required = section is not SECTIONS["guard"] and field.default is field.default_factory is MISSING
        return "required" if required else ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)
