"""Runs the tests of the matrix's rows, all of them or those whose numbers are given."""

from __future__ import annotations

import sys

import pytest

from tests.faults.matrix import ROWS


def main(arguments: list[str]) -> int:
    known = {str(row.number) for row in ROWS}
    wanted = set(arguments) or known
    if unknown := wanted - known:
        print(f"no such row: {', '.join(sorted(unknown))}; there are 1 to {len(ROWS)}", file=sys.stderr)
        return 2
    tests = dict.fromkeys(test for row in ROWS if str(row.number) in wanted for test in row.tests)
    return pytest.main(["-q", "-m", "faults or not faults", *tests])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
