"""What happened, in order."""

from __future__ import annotations

import pytest

from memoria.engine.events import Entry, Journal


def test_entries_are_kept_in_order_and_bounded() -> None:
    journal = Journal(size=2)
    for what in ("first", "second", "third"):
        journal.add("generation", what)
    assert [entry.what for entry in journal.entries()] == ["second", "third"]
    before, after = journal.entries()
    assert before.monotonic <= after.monotonic


def test_listeners_hear_every_entry() -> None:
    journal, heard = Journal(), list[Entry]()
    journal.listen(heard.append)
    journal.add("generation", "ready", "20 s")
    assert heard == list(journal.entries())


def test_a_listener_that_fails_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Entry) -> None:
        raise RuntimeError("a bug in a screen")

    journal, heard = Journal(), list[Entry]()
    journal.listen(fail)
    journal.listen(heard.append)
    journal.add("generation", "ready")
    assert len(heard) == 1
    assert "a bug in a screen" in caplog.text


def test_what_came_after_an_entry_can_be_asked_for() -> None:
    journal = Journal(size=3)
    for what in ("first", "second", "third", "fourth"):
        journal.add("generation", what)
    assert [entry.what for entry in journal.after(3)] == ["fourth"]
    assert [entry.what for entry in journal.after(0)] == ["second", "third", "fourth"]
    assert journal.after(4) == journal.after(99) == ()
    assert [entry.number for entry in journal.entries()] == [2, 3, 4]
