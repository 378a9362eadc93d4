"""`--since`: a length of time, a time of day or a moment."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from memoria.cli.commands.logs import parse_since
from memoria.errors import UsageError

NOW = datetime(2026, 1, 2, 12, 0)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("90s", datetime(2026, 1, 2, 11, 58, 30)),
        ("2h", datetime(2026, 1, 2, 10)),
        ("1d", datetime(2026, 1, 1, 12)),
        ("11:30", datetime(2026, 1, 2, 11, 30)),
        ("2025-12-31T08:00", datetime(2025, 12, 31, 8)),
        ("999999d", datetime.min),
    ],
)
def test_since_when(text: str, at: datetime) -> None:
    assert parse_since(text, NOW) == at


@pytest.mark.parametrize("text", ["", "soon", "10", "-5m", "25:00", "0001-01-01T00:00+14:00"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError):
        parse_since(text, NOW)


@pytest.mark.parametrize("zone", ["Z", "+00:00"])
def test_a_time_with_a_zone_is_that_moment(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-5:30")  # POSIX: east of Greenwich
    time.tzset()
    try:
        assert parse_since(f"2026-01-02T06:00{zone}", NOW) == datetime(2026, 1, 2, 11, 30)
    finally:
        monkeypatch.undo()
        time.tzset()
