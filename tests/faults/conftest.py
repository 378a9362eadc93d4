"""Fixtures of the faults: a box, and a ready daemon on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemon import Box


@pytest.fixture
def box(tmp_path: Path, nvml_library: Path) -> Iterator[Box]:
    """A machine with `memoria` on it; whatever runs there is killed afterwards."""
    box = Box(tmp_path, nvml_library)
    yield box
    box.close()
