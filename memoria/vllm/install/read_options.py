"""The options of an installed vLLM's own parser, as JSON on standard output.

Runs in vLLM's Python, alone: it imports nothing of memoria's. The kind of a value is found by trying the
option's type on samples, since the types' names are private to a version and what they accept is not.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORMAT = 1
WORDS = ("auto", "-1", "None")  # that some options of numbers or JSON take, too


def _parser() -> argparse.ArgumentParser:
    root = Path(str(importlib.import_module("vllm").__file__)).parent
    for path in sorted(root.glob("entrypoints/**/cli_args.py")):  # it has moved with every second release
        if "def make_arg_parser(" in path.read_text(encoding="utf-8"):
            module = ".".join(("vllm", *path.relative_to(root).with_suffix("").parts))
            made = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser()
            parser: argparse.ArgumentParser = importlib.import_module(module).make_arg_parser(made)
            return parser
    raise SystemExit("no make_arg_parser in vllm/entrypoints")


def _takes(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "nothing"
    if isinstance(action, argparse._AppendAction):
        return "each"
    return "one" if action.nargs is None else "optional" if action.nargs == "?" else "many"


def _sets(parser: argparse.ArgumentParser, action: argparse.Action, name: str) -> bool:
    """What a name of a switch sets: `--no-enable-x` and `--disable-x` set False, as older and newer forms."""
    namespace = argparse.Namespace()
    action(parser, namespace, [], name)
    return bool(getattr(namespace, action.dest))


def _try(read: Callable[[str], Any], text: str) -> tuple[bool, Any]:
    try:
        return True, read(text)
    except Exception:
        return False, None


def _kind(read: Callable[[str], Any]) -> str:
    if _try(read, "a b")[0]:
        return "any" if isinstance(_try(read, '{"a": 1}')[1], dict) else "text"
    for sample, kind in (("1k", "size"), ("[]", "json"), ("1.5", "number"), ("1", "integer")):
        if _try(read, sample)[0]:
            return kind
    return "object"


def _describe(parser: argparse.ArgumentParser, action: argparse.Action, names: list[str]) -> dict[str, Any]:
    read: Callable[[str], Any] = action.type if callable(action.type) else str
    takes, kind, choices = _takes(action), _kind(read), [str(choice) for choice in action.choices or ()]
    return {
        "names": names,
        "takes": takes,
        "off": [name for name in names if takes == "nothing" and not _sets(parser, action, name)],
        "kind": kind,
        "words": [] if kind in ("text", "any") else [word for word in WORDS if _try(read, word)[0]],
        "choices": choices,
        # a type may map what is written to the choice, as in `FlashInfer-cutlass` for `flashinfer_cutlass`
        "folds": bool(choices) and _try(read, "A-b")[1] == "a_b",
    }


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):  # what vLLM prints while it is imported
        parser = _parser()
        names: dict[argparse.Action, list[str]] = {}
        # names that help hides are in this table only
        for name, action in parser._option_string_actions.items():
            if not isinstance(action, (argparse._HelpAction, argparse._VersionAction)):
                names.setdefault(action, []).append(name)
        options = [_describe(parser, action, known) for action, known in names.items()]
    os.write(1, json.dumps({"format": FORMAT, "options": options}).encode())


if __name__ == "__main__":
    main()
