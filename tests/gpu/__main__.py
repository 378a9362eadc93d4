"""`python -m tests.gpu SECONDS [PYTEST ARGUMENTS]`: the kit within a budget (see `budget.py`)."""

from __future__ import annotations

import os
import sys

import pytest

from tests.gpu.budget import SECONDS

if __name__ == "__main__":
    os.environ[SECONDS] = str(float(sys.argv[1]))
    own = ["-m", "gpu", "tests/gpu", "-q", "-rs", "-p", "no:cacheprovider"]
    sys.exit(pytest.main([*own, *sys.argv[2:]]))
