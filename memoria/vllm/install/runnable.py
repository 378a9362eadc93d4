"""Would the kernel start this file? Asked of its first bytes: to start it, and hear of it, takes seconds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_ELF = b"\x7fELF"
_LONGEST_LINE = 256  # bytes that the kernel reads of a script (execve(2))


def why_not(program: Path) -> str | None:
    """Why `program`, a file that may be executed, would not start as vLLM; None where it would, or where that
    cannot be told. Raises `OSError`."""
    try:
        with program.open("rb") as file:
            head = file.read(_LONGEST_LINE)
    except PermissionError:  # a program need not be readable
        return None
    if head.startswith(_ELF):
        # vLLM's own is a Python script; a binary in its place is somebody's wrapper, and says so by its name.
        known = "vllm" in program.name or program.name.startswith("python")
        return None if known else "it is another program"
    if not head.startswith(b"#!"):
        return "it is neither a program nor a script that begins with `#!`"
    words = os.fsdecode(head[2:].partition(b"\n")[0]).split()
    interpreter = words[0] if words else ""
    if not os.access(interpreter, os.X_OK):
        return f"its interpreter `{interpreter}` is not there"
    if Path(interpreter).name == "env" and len(words) == 2 and shutil.which(words[1]) is None:
        return f"its interpreter `{words[1]}` is not on PATH"
    return None
