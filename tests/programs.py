"""Programs that pip does not install: a test that needs one is skipped without it.

`.ci/run` installs them all, and fails when pytest's summary has such a skip (`MISSING`).
"""

from __future__ import annotations

import os
import shutil

import pytest

MISSING = "needs a program"
SERVERS = "/usr/sbin:/usr/local/sbin"  # not on every user's PATH
DEBIAN = {
    "cc": "gcc libc6-dev",
    "chromium": "chromium",
    "curl": "curl",
    "nginx": "nginx-light",
    "node": "nodejs",
    "npm": "npm",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "systemd-analyze": "systemd",
}


def find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path=SERVERS)


def need(program: str) -> str:
    """The program's path; skips the test where the program is missing."""
    path = find(program)
    if path is None:
        pytest.skip(f"{MISSING}: {program} (Debian: apt-get install {DEBIAN[program]})")
    return path


def need_compiler() -> str:
    """The C compiler: `$CC`, or `cc`."""
    return shutil.which(os.environ.get("CC", "cc")) or need("cc")
