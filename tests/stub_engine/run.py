"""What the stub's launcher executes; started as a script, so it must find the package by itself."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

if __name__ == "__main__":
    from tests.stub_engine.api_server import main

    main()
