"""Metrics of engines on demand, from the journal's events."""

from __future__ import annotations

from memoria.admin.telemetry.metrics import SwapMetrics
from memoria.engine.events import EventKind, Journal
from memoria.engine.lifecycle import State
from tests.fakes import FakeClock


def test_wakes_and_ends_are_counted_and_timed() -> None:
    clock, journal = FakeClock(), Journal()
    metrics = SwapMetrics(clock)
    journal.listen(metrics.on_event)

    def reach(state: State) -> None:
        journal.add_event(EventKind.TRANSITION, "coder", "", state=state.value, cause="x")

    journal.add_event(EventKind.WAKES, "coder", "for a request", cause="request", away="dormant")
    reach(State.STARTING)
    clock.now += 4
    reach(State.READY)
    journal.add_event(EventKind.MAKES_ROOM, "coder", "for chat: it is idle", cause="idle")
    reach(State.READY)  # called off: not woken anew
    journal.add_event(EventKind.WAKES, "coder", "by hand", cause="hand", away="asleep")
    reach(State.DORMANT)  # its start failed
    clock.now += 99
    reach(State.READY)
    text = b"\n".join(sample for family in metrics.families() for sample in family.samples).decode()
    assert 'wakes_total{engine="coder",from="dormant",cause="request"} 1' in text
    assert 'wakes_total{engine="coder",from="asleep",cause="hand"} 1' in text
    assert 'yields_total{engine="coder",cause="idle"} 1' in text
    assert 'wake_seconds_count{engine="coder"} 1' in text
    assert 'wake_seconds_sum{engine="coder"} 4' in text
