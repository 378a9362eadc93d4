"""The options of an installed vLLM's parser, recorded once for each installation.

To ask the parser, vLLM must be imported, which takes 15 s; so `memoria setup` records its answer, and so does
the first use of a vLLM that setup did not make.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

from memoria.vllm.flags import Options, read_options
from memoria.vllm.install import read_options as script
from memoria.vllm.install.facts import VllmInstall

logger = logging.getLogger(__name__)

TIMEOUT = 600.0  # seconds; a first import from a cold disk, on a busy machine, takes long


def with_options(install: VllmInstall, data_home: Path) -> VllmInstall:
    """The installation with its options, which are None where they cannot be found out, as behind a script
    of the user's. Blocks while vLLM is imported where they are not recorded yet."""
    if install.root is None:
        return install
    record = _record(install, data_home)
    options = _read(record, install)
    if options is None:
        logger.info("recording the flags that vLLM in %s knows; this is done once", install.root)
        text = _ask(install.root)
        if text is not None:
            _write(record, text)
            options = _parse(text, install)
    return replace(install, options=options)


def _record(install: VllmInstall, data_home: Path) -> Path:
    """By what pip writes anew with each installation."""
    assert install.root is not None
    infos = sorted(install.root.glob("lib/python3.*/site-packages/vllm*.dist-info"))
    parts = (str(install.root), install.version, script.FORMAT, *(info.stat().st_mtime_ns for info in infos))
    return data_home / f"options-{zlib.crc32(repr(parts).encode()):08x}.json"


def _read(record: Path, install: VllmInstall) -> Options | None:
    try:
        return _parse(record.read_text(encoding="utf-8"), install)
    except OSError:
        return None


def _parse(text: str, install: VllmInstall) -> Options | None:
    try:
        return read_options(json.loads(text), install.version)
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("the recorded flags of vLLM cannot be read: %r", error)
        return None


def _ask(root: Path) -> str | None:
    # -I: without PYTHONPATH, and without the folder of the script, whose modules have names that others use
    try:
        done = subprocess.run(
            [str(root / "bin" / "python"), "-I", str(script.__file__)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=True,
            env=os.environ | {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
        )
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().splitlines()[-1:]
        logger.warning("the flags of vLLM in %s are not checked: %s", root, *last or ["it does not load"])
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("the flags of vLLM in %s are not checked: %s", root, error)
    else:
        return done.stdout
    return None


def _write(record: Path, text: str) -> None:
    """A daemon may not write there; it then asks anew at each start."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        draft = record.with_name(f"{record.name}.{os.getpid()}")
        draft.write_text(text, encoding="utf-8")
        draft.replace(record)
    except OSError as error:
        logger.info("the flags of vLLM cannot be recorded: %s", error)
