"""What is true of one start only."""

from __future__ import annotations

from memoria.engine.start import Start


def test_the_time_to_ready_is_from_the_spawn() -> None:
    assert Start().seconds_to_ready is None
    assert Start(spawned_at=10.0).seconds_to_ready is None
    assert Start(spawned_at=10.0, ready_at=30.0, exited_at=99.0).seconds_to_ready == 20.0


def test_the_time_of_ready_ends_with_the_process_not_with_its_memory() -> None:
    assert Start(spawned_at=10.0, exited_at=30.0).seconds_of_ready is None
    assert Start(spawned_at=10.0, ready_at=30.0, exited_at=90.0).seconds_of_ready == 60.0
