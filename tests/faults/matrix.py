"""Row by row: the fault, what must happen, and the tests that inject it (test_matrix.py holds them to exist).

A figure is either measured by a test (the fixture `figure`), or it is a count that the row's tests assert to
be nought: `none` names what there was none of, and is reported when all of them passed.
"""

from __future__ import annotations

from tests.faults import rows_clients, rows_engines
from tests.faults.row import Row

__all__ = ["ROWS", "Row"]

ROWS: tuple[Row, ...] = (*rows_engines.ROWS, *rows_clients.ROWS)
