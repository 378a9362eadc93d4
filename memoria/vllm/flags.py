"""The flags of one installed vLLM, as its own parser described them: what is wrong with a flag and its value,
and how both are written on the command line.

argparse takes any unique prefix of a name, and FlexibleArgumentParser keys inside a flag's JSON after dots
(`--compilation-config.mode 3`); both are flags here, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from memoria.config.dropped_flags import SUCCESSORS
from memoria.config.model import Config, EngineConfig
from memoria.errors import Problem

Takes = Literal["nothing", "one", "optional", "many", "each"]
# "size" is a whole number that may be written as `32k`; "object" a JSON object, "json" any JSON, "any" an
# object or text.
Kind = Literal["text", "any", "integer", "size", "number", "json", "object"]

_SIZE = re.compile(r"\d+|\d+(\.\d+)?[kmgt]|\d+[KMGT]")
_WORDS: Mapping[Kind, str] = {
    "integer": "a whole number",
    "size": "a whole number, as in 8192 or 8k",
    "number": "a number",
    "json": "a list, a mapping, or JSON text",
    "object": "a mapping, or JSON text",
}


@dataclass(frozen=True, slots=True)
class Option:
    """`names` with their dashes, the main one first; `off` are those that set a switch to false. `words` are
    values beside those of its kind. Where it `folds`, the choices' case and dashes do not count."""

    names: tuple[str, ...]
    takes: Takes
    kind: Kind
    off: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    folds: bool = False


@dataclass(frozen=True, slots=True)
class Flag:
    """One entry of an engine's `vllm_args`: its option, the name that was meant, and the key in its JSON."""

    option: Option
    name: str
    key: str

    @property
    def is_off(self) -> bool:
        return self.name in self.option.off


class UnknownFlagError(Exception):
    """The text says what is wrong, `hint` what to write instead."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one vLLM by all their names, found as its parser finds them."""

    by_name: Mapping[str, Option]
    version: str | None = field(default=None, compare=False)

    def __contains__(self, name: str) -> bool:
        """Whether the parser takes `name`, written with underscores, without shortening."""
        return _dashed(name) in self.by_name

    def find(self, written: str) -> Flag:
        """`written` has underscores and no dashes in front. Raises `UnknownFlagError`."""
        head, _, key = written.partition(".")
        name = _dashed(head)
        longer = [known for known in self.by_name if known.startswith(name)]
        if name not in self.by_name and len({id(self.by_name[known]) for known in longer}) == 1:
            name = longer[0]
        if option := self.by_name.get(name):
            if key and option.kind not in ("json", "object", "any"):
                raise UnknownFlagError(f"`{head}` has no keys in it", f"write `{head}: {_example(option)}`")
            return Flag(option, name, key)
        if longer and head not in SUCCESSORS:
            near = ", ".join(f"`{known[2:]}`" for known in sorted(longer)[:5])
            raise UnknownFlagError(f"`{head}` is short for more than one flag of vLLM", f"such as {near}")
        raise UnknownFlagError(f"{self._vllm} has no flag `{head}`", self._instead(head))

    @property
    def _vllm(self) -> str:
        return f"vLLM {self.version}" if self.version else "vLLM"

    def _instead(self, head: str) -> str:
        if successor := SUCCESSORS.get(head.removeprefix("no_")):
            return successor
        long = [name for name in self.by_name if name.startswith("--")]
        if "-" + head in self.by_name:
            return f"did you mean `{self.by_name['-' + head].names[0].removeprefix('--')}`?"
        close = get_close_matches(_dashed(head), long, n=1, cutoff=0.75)
        return f"did you mean `{close[0][2:]}`?" if close else "`vllm serve --help=all` lists them"


def read_options(data: Mapping[str, Any], version: str | None) -> Options:
    """Of what `memoria.vllm.install.read_options` printed. Raises `KeyError`, `TypeError`."""
    options = [
        Option(
            names=tuple(sorted(found["names"], key=lambda name: not name.startswith("--"))),
            takes=found["takes"],
            kind=found["kind"],
            off=tuple(found["off"]),
            words=tuple(found["words"]),
            choices=tuple(found["choices"]),
            folds=found["folds"],
        )
        for found in data["options"]
    ]
    return Options({name: option for option in options for name in option.names}, version)


def find_problems(config: Config, options: Options) -> tuple[Problem, ...]:
    """All that the installed vLLM would refuse among the engines' flags, in the file's order."""
    return tuple(problem for engine in config.engines for problem in _of_engine(config, engine, options))


def _of_engine(config: Config, engine: EngineConfig, options: Options) -> Iterator[Problem]:
    seen: dict[tuple[int, str], str] = {}
    for written, value in engine.vllm_args.items():
        path = ("engines", engine.name, "args", written)
        own = ("engines", engine.name, written)
        key = path if path in config.marks else own
        mark = config.where(*key)
        where = (f"{mark}  {'.'.join(key[1:])}",) if mark else (f"{engine.name}.{written}",)
        try:
            flag = options.find(written)
        except UnknownFlagError as error:
            yield Problem(str(error), where, error.hint)
            continue
        other = seen.setdefault((id(flag.option), flag.key), written)
        if other != written:
            yield Problem(f"`{written}` and `{other}` are the same flag", where, "keep one of them")
        elif wrong := _refusal(flag, value):
            yield Problem(f"`{written}` {wrong}", where, f"write `{written}: {_example(flag.option)}`")


def _refusal(flag: Flag, value: Any) -> str | None:
    """Completes a sentence that begins with the flag's name; None if vLLM takes the value."""
    option = flag.option
    if flag.key:
        return None  # checked by vLLM's own classes
    if option.takes == "nothing" or (option.takes == "optional" and isinstance(value, bool)):
        return None if isinstance(value, bool) else f"must be true or false, not {_shown(value)}"
    if option.takes in ("many", "each"):
        items = value if isinstance(value, list | tuple) else [value]
        return next((wrong for item in items if (wrong := _item_refusal(option, item))), None)
    return _value_refusal(option, value)


def _item_refusal(option: Option, item: Any) -> str | None:
    """A mapping among several values of text is JSON to the option's own action, as for `lora-modules`."""
    if isinstance(item, Mapping) and option.takes == "many" and option.kind == "text" and "name" in item:
        return None
    return None if item is None else _value_refusal(option, item)


def _value_refusal(option: Option, value: Any) -> str | None:
    if isinstance(value, Mapping):
        fits = option.kind in ("json", "object", "any")
    elif isinstance(value, list | tuple | bool):
        fits = option.kind == "json"
    elif value == "" or value in option.words:
        return None
    else:
        fits = _fits(option.kind, str(value))
    if not fits:
        return f"must be {_WORDS.get(option.kind, 'text')}, not {_shown(value)}"
    if option.choices and not _is_choice(option, str(value)):
        return f"must be one of {', '.join(c for c in option.choices if c != 'None')}, not {_shown(value)}"
    return None


def _fits(kind: Kind, text: str) -> bool:
    try:
        match kind:
            case "integer":
                int(text)
            case "number":
                float(text)
            case "json":
                json.loads(text)
            case "size":
                return _SIZE.fullmatch(text) is not None
            case "object":  # numbers inside may be written as `80m`, which is no JSON
                return text.strip().startswith("{")
            case "text" | "any":
                pass
    except (ValueError, RecursionError):
        return False
    return True


def _is_choice(option: Option, text: str) -> bool:
    return (text.lower().replace("-", "_") if option.folds else text) in option.choices


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text if len(text) <= 40 else text[:39] + '…'}`"


def _example(option: Option) -> str:
    one = (
        option.choices[0]
        if option.choices
        else {
            "integer": "5",
            "size": "8k",
            "number": "0.5",
            "json": "{key: value}",
            "object": "{key: value}",
        }.get(option.kind, "TEXT")
    )
    if option.takes == "nothing":
        return "true"
    if "--lora-modules" in option.names:
        return "[NAME=PATH]"
    return f"[{one}]" if option.takes in ("many", "each") else one


def arguments(flag: Flag, value: Any) -> Iterator[str]:
    """A flag and its value on the command line. A blank value is left out, except where it is JSON."""
    option, name = flag.option, flag.option.names[0]
    if flag.key:
        yield from (f"{name}.{flag.key}={_json_value(value)}",)
    elif isinstance(value, bool) and option.takes in ("nothing", "optional"):
        yield from _switch(option, on=value is not flag.is_off)
    elif value is None or value == "" or (value == [] and option.kind != "json"):
        return
    elif option.takes == "many":
        items = value if isinstance(value, list | tuple) else [value]
        yield from (name, *(_text(item) for item in items if item is not None))
    elif option.takes == "each" and isinstance(value, list | tuple):
        for item in value:
            yield from _pair(name, _text(item))
    else:
        yield from _pair(name, _text(value) if not isinstance(value, bool) else json.dumps(value))


def _switch(option: Option, *, on: bool) -> Iterator[str]:
    """Nothing for a switch that cannot be turned off, as it is off already."""
    names = [name for name in option.names if (name in option.off) is not on]
    yield from names[:1]


def _pair(name: str, text: str) -> tuple[str, ...]:
    return (f"{name}={text}",) if text.startswith("-") else (name, text)


def _text(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, separators=(",", ":"))
    return str(value)


def _json_value(value: Any) -> str:
    """vLLM reads it as JSON, and what is none as text: text that looks like JSON needs its quotes."""
    if not isinstance(value, str):
        return json.dumps(value, separators=(",", ":"))
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return value
    return json.dumps(value)


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")
