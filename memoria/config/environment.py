"""The variables for `${NAME}`: the process environment, then the `.env` beside the file.

`.env` is read as by Docker Compose: `NAME=value`, quotes, inline comments after a blank, and `${NAME}` in
values without single quotes. A blank value counts as unset. The process environment wins.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISREG

from memoria.config.interpolate import ENVIRONMENT, InterpolationError, Variable, interpolate
from memoria.config.model import ConfigPath
from memoria.config.report import Report
from memoria.config.yaml import Node, Scalar
from memoria.errors import Mark

_SINGLE_QUOTED = re.compile(r"[^=]*=\s*'")
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)(_|$)", re.IGNORECASE)
# The hub's token, mirror and folders, by the names that huggingface_hub reads.
_OF_THE_HUB = re.compile(r"HF_\w+|HUGGING_FACE_HUB_TOKEN|HUGGINGFACE_HUB_CACHE")


def save_as_utf8(error: UnicodeDecodeError) -> str:
    """The hint for a file in another encoding: what Windows' editors call "Unicode" is UTF-16."""
    utf16 = error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return f"save it as UTF-8; `iconv -f {'utf-16' if utf16 else 'latin1'} -t utf-8` converts it"


def looks_secret(name: str) -> bool:
    """True for HF_TOKEN and OPENAI_API_KEY, False for MAX_BATCHED_TOKENS and TOKENIZERS_PARALLELISM."""
    return _SECRET.search(name) is not None


def pass_on_hub_variables(
    engine: dict[str, Node], path: ConfigPath, variables: Mapping[str, Variable], report: Report
) -> None:
    """Adds the hub's variables of `.env` to an engine's `env`, in place, as vLLM reads its environment only,
    as under Docker Compose. The process environment and the engine's own `env` win."""
    for name, variable in variables.items():
        if variable.source != ENVIRONMENT and _OF_THE_HUB.fullmatch(name):
            _fill_in(engine, path, ("env", name), variable, report)


def fill_in_log(data: dict[str, Node], variables: Mapping[str, Variable], report: Report) -> None:
    """LOG_LEVEL and LOG_FORMAT are the defaults of their keys, in place."""
    for key in ("level", "format"):
        variable = variables.get(f"LOG_{key.upper()}")
        if variable is not None and variable.value.strip():
            _fill_in(data, (), ("log", key), variable, report)


def _fill_in(
    node: dict[str, Node], path: ConfigPath, key: tuple[str, str], variable: Variable, report: Report
) -> None:
    """Sets a key of a section unless it has a value."""
    section = {} if node.get(key[0]) is None else node[key[0]]
    if isinstance(section, dict) and section.get(key[1]) is None:
        node[key[0]] = section | {key[1]: Scalar(variable.value, variable.value, (variable,))}
        report.variables[(*path, *key)] = (variable,)


def read_variables(
    environ: Mapping[str, str], dotenv: Path, shown_as: str, report: Report
) -> dict[str, Variable]:
    """All variables by name. Problems of `dotenv`, which need not exist, go to `report`."""
    environment = {name: Variable(name, value, ENVIRONMENT) for name, value in environ.items()}
    try:
        if not S_ISREG(dotenv.stat().st_mode):
            return environment
        text = dotenv.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return environment
    except OSError as error:
        reason = (error.strerror or "").lower()
        hint = "let memoria's user read it, or move it away: it need not be there"
        report.error(f"cannot read {shown_as}: {reason}", at=Mark(shown_as, 1), hint=hint)
        return environment
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        report.error(f"{shown_as} is not UTF-8 text", at=Mark(shown_as, line), hint=save_as_utf8(error))
        return environment
    return _parse_dotenv(text, shown_as, environment, report) | environment


def _parse_dotenv(
    text: str, shown_as: str, environment: Mapping[str, Variable], report: Report
) -> dict[str, Variable]:
    from dotenv.parser import parse_stream  # noqa: PLC0415 (40 ms, and not every configuration has a .env)

    variables: dict[str, Variable] = {}
    for binding in parse_stream(io.StringIO(text)):
        text = binding.original.string
        blank_lines = text[: len(text) - len(text.lstrip())].count("\n")
        mark = Mark(shown_as, binding.original.line + blank_lines)
        if binding.error:
            report.error("this line is not `NAME=value`", at=mark, hint="comments begin with #")
        if binding.key is None:
            continue
        value = binding.value or ""
        if not _SINGLE_QUOTED.match(text):
            try:
                value = interpolate(value, variables | dict(environment)).text
            except InterpolationError as error:
                report.error(f"`{binding.key}`: {error}", at=mark, hint=error.hint)
                continue
        if value.strip():
            variables[binding.key] = Variable(binding.key, value, str(mark))
        else:
            variables.pop(binding.key, None)
    return variables
